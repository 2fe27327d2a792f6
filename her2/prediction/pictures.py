"""Raw slides to scores: attention of the frozen model, as pictures and for QuPath."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from her2.cohort.manifest import Cohort
from her2.explanation.drawing import Drawing, draw_slide
from her2.explanation.tiles import tiles_of_store
from her2.frozen.model import FrozenPrediction
from her2.prediction.predictor import Predictor
from her2.prediction.progress import Progress
from her2.prediction.slides import Prepared
from her2.storage.cache import Cache


@dataclass(frozen=True, slots=True)
class PredictedSlide:
    """A slide as pictures name it: without a label, explained by all models together."""

    slide_id: str
    patient_id: str
    by: str
    models: Mapping[str, object]
    label: str | None = None


def draw_pictures(
    predictor: Predictor,
    cohort: Cohort,
    cache: Cache,
    slides: Iterable[tuple[Prepared, FrozenPrediction, bool]],
    folder: Path,
    progress: Progress,
) -> list[dict[str, object]]:
    """Draw each slide into a folder: `slides/{slide_id}.png` and `.geojson`, and its tiles.

    `slides` are given with their predictions, and whether the model was trained on them.

    Returns:
        A row per slide with the files, or the reason why it was not drawn.
    """
    model, rows = predictor.model, []
    for one, prediction, trained_on in slides:
        assert one.embedded.key is not None
        models = {"models": len(model.folds)}
        tiles = tiles_of_store(
            cache.path("features", one.embedded.key),
            PredictedSlide(
                one.row.slide_id,
                one.row.patient_id,
                _who(predictor, trained_on),
                models,
            ),
            class_names=model.task.class_names,
            attention=prediction.attention,
            probabilities=prediction.probabilities.tolist(),
            model={"model": model.name, **models},
        )
        rows.append(draw_slide(tiles, cohort.file(one.row), Drawing(), folder))
        if "reason" in rows[-1]:
            progress.say(f"{one.row.slide_id}: no picture: {rows[-1]['reason']}")
    return rows


def _who(predictor: Predictor, trained_on: bool) -> str:
    """Return who predicted a slide, to end a sentence."""
    count = len(predictor.model.folds)
    who = f"by the mean of {count} models" if count > 1 else "by one model"
    if trained_on:
        return f"{who}, trained on this slide"
    return f"{who}, developed on synthetic slides" if predictor.synthetic else who
