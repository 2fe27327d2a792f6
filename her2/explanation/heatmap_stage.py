"""Stage 2, heatmaps: attention over some slides, as pictures and as numeric files.

Each held-out slide is shown by the one model of the first repeat and the first training seed that
never saw its patient.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from her2.cohort.manifest import Cohort
from her2.config.external_jobs import ExternalHeatmapSpec
from her2.config.jobs import HeatmapSpec
from her2.core.files import write_json
from her2.explanation import strips
from her2.explanation.drawing import SLIDES, STRIPS, Drawing, draw_slide
from her2.explanation.held_out import find_held_out
from her2.explanation.sources import Source, spread
from her2.storage.cache import Cache
from her2.storage.features import computed_here, places_known, read_attributes

log = logging.getLogger(__name__)


def draw_heatmaps(
    spec: HeatmapSpec,
    cohort: Cohort,
    cache: Cache,
    *,
    folds: Path,
    models: Path,
    features: Path,
    masks: Path | None = None,
    output: Path,
) -> list[dict[str, object]]:
    """Draw the chosen slides and each score's tiles, and write `tiles.json` and `heatmaps.json`.

    Args:
        spec: the job.
        cohort: gives the slides' files.
        cache: holds attention and features.
        folds: the task's folds table.
        models: the folder of the chunks' entries.
        features: the encoder's folder of feature entries.
        masks: folder of ground truths to draw as a panel (docs/explanation.md), if any.
        output: `heatmaps.json`; the other files go beside it, in `slides`, `strips` and `scores`.

    Raises:
        UserError: a fold has no valid attention for a slide it held out, or a product is missing.
    """
    held_out = find_held_out(spec, cache, folds=folds, models=models, features=features)
    return draw_source(spec, held_out.source(), cohort, masks, output)


def draw_source(
    spec: HeatmapSpec | ExternalHeatmapSpec,
    source: Source,
    cohort: Cohort,
    masks: Path | None,
    output: Path,
) -> list[dict[str, object]]:
    """Draw chosen slides of a source and each score's tiles, and list them.

    `output` is `heatmaps.json`, see `draw_heatmaps`; files of an earlier run go away.
    """
    drawing = Drawing(
        formats=("png", *spec.formats),  # the report shows the picture
        synthetic=spec.synthetic,
        masks=masks,
        mask_classes=spec.mask_classes,
        annotation_origin=spec.annotation_origin,
    )
    classes = [*source.class_names, None]
    whole, source = source, drawable(source, cohort)
    chosen = sorted(
        spread(source.slides, spec.slides, seed=spec.seed),
        key=lambda slide: (classes.index(slide.label), slide.slide_id),
    )
    rows = {row.slide_id: row for row in cohort.rows}
    drawn = [
        draw_slide(
            source.tiles(one.slide_id), cohort.file(rows[one.slide_id]), drawing, output.parent
        )
        for one in chosen
    ]
    scores: list[dict[str, object]] = []
    if spec.slides and (source.slides or not whole.slides):
        scores = strips.draw_scores(source, cohort, output.parent, drawing.context)
    _remove_others(output.parent, drawn, scores)
    write_json(output.with_name("tiles.json"), scores)
    write_json(output, drawn)
    return drawn


def drawable(source: Source, cohort: Cohort) -> Source:
    """Return a source of the slides that can be drawn: those that are there, with known tiles.

    Of slides without either, another program's features are all that there is. The log says once
    how many these are.
    """
    present = {row.slide_id for row in cohort.rows if row.path}
    there = [one for one in source.slides if one.slide_id in present]
    if there and not computed_here(read_attributes(source.store(there[0].slide_id))):
        attributes = ((one, read_attributes(source.store(one.slide_id))) for one in there)
        placed = [one for one, found in attributes if places_known(found)]
    else:
        placed = there
    for number, why in (
        (len(source.slides) - len(there), "there is no slide (column 'path')"),
        (len(there) - len(placed), "their features do not tell where on the slide they are"),
    ):
        if number:
            log.info("%d of %d %ss are not drawn: %s", number, len(source.slides), source.kind, why)
    return source if len(placed) == len(source.slides) else replace(source, slides=placed)


def _remove_others(
    folder: Path, drawn: Sequence[dict[str, object]], scores: Sequence[dict[str, object]]
) -> None:
    """Remove files that an earlier run drew of other slides."""
    kept: set[str] = set()
    for row in (*drawn, *scores):
        kept |= {str(row[name]) for name in ("picture", "tile_strip") if row.get(name)}
        files = row.get("files", [])
        assert isinstance(files, Collection)
        kept |= {str(name) for name in files}
    for name in (SLIDES, STRIPS, strips.FOLDER):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for path in (folder / name).iterdir():
            if (
                path.is_file()
                and not path.name.startswith(".")
                and f"{name}/{path.name}" not in kept
            ):
                path.unlink()
