"""Stage 1, tile: the tile table of a slide, on a grid at an exact um/px, and its QC picture."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from her2.cohort.cautions import is_brown
from her2.config import TilingSection
from her2.core.errors import SlideUnfit
from her2.core.masks import share_inside
from her2.core.types import NOTHING, RGB, Density, Mask
from her2.filters.base import Thumbnail, Where
from her2.filters.registry import LISTED
from her2.segmenters import class_filters
from her2.slides.annotations import Region, region_mask
from her2.slides.masks import read_mask
from her2.slides.slide import Scale, Slide, thumbnail_size
from her2.storage.facts import SlideFacts, TileGrid
from her2.storage.tiles import TileTable
from her2.tiling.artefacts import KEPT, Judgement, area_shares, find_areas, judge, union
from her2.tiling.brown import brown_share
from her2.tiling.picture import BROWN_WORDS, Layers, draw, with_words
from her2.tiling.tissue import cleaned, optical_density, tissue_mask

if TYPE_CHECKING:
    from her2.tiling.segmentation import SegmenterNetwork


@dataclass(frozen=True, slots=True)
class Sources:
    """Inputs besides the slide that determine its tiles."""

    regions: tuple[Region, ...] | None = None
    """Regions that tiles are restricted to; None for the whole slide."""
    mask: Path | None = None
    """Tissue mask from another program."""
    seed: int | None = None
    """Random seed for drawing tiles if there are more than `max_tiles`."""
    networks: "Mapping[str, SegmenterNetwork]" = field(default_factory=dict)
    """Networks by the key of `tiling:` that names them: `segmenter` finds the tissue where there is
    no mask (without it, its colour does), `artefact_segmenter` finds artefacts."""


def grid_axis(length_px: int, tile: float, overlap: float) -> NDArray[np.int32]:
    """Return the starts of the tiles along one axis, level-0 px; all lie inside `length_px`.

    Tile i begins at floor(i * tile * (1 - overlap)), rounded only once so that a fractional tile
    side does not drift across a slide.
    """
    stride = tile * (1 - overlap)
    if length_px < tile:
        return np.empty(0, np.int32)
    count = int((length_px - tile) / stride + 1e-9) + 1
    return np.floor(np.arange(count) * stride + 1e-9).astype(np.int32)


def check_scale(scale: Scale, mpp: float, tiling: TilingSection) -> None:
    """Raise SlideUnfit for a slide that is too coarse for tiles at `mpp` um/px."""
    coarser = max(scale.mpp_x, scale.mpp_y)
    if coarser / mpp > tiling.max_enlargement:
        raise SlideUnfit(
            f"its {coarser:.3g} um/px is {coarser / mpp:.2f} times coarser than the target {mpp:g} "
            f"um/px (tiling.max_enlargement {tiling.max_enlargement:g})"
        )


def check_room(
    scale: Scale, size_px: tuple[int, int], *, mpp: float, size: int, tiling: TilingSection
) -> None:
    """Raise SlideUnfit for a slide of `size_px` (width, height) that cannot have enough tiles.

    Tiles have `size` px per side at `mpp` um/px. A slide too large for any glass is unfit as well.
    """
    thumbnail_size(size_px, _thumbnail_mpp(mpp, size, tiling), scale)
    sides = zip(size_px, (scale.mpp_x, scale.mpp_y), strict=True)
    columns, rows = (len(grid_axis(px, size * mpp / own, tiling.overlap)) for px, own in sides)
    if columns * rows < tiling.min_tiles:
        raise SlideUnfit(
            f"its {size_px[0]:,} x {size_px[1]:,} px at {scale.mpp_x:.4g} um/px ({scale.source}) "
            f"hold {columns * rows} tile(s) of {size * mpp:g} um, fewer than tiling.min_tiles "
            f"{tiling.min_tiles}; is the um/px right?"
        )


def _thumbnail_mpp(mpp: float, size: int, tiling: TilingSection) -> float:
    """Return the um/px of the thumbnail.

    With fewer than 8 mask px per tile side, the share of tissue would be too coarse.
    """
    return min(tiling.thumbnail_mpp, mpp * size / 8)


@dataclass(frozen=True, slots=True)
class Examined:
    """What tiling finds on a slide, from which its tile table and its QC picture are made.

    `density` is that of the `thumbnail`, (h, w, 3), and `layers` are its masks. `coords` (n, 2),
    `tissue` (n,) and `boxes` (n, 4), in px of the thumbnail, are of the tiles with enough tissue,
    row by row from the top, as is the filters' judgement `found`. `drawn` are the rows of those
    that are in the table.
    """

    thumbnail: RGB
    density: Density
    layers: Layers
    grid: TileGrid
    coords: NDArray[np.int32]
    tissue: NDArray[np.float32]
    boxes: NDArray[np.float64]
    found: Judgement
    drawn: NDArray[np.int64]


def examine_slide(
    slide: Slide,
    scale: Scale,
    *,
    mpp: float,
    size: int,
    tiling: TilingSection,
    fingerprint: str,
    sources: Sources | None = None,
) -> Examined:
    """Find tissue and artefacts of a slide, and its tiles at `mpp` um/px of `size` px per side.

    Arguments and errors are those of `tile_slide`.
    """
    check_scale(scale, mpp, tiling)
    sources = sources or Sources()
    width, height = size * mpp / scale.mpp_x, size * mpp / scale.mpp_y
    thumbnail_mpp = _thumbnail_mpp(mpp, size, tiling)
    thumbnail = slide.thumbnail(thumbnail_mpp, scale)
    density = optical_density(thumbnail, mpp=thumbnail_mpp)
    layers = _layers(slide, scale, thumbnail, density, thumbnail_mpp, tiling, sources)
    grid = TileGrid(
        target_mpp=mpp,
        tile_px=size,
        level0_width=width,
        level0_height=height,
        read_level=slide.read_level(mpp, scale),
    )
    xs = grid_axis(slide.width_px, width, tiling.overlap)
    ys = grid_axis(slide.height_px, height, tiling.overlap)
    coords = np.stack([np.tile(xs, len(ys)), np.repeat(ys, len(xs))], axis=1)
    boxes = _on_mask(coords, width, height, slide, layers.tissue)
    tissue = share_inside(layers.tissue, boxes)
    enough = tissue >= tiling.min_tissue
    coords, tissue, boxes = coords[enough], tissue[enough], boxes[enough]
    network = sources.networks.get("artefact_segmenter")
    found = judge(slide, scale, grid, coords, boxes, layers.artefacts, tiling, network)
    drawn = _draw(found.kept, tiling.max_tiles, fingerprint, sources.seed)
    return Examined(thumbnail, density, layers, grid, coords, tissue, boxes, found, drawn)


def tile_slide(
    slide: Slide,
    scale: Scale,
    *,
    mpp: float,
    size: int,
    tiling: TilingSection,
    fingerprint: str,
    sources: Sources | None = None,
) -> tuple[TileTable, RGB]:
    """Find the tiles of a slide at `mpp` um/px with `size` px per side, row by row from the top.

    `fingerprint` is that of the slide's content. The second result is the QC picture (h, w, 3).

    Raises:
        SlideUnfit: the slide is too coarse for the target.
        SlideError: the mask cannot be used.
        TileError: the thumbnail cannot be read.
    """
    sources = sources or Sources()
    seen = examine_slide(
        slide, scale, mpp=mpp, size=size, tiling=tiling, fingerprint=fingerprint, sources=sources
    )
    network = sources.networks.get("artefact_segmenter")
    layers, found, boxes, drawn = seen.layers, seen.found, seen.boxes, seen.drawn
    area_mm2 = slide.width_px * scale.mpp_x * slide.height_px * scale.mpp_y / 1e6
    facts = SlideFacts(
        fingerprint=fingerprint,
        vendor=slide.vendor,
        width_px=slide.width_px,
        height_px=slide.height_px,
        mpp_x=scale.mpp_x,
        mpp_y=scale.mpp_y,
        mpp_source=scale.source,
        tissue_mm2=round(float(layers.tissue.mean()) * area_mm2, 4),
        tissue_source=_tissue_source(sources),
        regions=None if sources.regions is None else len(sources.regions),
        artefact_source=None if network is None else network.source,
        shares=area_shares(layers.artefacts, layers.tissue, layers.region) | found.shares,
        rejected=found.rejected,
        not_drawn=len(found.kept) - len(drawn),
        brown=brown_share(seen.density, layers.tissue),
    )
    region = np.ones_like(layers.tissue) if layers.region is None else layers.region
    quality = {
        **found.values,
        "annotated": share_inside(region, boxes),
        **{f"{name}_read": read.astype(np.float32) for name, read in found.read.items()},
    }
    table = TileTable(
        seen.coords[drawn].astype(np.int32),
        seen.tissue[drawn],
        facts,
        seen.grid,
        {name: values[drawn] for name, values in quality.items()},
        {name: int(read.sum()) for name, read in found.read.items()},
    )
    verdicts = zip(found.verdict, boxes, strict=True)
    rejected = [(found.filters[v], box) for v, box in verdicts if v != KEPT]
    shown = replace(layers, artefacts={**layers.artefacts, **found.masks})
    outlined = (*LISTED, *class_filters(tiling))
    picture = draw(seen.thumbnail, shown, boxes[drawn], rejected, outlined)
    return table, with_words(picture, BROWN_WORDS) if is_brown(facts.brown) else picture


def _tissue_source(sources: Sources) -> str:
    if sources.mask is not None:
        return "mask file"
    network = sources.networks.get("segmenter")
    return "detected" if network is None else network.source


def _layers(
    slide: Slide,
    scale: Scale,
    thumbnail: RGB,
    density: Density,
    mpp: float,
    tiling: TilingSection,
    sources: Sources,
) -> Layers:
    """Find artefacts, and tissue without what covers it, restricted to the regions."""
    nowhere = np.zeros(density.shape[:2], bool)
    view = Thumbnail(thumbnail, density, mpp, outside=nowhere, tissue=nowhere)
    outside = find_areas(Where.OUTSIDE, view, tiling)
    view = replace(view, outside=union(outside.values(), nowhere))
    over = {
        name: mask & ~view.outside for name, mask in find_areas(Where.OVER, view, tiling).items()
    }
    covered = union(over.values(), nowhere)
    size_px = (slide.width_px, slide.height_px)
    shape = (thumbnail.shape[0], thumbnail.shape[1])
    exclude = covered | view.outside
    if sources.mask is not None:
        tissue = read_mask(sources.mask, shape, size_px=size_px)
    elif (network := sources.networks.get("segmenter")) is not None:
        found = network.find(slide, scale, shape) != NOTHING
        tissue = cleaned(found, mpp=mpp, min_tissue_um=tiling.min_tissue_um, exclude=exclude)
    else:
        tissue = tissue_mask(density, mpp=mpp, min_tissue_um=tiling.min_tissue_um, exclude=exclude)
    within = find_areas(Where.WITHIN, replace(view, tissue=tissue & ~covered), tiling)
    region: Mask | None = None
    if sources.regions is not None:
        corner = slide.bounds_corner_px if tiling.annotation_origin == "bounds" else (0, 0)
        region = region_mask(sources.regions, shape, size_px=size_px, origin_px=corner)
        tissue = tissue & region
    return Layers(tissue=tissue, artefacts={**outside, **over, **within}, region=region)


def _on_mask(
    coords: NDArray[np.int32], width: float, height: float, slide: Slide, mask: Mask
) -> NDArray[np.float64]:
    """Return tiles as (n, 4) left, top, right, bottom in px of the mask."""
    to_mask = np.array([mask.shape[1] / slide.width_px, mask.shape[0] / slide.height_px])
    opposite = coords + np.array([width, height])
    return np.concatenate([coords * to_mask, opposite * to_mask], axis=1)


def _draw(
    kept: NDArray[np.int64], limit: int | None, fingerprint: str, seed: int | None
) -> NDArray[np.int64]:
    """Draw at most `limit` rows, in order; the draw does not depend on the slide's name."""
    if limit is None or len(kept) <= limit:
        return kept
    words = hashlib.sha256(f"{seed}\0{fingerprint}".encode()).digest()
    generator = np.random.default_rng(np.frombuffer(words, np.uint32))
    return np.sort(generator.choice(kept, limit, replace=False))
