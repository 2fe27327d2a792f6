"""Stage 2, heatmaps: the picture of one slide, of its tiles, and the files for other programs.

Whatever model and cohort a slide is of: what is drawn is a `SlideTiles`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from her2.config import HeatmapFormat
from her2.core.crashes import reading
from her2.core.errors import SlideError, TileError, UserError
from her2.core.files import atomic_path
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
from her2.explanation.tiles import UNIFORM, UNKNOWN, SlideTiles
from her2.explanation.truth import find_truth, truth_mask, truth_words
from her2.slides.slide import Slide

log = logging.getLogger(__name__)

SLIDES, STRIPS = "slides", "strips"
"""Folders of the files of each slide, and of the pictures of its tiles."""
SUFFIXES: dict[HeatmapFormat, str] = {
    "parquet": ".parquet",
    "geojson": ".geojson",
    "ome_tiff": ".ome.tiff",
}
"""Format -> suffix of the file that is written beside the picture."""

FORMATS: tuple[HeatmapFormat, ...] = ("png", *SUFFIXES)


def chosen_formats(words: Sequence[str] | str) -> tuple[HeatmapFormat, ...]:
    """Return formats from words, or from one; `ome-tiff` is `ome_tiff`.

    Raises:
        UserError: a word is none, or there are none.
    """
    known: dict[str, HeatmapFormat] = {name: name for name in FORMATS} | {"ome-tiff": "ome_tiff"}
    words = (words,) if isinstance(words, str) else words
    wrong = [one for one in words if one not in known]
    if wrong or not words:
        said = ", ".join(map(repr, wrong)) or "none"
        raise UserError(f"formats: {said}; give some of {', '.join(FORMATS)}.")
    return tuple(dict.fromkeys(known[one] for one in words))


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is drawn of a slide: files in `formats`; with `png` a picture, and one of its tiles.

    `masks` is the folder of ground truths, if any; of their regions, those of `mask_classes` count
    (all, if empty), in coordinates relative to `annotation_origin`.
    """

    formats: tuple[HeatmapFormat, ...] = ("png", "geojson")
    synthetic: bool = False
    masks: Path | None = None
    mask_classes: tuple[str, ...] = ()
    annotation_origin: Literal["level0", "bounds"] = "level0"

    @property
    def context(self) -> FigureContext:
        """Return whether the slides are synthetic, for the words of pictures."""
        return FigureContext(self.synthetic)


def draw_slide(tiles: SlideTiles, file: Path, drawing: Drawing, folder: Path) -> dict[str, object]:
    """Draw one slide from its `file` into `slides` and `strips` below a folder.

    Returns:
        The slide's row of the list of pictures (`her2.explanation.listing`): the files that were
        written, or only the reason where the slide cannot be read.
    """
    slide_id = tiles.of.slide_id
    large: RGB | None = None
    notes = [UNIFORM] if tiles.uniform else []
    try:
        with reading(slide_id), Slide(file) as slide:
            pictured = "png" in drawing.formats
            thumbnail = _thumbnail(slide, tiles, SIDE_PX) if pictured else None
            if "ome_tiff" in drawing.formats:
                large = _thumbnail(slide, tiles, exports.OME_SIDE_PX)
            images = None
            if pictured and not tiles.uniform:
                images = strips.slide_tile_images(slide, tiles)
            origin_px = slide.bounds_corner_px
    except (SlideError, TileError) as error:
        log.warning("%s: no heatmap: %s", slide_id, error)
        return {"slide_id": slide_id, "reason": str(error)}
    found = _Pictures()
    if thumbnail is not None:
        found = _pictures(tiles, thumbnail, images, drawing, folder, origin_px)
        notes += found.notes
    files = _export(drawing, tiles, folder, large, origin_px)
    log.info("%s: heatmap drawn", slide_id)
    return {
        "slide_id": slide_id,
        "patient_id": tiles.of.patient_id,
        "label": tiles.of.label,
        "predicted": tiles.predicted,
        **tiles.of.models,
        "picture": found.picture,
        "panels": list(found.panels),
        "tiles": len(tiles),
        "um_per_px": found.um_per_px,
        "files": files,
        "tile_strip": found.strip,
        **({"note": "; ".join(notes)} if notes else {}),
    }


@dataclass(frozen=True, slots=True)
class _Pictures:
    """The pictures of a slide that were written, by their paths below the folder."""

    picture: str | None = None
    panels: tuple[str, ...] = ()
    um_per_px: float | None = None
    strip: str | None = None
    notes: tuple[str, ...] = ()


def _pictures(
    tiles: SlideTiles,
    thumbnail: RGB,
    images: dict[str, list[strips.TileImage]] | None,
    drawing: Drawing,
    folder: Path,
    origin_px: tuple[int, int],
) -> _Pictures:
    """Write the picture of a slide and, where they were read, that of its tiles."""
    slide_id = tiles.of.slide_id
    notes: list[str] = []
    truth = None
    try:
        with reading(slide_id):
            truth = _truth(drawing, tiles, thumbnail, origin_px)
    except SlideError as error:
        log.warning("%s: heatmap without ground truth: %s", slide_id, error)
        notes.append(str(error))
    context = drawing.context
    parts = panels(tiles, thumbnail, truth, truth_words(context))
    scale = picture_scale(tiles, thumbnail)
    picture = f"{SLIDES}/{slide_id}.png"
    with atomic_path(folder / picture) as path:
        draw_picture(parts, scale, context, headline=headline(tiles), path=path)
    strip = None
    if images is not None:
        strip = f"{STRIPS}/{slide_id}.png"
        with atomic_path(folder / strip) as path:
            strips.draw_strip(
                images,
                context,
                headline=headline(tiles),
                tile_um=tiles.slide.level0_tile[0] * tiles.scale.mpp_x,
                path=path,
            )
    return _Pictures(
        picture, tuple(part.name for part in parts), round(scale.mpp_x, 3), strip, tuple(notes)
    )


def headline(tiles: SlideTiles) -> list[str]:
    """Return the lines above a slide's pictures: its name, and what was predicted by whom."""
    if tiles.predicted is None:
        return [tiles.of.slide_id, tiles.of.by]
    scored = UNKNOWN if tiles.of.label is None else f"scored {tiles.of.label}"
    said = f"{scored}, predicted {tiles.predicted} (P = {max(tiles.probabilities):.2f})"
    return [tiles.of.slide_id, *f"{said} {tiles.of.by}".split("\n")]


def _truth(
    drawing: Drawing, tiles: SlideTiles, thumbnail: RGB, origin_px: tuple[int, int]
) -> Mask | None:
    """Return a mask of the positive tissue at the size of the thumbnail, or None."""
    path = None if drawing.masks is None else find_truth(drawing.masks, tiles.of.slide_id)
    if path is None:
        return None
    return truth_mask(
        path,
        (thumbnail.shape[0], thumbnail.shape[1]),
        size_px=tiles.slide.size_px,
        classes=drawing.mask_classes,
        origin_px=origin_px if drawing.annotation_origin == "bounds" else (0, 0),
    )


def _thumbnail(slide: Slide, tiles: SlideTiles, side_px: int) -> RGB:
    """Return the whole slide with a longer side of `side_px`, but no finer than level 0."""
    width, height = tiles.slide.size_px
    longer_um = max(width * tiles.scale.mpp_x, height * tiles.scale.mpp_y)
    return slide.thumbnail(
        max(longer_um / side_px, tiles.scale.mpp_x, tiles.scale.mpp_y), tiles.scale
    )


def _export(
    drawing: Drawing,
    tiles: SlideTiles,
    folder: Path,
    large: RGB | None,
    origin_px: tuple[int, int],
) -> list[str]:
    """Write the requested formats and return their paths below `folder`."""
    names = []
    facts = exports.facts(tiles, synthetic=drawing.synthetic)
    for kind, suffix in SUFFIXES.items():
        if kind not in drawing.formats:
            continue
        names.append(f"{SLIDES}/{tiles.of.slide_id}{suffix}")
        with atomic_path(folder / names[-1]) as path:
            if kind == "parquet":
                exports.write_parquet(tiles, path, facts)
            elif kind == "geojson":
                exports.write_geojson(tiles, path, facts, origin_px=origin_px)
            elif large is not None:
                words = "Rank of attention in the slide, dark blue (lowest) to yellow (highest). "
                words += f"{exports.WARNING}." + (" Synthetic slide." if drawing.synthetic else "")
                exports.write_ome_tiff(
                    overlay(large, thumbnail_boxes(tiles, large), tiles.rank),
                    path,
                    scale=picture_scale(tiles, large),
                    name=tiles.of.slide_id,
                    about=words,
                )
    return names
