"""Stage 2, heatmaps: attention over some held-out slides, as pictures and as numeric files.

Each slide is shown by the one model of the first repeat and the first training seed that never saw
its patient.
"""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from her2.cohort.manifest import Cohort
from her2.config import HeatmapFormat
from her2.config.jobs import HeatmapSpec
from her2.core.crashes import reading
from her2.core.errors import SlideError, TileError
from her2.core.files import atomic_path, write_json
from her2.core.plot_style import FigureContext
from her2.core.types import RGB, Mask
from her2.explanation import exports, strips
from her2.explanation.heatmap import (
    SIDE_PX,
    draw_picture,
    overlay,
    panels,
    picture_scale,
    thumbnail_boxes,
)
from her2.explanation.held_out import HeldOut, HeldOutSlide, find_held_out, spread
from her2.explanation.tiles import UNIFORM, SlideTiles, read_tiles
from her2.explanation.truth import find_truth, truth_mask
from her2.slides.slide import Slide
from her2.storage.cache import Cache

log = logging.getLogger(__name__)

SLIDES, STRIPS = "slides", "strips"
"""Folders beside `heatmaps.json`: the files of each slide, and pictures of its tiles."""
SUFFIXES: dict[HeatmapFormat, str] = {
    "parquet": ".parquet",
    "geojson": ".geojson",
    "ome_tiff": ".ome.tiff",
}
"""Format -> suffix of the file that is written beside the picture."""


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
    classes = list(spec.task.class_names)
    chosen = sorted(
        spread(held_out.slides, spec.slides, seed=spec.seed),
        key=lambda slide: (classes.index(slide.label), slide.slide_id),
    )
    drawn = [_draw_slide(spec, cohort, held_out, held, masks, output.parent) for held in chosen]
    scores: list[dict[str, object]] = []
    if spec.slides:
        scores = strips.draw_scores(held_out, cohort, output.parent, FigureContext(spec.synthetic))
    _remove_others(output.parent, drawn, scores)
    write_json(output.with_name("tiles.json"), scores)
    write_json(output, drawn)
    return drawn


def _draw_slide(
    spec: HeatmapSpec,
    cohort: Cohort,
    held_out: HeldOut,
    held: HeldOutSlide,
    masks: Path | None,
    folder: Path,
) -> dict[str, object]:
    """Draw one slide and return its row of `heatmaps.json`."""
    tiles = read_tiles(held_out, held)
    row = next(row for row in cohort.rows if row.slide_id == held.slide_id)
    large: RGB | None = None
    notes = [UNIFORM] if tiles.uniform else []
    try:
        with reading(held.slide_id), Slide(cohort.file(row)) as slide:
            thumbnail = _thumbnail(slide, tiles, SIDE_PX)
            if "ome_tiff" in spec.formats:
                large = _thumbnail(slide, tiles, exports.OME_SIDE_PX)
            images = None if tiles.uniform else strips.slide_tile_images(slide, tiles)
            origin_px = slide.bounds_corner_px
    except (SlideError, TileError) as error:
        log.warning("%s: no heatmap: %s", held.slide_id, error)
        return {"slide_id": held.slide_id, "reason": str(error)}
    truth = None
    try:
        with reading(held.slide_id):
            truth = _truth(spec, masks, tiles, thumbnail, origin_px)
    except SlideError as error:
        log.warning("%s: heatmap without ground truth: %s", held.slide_id, error)
        notes.append(str(error))
    context = FigureContext(spec.synthetic)
    parts = panels(tiles, thumbnail, truth, truth_words(context))
    scale = picture_scale(tiles, thumbnail)
    picture = f"{SLIDES}/{held.slide_id}.png"
    with atomic_path(folder / picture) as path:
        draw_picture(parts, scale, context, headline=_headline(tiles), path=path)
    strip = None
    if images is not None:
        strip = f"{STRIPS}/{held.slide_id}.png"
        with atomic_path(folder / strip) as path:
            strips.draw_strip(
                images,
                context,
                headline=_headline(tiles),
                tile_um=tiles.slide.level0_tile[0] * tiles.scale.mpp_x,
                path=path,
            )
    files = _export(spec, tiles, folder, large, origin_px)
    log.info("%s: heatmap drawn", held.slide_id)
    return {
        "slide_id": held.slide_id,
        "patient_id": held.patient_id,
        "label": tiles.held.label,
        "predicted": tiles.predicted,
        "fold": held.fold,
        "picture": picture,
        "panels": [part.name for part in parts],
        "tiles": len(tiles),
        "um_per_px": round(scale.mpp_x, 3),
        "files": files,
        "tile_strip": strip,
        **({"note": "; ".join(notes)} if notes else {}),
    }


def _truth(
    spec: HeatmapSpec,
    masks: Path | None,
    tiles: SlideTiles,
    thumbnail: RGB,
    origin_px: tuple[int, int],
) -> Mask | None:
    """Return a mask of the positive tissue at the size of the thumbnail, or None."""
    path = None if masks is None else find_truth(masks, tiles.held.slide_id)
    if path is None:
        return None
    return truth_mask(
        path,
        (thumbnail.shape[0], thumbnail.shape[1]),
        size_px=tiles.slide.size_px,
        classes=spec.mask_classes,
        origin_px=origin_px if spec.annotation_origin == "bounds" else (0, 0),
    )


def truth_words(context: FigureContext) -> str:
    """Return what the yellow tint of the ground-truth panel stands for."""
    return "Planted HER2-positive morphology" if context.synthetic else "Annotated positive area"


def _thumbnail(slide: Slide, tiles: SlideTiles, side_px: int) -> RGB:
    """Return the whole slide with a longer side of `side_px`, but no finer than level 0."""
    width, height = tiles.slide.size_px
    longer_um = max(width * tiles.scale.mpp_x, height * tiles.scale.mpp_y)
    return slide.thumbnail(
        max(longer_um / side_px, tiles.scale.mpp_x, tiles.scale.mpp_y), tiles.scale
    )


def _export(
    spec: HeatmapSpec,
    tiles: SlideTiles,
    folder: Path,
    large: RGB | None,
    origin_px: tuple[int, int],
) -> list[str]:
    """Write the requested formats and return their paths below `folder`."""
    names = []
    facts = exports.facts(tiles, synthetic=spec.synthetic)
    for kind, suffix in SUFFIXES.items():
        if kind not in spec.formats:
            continue
        names.append(f"{SLIDES}/{tiles.held.slide_id}{suffix}")
        with atomic_path(folder / names[-1]) as path:
            if kind == "parquet":
                exports.write_parquet(tiles, path, facts)
            elif kind == "geojson":
                exports.write_geojson(tiles, path, facts, origin_px=origin_px)
            elif large is not None:
                words = "Rank of attention in the slide, dark blue (lowest) to yellow (highest). "
                words += f"{exports.WARNING}." + (" Synthetic slide." if spec.synthetic else "")
                exports.write_ome_tiff(
                    overlay(large, thumbnail_boxes(tiles, large), tiles.rank),
                    path,
                    scale=picture_scale(tiles, large),
                    name=tiles.held.slide_id,
                    about=words,
                )
    return names


def _headline(tiles: SlideTiles) -> tuple[str, str]:
    return (
        tiles.held.slide_id,
        f"scored {tiles.held.label}, predicted {tiles.predicted} "
        f"(P = {max(tiles.probabilities):.2f}) "
        f"by the model of fold {tiles.held.fold}, which never saw the patient",
    )


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
