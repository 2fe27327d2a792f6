"""Stage 1, tile: an open slide -> its tile table on a grid at an exact um/px, and a QC picture."""

import hashlib
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from her2.config import TilingSection
from her2.core.errors import SlideUnfit, TileError
from her2.core.geometry import share_inside
from her2.core.types import RGB, Mask
from her2.slides.annotations import Region, region_mask
from her2.slides.masks import read_mask
from her2.slides.slide import Scale, Slide
from her2.storage.tiles import TileMeta, TileTable
from her2.tiling import artefacts
from her2.tiling.picture import Layers, draw
from her2.tiling.tissue import optical_density, tissue_mask

REASONS = ("border", "pen", "fold", "blur")
"""Why a tile with enough tissue is not kept; the first that holds is counted."""
_MANY = 100
"""From so many tiles on it pays to ask whether they can be decoded without OpenSlide."""
_FINEST_BLUR_MPP = 0.5
"""At finer um/px the optics limit what a sharp image can show, and all tiles would look soft."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What beside the slide itself decides on its tiles."""

    regions: tuple[Region, ...] | None = None
    """Tiles only inside these; None: the whole slide."""
    mask: Path | None = None
    """Tissue from another program."""
    seed: int | None = None
    """Of the draw when there are more than `max_tiles`."""


def grid_axis(length_px: int, tile: float, overlap: float) -> NDArray[np.int32]:
    """Where tiles begin along one axis, level-0 px.

    Tile i begins at floor(i * tile * (1 - overlap)): rounded once, so that a fractional tile side
    does not drift across a slide; every tile lies inside `length_px`.
    """
    stride = tile * (1 - overlap)
    if length_px < tile:
        return np.empty(0, np.int32)
    count = int((length_px - tile) / stride + 1e-9) + 1
    return np.floor(np.arange(count) * stride + 1e-9).astype(np.int32)


def tile_slide(
    slide: Slide,
    scale: Scale,
    *,
    mpp: float,
    size: int,
    tiling: TilingSection,
    fingerprint: str,
    sources: Sources = Sources(),
) -> tuple[TileTable, RGB]:
    """Find the tiles of a slide.

    Args:
        slide: an open slide.
        scale: its um/px.
        mpp: target um/px.
        size: target px a side.
        tiling: what becomes a tile.
        fingerprint: of the slide's content.
        sources: annotated regions, a mask, a seed.

    Returns:
        The tiles in rows from the top, and the QC picture (h, w, 3).

    Raises:
        SlideUnfit: too coarse for the target.
        SlideError: the mask cannot be used.
        TileError: the thumbnail cannot be read.
    """
    enlargement = max(scale.mpp_x, scale.mpp_y) / mpp
    if enlargement > tiling.max_enlargement:
        raise SlideUnfit(
            f"its {max(scale.mpp_x, scale.mpp_y):.3g} um/px is {enlargement:.2f} times coarser "
            f"than the {mpp:g} um/px asked for (tiling.max_enlargement {tiling.max_enlargement:g})"
        )
    width, height = size * mpp / scale.mpp_x, size * mpp / scale.mpp_y
    # A mask with fewer than 8 px a tile would measure the share of tissue coarsely.
    thumbnail_mpp = min(tiling.thumbnail_mpp, mpp * size / 8)
    thumbnail = slide.thumbnail(thumbnail_mpp, scale)
    layers = _layers(slide, thumbnail, thumbnail_mpp, tiling, sources)
    coords = _grid(slide, width, height, tiling.overlap)
    boxes = _on_mask(coords, width, height, slide, layers.tissue)
    tissue = share_inside(layers.tissue, boxes)
    enough = tissue >= tiling.min_tissue
    coords, tissue, boxes = coords[enough], tissue[enough], boxes[enough]
    shares = {
        name: share_inside(getattr(layers, name), boxes) for name in ("border", "pen", "fold")
    }
    limits = {"border": tiling.max_border, "pen": tiling.max_pen, "fold": tiling.max_fold}
    verdict = np.full(len(coords), -1)
    for number, name in reversed(list(enumerate(shares))):
        verdict[shares[name] > limits[name]] = number
    blur, blur_read = _blur(
        slide, scale, coords, verdict < 0, (width, height), mpp=mpp, size=size, tiling=tiling
    )
    verdict[(verdict < 0) & (blur > tiling.max_blur)] = REASONS.index("blur")
    kept = np.flatnonzero(verdict < 0)
    drawn = _draw(kept, tiling.max_tiles, fingerprint, sources.seed)
    meta = TileMeta(
        fingerprint=fingerprint,
        width_px=slide.width_px,
        height_px=slide.height_px,
        vendor=slide.vendor,
        mpp_x=scale.mpp_x,
        mpp_y=scale.mpp_y,
        mpp_source=scale.source,
        target_mpp=mpp,
        tile_px=size,
        level0_width=width,
        level0_height=height,
        read_level=slide.read_level(mpp, scale),
        tissue_mm2=round(float(layers.tissue.mean()) * _area_mm2(slide, scale), 4),
        tissue_source="detected" if sources.mask is None else "mask file",
        regions=None if sources.regions is None else len(sources.regions),
        **_area_shares(layers),
        rejected={name: int((verdict == i).sum()) for i, name in enumerate(REASONS)},
        not_drawn=len(kept) - len(drawn),
        blur_reads=int(blur_read.sum()),
    )
    region = np.ones_like(layers.tissue) if layers.region is None else layers.region
    quality = {**shares, "blur": blur, "annotated": share_inside(region, boxes)}
    quality["blur_read"] = blur_read.astype(np.float32)
    table = TileTable(
        coords[drawn].astype(np.int32),
        tissue[drawn],
        meta,
        {name: values[drawn] for name, values in quality.items()},
    )
    rejected = [(REASONS[v], box) for v, box in zip(verdict, boxes, strict=True) if v >= 0]
    return table, draw(thumbnail, layers, boxes[drawn], rejected)


def _layers(
    slide: Slide, thumbnail: RGB, mpp: float, tiling: TilingSection, sources: Sources
) -> Layers:
    """Tissue and artefacts on the thumbnail; tissue is without pen and border, and in regions."""
    density = optical_density(thumbnail, mpp=mpp)
    border = artefacts.border_mask(thumbnail)
    pen = artefacts.pen_mask(density, mpp=mpp, border=border) & ~border
    size_px = (slide.width_px, slide.height_px)
    shape = (thumbnail.shape[0], thumbnail.shape[1])
    if sources.mask is None:
        tissue = tissue_mask(
            density, mpp=mpp, min_tissue_um=tiling.min_tissue_um, exclude=pen | border
        )
    else:
        tissue = read_mask(sources.mask, shape, size_px=size_px)
    fold = artefacts.fold_mask(density, tissue & ~pen, mpp=mpp)
    region: Mask | None = None
    if sources.regions is not None:
        corner = slide.bounds_corner_px if tiling.annotation_origin == "bounds" else (0, 0)
        region = region_mask(sources.regions, shape, size_px=size_px, origin_px=corner)
        tissue = tissue & region
    return Layers(tissue=tissue, pen=pen, fold=fold, border=border, region=region)


def _grid(slide: Slide, width: float, height: float, overlap: float) -> NDArray[np.int32]:
    xs = grid_axis(slide.width_px, width, overlap)
    ys = grid_axis(slide.height_px, height, overlap)
    return np.stack([np.tile(xs, len(ys)), np.repeat(ys, len(xs))], axis=1)


def _on_mask(
    coords: NDArray[np.int32], width: float, height: float, slide: Slide, mask: Mask
) -> NDArray[np.float64]:
    """Tiles as (n, 4) left, top, right, bottom in px of the mask."""
    to_mask = np.array([mask.shape[1] / slide.width_px, mask.shape[0] / slide.height_px])
    opposite = coords + np.array([width, height])
    return np.concatenate([coords * to_mask, opposite * to_mask], axis=1)


def _blur(
    slide: Slide,
    scale: Scale,
    coords: NDArray[np.int32],
    asked: NDArray[np.bool_],
    extent: tuple[float, float],
    *,
    mpp: float,
    size: int,
    tiling: TilingSection,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Blur of the tiles that are `asked` for, NaN for others and where it is switched off."""
    blur = np.full(len(coords), np.nan, np.float32)
    measured = np.zeros(len(coords), bool)
    if tiling.max_blur >= 1:
        return blur, measured
    rows = np.flatnonzero(asked)
    side = max(16, round(size * min(1.0, mpp / _FINEST_BLUR_MPP)))

    def measure(index: int) -> float:
        x, y = coords[rows[index]]
        try:
            tile = slide.region(float(x), float(y), *extent, (side, side), scanned=True)
        except TileError:
            return math.nan  # embedding will meet it again, and count it
        return artefacts.blur_effect(tile)

    if len(rows) >= _MANY:
        x, y = coords[rows[0]]
        with suppress(TileError):  # the tile itself is met again below
            slide.decode_directly(float(x), float(y), *extent)
    um = np.array([scale.mpp_x, scale.mpp_y])
    centres = (coords[rows] + np.array(extent) / 2) * um
    step = max(tiling.blur_step_um, mpp * size * (1 - tiling.overlap) / 2)
    found = artefacts.measure_blur(centres, step, tiling.max_blur, measure)
    blur[rows], measured[rows] = found
    return blur, measured


def _draw(
    kept: NDArray[np.int64], limit: int | None, fingerprint: str, seed: int | None
) -> NDArray[np.int64]:
    """At most `limit` rows in their order: the same ones whatever the slide is called."""
    if limit is None or len(kept) <= limit:
        return kept
    words = hashlib.sha256(f"{seed}\0{fingerprint}".encode()).digest()
    generator = np.random.default_rng(np.frombuffer(words, np.uint32))
    return np.sort(generator.choice(kept, limit, replace=False))


def _area_shares(layers: Layers) -> dict[str, float]:
    pen = layers.pen if layers.region is None else layers.pen & layers.region
    fold = layers.fold & layers.tissue
    stained = max(1, int((layers.tissue | pen).sum()))
    return {
        "pen": round(float(pen.sum()) / stained, 4),
        "fold": round(float(fold.sum()) / stained, 4),
        "border": round(float(layers.border.mean()), 4),
    }


def _area_mm2(slide: Slide, scale: Scale) -> float:
    return slide.width_px * scale.mpp_x * slide.height_px * scale.mpp_y / 1e6
