"""Stage 1, tile: running the artefact filters of `her2.filters`, and a network, on a slide."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from her2.config import TilingSection
from her2.core.errors import TileError
from her2.core.masks import share_inside
from her2.core.types import NOTHING, RGB, Mask
from her2.filters.base import AreaFilter, Filter, Measured, Thumbnail, TileFilter, Tiles, Where
from her2.filters.registry import AREA_FILTERS, FILTERS, TILE_FILTERS
from her2.segmenters import class_filters
from her2.slides.slide import Scale, Slide
from her2.storage.facts import TileGrid

if TYPE_CHECKING:
    from her2.tiling.segmentation import SegmenterNetwork

_MANY = 100
"""From this number of tiles, it is worth checking if they can be decoded without OpenSlide."""
KEPT = -1
"""Verdict on a tile that no filter rejects."""


def find_areas(where: Where, thumbnail: Thumbnail, tiling: TilingSection) -> dict[str, Mask]:
    """Run the area filters of one kind, and return filter -> mask (h, w)."""
    found = (one for one in AREA_FILTERS if one.where is where)
    return {one.name: one.find(thumbnail, one.chosen(tiling)) for one in found}


def area_shares(masks: Mapping[str, Mask], tissue: Mask, region: Mask | None) -> dict[str, float]:
    """Return the share of each area filter's artefact, as `her2.filters.base.Where` defines it."""
    inside = {one.name: masks[one.name] for one in AREA_FILTERS}
    for one in AREA_FILTERS:
        if one.where is Where.OVER and region is not None:
            inside[one.name] = inside[one.name] & region
        elif one.where is Where.WITHIN:
            inside[one.name] = inside[one.name] & tissue
    covers = [inside[one.name] for one in AREA_FILTERS if one.where is Where.OVER]
    stained_px = max(1, int(union(covers, tissue).sum()))
    return {
        one.name: round(
            float(inside[one.name].mean())
            if one.where is Where.OUTSIDE
            else float(inside[one.name].sum()) / stained_px,
            4,
        )
        for one in AREA_FILTERS
    }


def union(masks: Iterable[Mask], start: Mask) -> Mask:
    """Return the union of `start` and the masks."""
    return reduce(np.logical_or, masks, start)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The filters' judgement of n tiles.

    `filters` are all that were asked, in that order, and `verdict` is the index of the one that
    rejected a tile, or `KEPT`. `values` has an array per filter, `read` one per filter that reads
    tiles, see `her2.filters.base.Measured`. `masks` has the mask (h, w) of each artefact that a
    network told apart, and `shares` how much of the tiles that it saw is that artefact.
    """

    filters: tuple[Filter, ...]
    verdict: NDArray[np.int64]
    values: dict[str, NDArray[np.float32]]
    read: dict[str, NDArray[np.bool_]]
    masks: dict[str, Mask] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)

    @property
    def kept(self) -> NDArray[np.int64]:
        """Return the rows of the tiles that no filter rejected."""
        return np.flatnonzero(self.verdict == KEPT)

    @property
    def rejected(self) -> dict[str, int]:
        """Return the number of tiles each filter rejected, in the order in which filters run."""
        return {one.name: int((self.verdict == i).sum()) for i, one in enumerate(self.filters)}

    def reject(self, one: Filter, tiling: TilingSection) -> None:
        """Reject the tiles that no earlier filter did and whose value is above the limit."""
        above = self.values[one.name] > one.limit_in(tiling)
        self.verdict[(self.verdict == KEPT) & above] = self.filters.index(one)


def judge(
    slide: Slide,
    scale: Scale,
    grid: TileGrid,
    coords: NDArray[np.int32],
    boxes: NDArray[np.float64],
    masks: Mapping[str, Mask],
    tiling: TilingSection,
    network: "SegmenterNetwork | None" = None,
) -> Judgement:
    """Run every filter on tiles; one that reads tiles, and a network, get those not yet rejected.

    `coords` (n, 2) are top left corners in level-0 px, `boxes` (n, 4) left, top, right, bottom in
    px of the area filters' `masks`. `network` is that of `tiling.artefact_segmenter`.
    """
    learned = class_filters(tiling)
    assert (network is None) == (not learned), "tiling.artefact_segmenter without its network"
    made = Judgement((*FILTERS, *learned), np.full(len(coords), KEPT), {}, {})
    active = [one for one in TILE_FILTERS if one.limit_in(tiling) < 1]
    for one in FILTERS:
        if isinstance(one, AreaFilter):
            values = share_inside(masks[one.name], boxes)
        elif isinstance(one, TileFilter):
            rows = made.kept if one in active else made.kept[:0]
            if one in active[:1] and len(rows) >= _MANY:
                x, y = coords[rows[0]]
                with suppress(TileError):  # the filter reads the tile again
                    slide.decode_directly(float(x), float(y), grid.level0_width, grid.level0_height)
            values, made.read[one.name] = _measure(one, slide, scale, grid, coords, rows, tiling)
        made.values[one.name] = values
        made.reject(one, tiling)
    if network is not None:
        shape = next(iter(masks.values())).shape
        _judge_by_network(made, network, slide, scale, boxes, (shape[0], shape[1]), tiling)
    return made


def _judge_by_network(
    made: Judgement,
    network: "SegmenterNetwork",
    slide: Slide,
    scale: Scale,
    boxes: NDArray[np.float64],
    shape: tuple[int, int],
    tiling: TilingSection,
) -> None:
    """Add what a network finds on the tiles that are kept so far; boxes are in px of `shape`."""
    seen = _covered(boxes[made.kept], shape)
    labels = network.find(slide, scale, shape, seen)
    for label, name in enumerate(network.finds, start=NOTHING + 1):
        made.masks[name] = labels == label
        made.values[name] = share_inside(made.masks[name], boxes)
        found_px = int((made.masks[name] & seen).sum())
        made.shares[name] = round(found_px / max(1, int(seen.sum())), 4)
    for one in class_filters(tiling):
        made.reject(one, tiling)


def _covered(boxes: NDArray[np.float64], shape: tuple[int, int]) -> Mask:
    """Return the px (h, w) that boxes (n, 4) touch."""
    result = np.zeros(shape, bool)
    begin, end = np.floor(boxes[:, :2]).astype(int), np.ceil(boxes[:, 2:]).astype(int)
    for (left, top), (right, bottom) in zip(begin, end, strict=True):
        result[top:bottom, left:right] = True
    return result


def _measure(
    one: TileFilter,
    slide: Slide,
    scale: Scale,
    grid: TileGrid,
    coords: NDArray[np.int32],
    rows: NDArray[np.int64],
    tiling: TilingSection,
) -> Measured:
    """Measure some rows of the tiles; the others stay NaN."""
    values = np.full(len(coords), np.nan, np.float32)
    read = np.zeros(len(coords), bool)
    if not len(rows):
        return Measured(values, read)
    extent = (grid.level0_width, grid.level0_height)

    def tile(number: int, side_px: int) -> RGB:
        x, y = coords[rows[number]]
        return slide.region(float(x), float(y), *extent, (side_px, side_px), scanned=True)

    tiles = Tiles(
        centres_um=(coords[rows] + np.array(extent) / 2) * np.array([scale.mpp_x, scale.mpp_y]),
        mpp=grid.target_mpp,
        size_px=grid.tile_px,
        spacing_um=grid.target_mpp * grid.tile_px * (1 - tiling.overlap),
        read=tile,
    )
    values[rows], read[rows] = one.measure(tiles, one.chosen(tiling))
    return Measured(values, read)
