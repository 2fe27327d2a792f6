"""`her2 view`: the tiles and attention of slides that `her2 predict --heatmaps` has drawn.

Predictions leave no feature stores in results; what a slide's GeoJSON for QuPath says is enough.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from her2.core.errors import UserError
from her2.core.files import parse_json
from her2.explanation.tiles import SlideTiles
from her2.storage.facts import StoredSlide
from her2.viewer.kept import Kept
from her2.viewer.run import ViewedCohort

_SLIDES = 8
_PROBABILITY = "prob_"


@dataclass(frozen=True, slots=True)
class Predicted:
    """A slide that a bundle has predicted, as pictures name it."""

    slide_id: str
    patient_id: str
    by: str = "by the bundle"
    models: Mapping[str, object] = field(default_factory=dict)
    label: str | None = None


class DrawnSlides:
    """The drawn slides that were looked at last. Thread-safe."""

    def __init__(self) -> None:
        self._kept: Kept[SlideTiles] = Kept(_SLIDES)

    def forget(self, cohort: ViewedCohort, slide_id: str) -> None:
        """Read a slide again when it is asked for: it may have been drawn again."""
        self._kept.forget(lambda key: key == (cohort.key, slide_id))

    def of(self, cohort: ViewedCohort, slide_id: str) -> SlideTiles:
        """Return the tiles of a slide.

        Raises:
            UserError: it was not drawn, or its file is none.
        """
        if cohort.drawn is None:
            raise UserError(
                "the attention is not known; name what was drawn by `her2 predict --heatmaps` with "
                "--heatmaps."
            )
        path = cohort.drawn / f"{slide_id}.geojson"
        return self._kept.get((cohort.key, slide_id), lambda: _read(path, cohort, slide_id))


def _read(path: Path, cohort: ViewedCohort, slide_id: str) -> SlideTiles:
    if not path.is_file():
        raise UserError(f"it was not drawn: {path.name} is not in the folder of --heatmaps.")
    try:
        found = parse_json(path.read_bytes())
        about = found["her2"]
        corners = np.asarray(
            [one["geometry"]["coordinates"][0] for one in found["features"]], np.float64
        )
        attention = np.asarray(
            [one["properties"]["measurements"]["attention"] for one in found["features"]],
            np.float32,
        )
        if about["slide_id"] != slide_id or corners.ndim != 3 or not len(corners):
            raise ValueError("of another slide, or without tiles")
        low, high = corners.min(axis=1), corners.max(axis=1)
        width, height = (high - low).mean(axis=0).tolist()  # whole px, as QuPath has them
        slide = StoredSlide(
            fingerprint=str(about["fingerprint"]),
            mpp=(float(about["mpp"][0]), float(about["mpp"][1])),
            mpp_source=str(about["mpp_source"]),
            level0_tile=(width, height),
            size_px=(int(about["size_level0_px"][0]), int(about["size_level0_px"][1])),
        )
        coords = np.rint(low + np.asarray(about["origin_level0_px"], np.float64)).astype(np.int32)
        if not (np.isfinite(attention).all() and np.isfinite(corners).all() and width > 0 < height):
            raise ValueError("not finite")
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        raise UserError(
            f"{path.name}: is no drawing of this slide by `her2 predict --heatmaps`."
        ) from None
    classes, probabilities = _probabilities(cohort, slide_id)
    return SlideTiles(
        of=Predicted(slide_id, cohort.row(slide_id).patient_id),
        class_names=classes,
        coords=coords,
        slide=slide,
        encoder_px=cohort.tile_px or round(width),
        attention=attention,
        probabilities=probabilities,
        model={},
    )


def _probabilities(
    cohort: ViewedCohort, slide_id: str
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    columns = [name for name in cohort.table.columns if name.startswith(_PROBABILITY)]
    rows = cohort.table.filter(slide_id=slide_id).select(columns).rows()
    values = rows[0] if rows and None not in rows[0] else ()
    return tuple(name.removeprefix(_PROBABILITY) for name in columns), tuple(values)
