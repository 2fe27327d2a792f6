"""`her2 view`: tiles as a picture of one px per cell, which a browser enlarges without smoothing.

Tiles on a regular grid have a cell each: a column's cell is as wide as the distance between two
columns, and lies in the middle of the tile. So tiles that overlap show their middles, and gaps
between tiles are filled. Tiles off a regular grid, as other programs place them along each piece of
tissue, are painted on cells of a quarter of a tile, at most an eighth of a tile off; of tiles on
top of each other, the last shows.
"""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from her2.core.types import RGB

LEVELS = 255
"""Colours of a picture; one more stands for no tile."""
_LEAST_SHARE = 0.09
"""Tiles overlap by less than 0.9; columns that are closer than this share of a tile are no grid."""
_OFF_PX = 1.0
"""Starts of tiles are rounded to whole px."""
_DIGITS = 6
"""Decimals of level-0 px, so that a grid of whole px is exactly that."""
_PARTS = 4
_MOST_CELLS, _MOST_SIDE = 1 << 22, 1 << 11


@dataclass(frozen=True, slots=True)
class Cells:
    """Which tile is in each cell: `index` int32 (rows, columns), -1 for none.

    `bounds_px` are left, top, right and bottom of all cells together in level-0 px, and `regular`
    is whether each tile has a cell of its own.
    """

    index: NDArray[np.int32]
    bounds_px: tuple[float, float, float, float]
    regular: bool


@dataclass(frozen=True, slots=True)
class _Axis:
    """The tiles (n) along one axis: the number of each one's cell, the first start, the stride."""

    cell: NDArray[np.int64]
    first: float
    stride: float

    @property
    def count(self) -> int:
        return int(self.cell.max()) + 1


def cells_of(coords: NDArray[np.int32], tile: tuple[float, float]) -> Cells:
    """Return the cells of tiles (n >= 1) by their top left corners (n, 2) and size, level-0 px."""
    x, y = _axis(coords[:, 0], tile[0]), _axis(coords[:, 1], tile[1])
    if x is None or y is None or x.count * y.count > _MOST_CELLS:
        return _irregular(coords, tile)
    index = np.full((y.count, x.count), -1, np.int32)
    index[y.cell, x.cell] = np.arange(len(coords), dtype=np.int32)
    if np.count_nonzero(index >= 0) < len(coords):
        return _irregular(coords, tile)
    left, top = (a.first + (side - a.stride) / 2 for a, side in zip((x, y), tile, strict=True))
    right, bottom = left + x.count * x.stride, top + y.count * y.stride
    return Cells(index, (left, top, round(right, _DIGITS), round(bottom, _DIGITS)), True)


def _axis(starts: NDArray[np.int32], tile: float) -> _Axis | None:
    """Return the cells along an axis, None where the starts (n,) are on no regular grid."""
    unique, which = np.unique(starts, return_inverse=True)
    if len(unique) == 1:
        return _Axis(np.zeros(len(starts), np.int64), float(unique[0]), tile)
    steps = np.rint((unique - unique[0]) / tile)
    if _fits(unique, steps, float(unique[0]), tile):  # side by side, however few of them are there
        return _Axis(steps.astype(np.int64)[which], float(unique[0]), tile)
    gaps = np.diff(unique).astype(float)
    if gaps.min() < _LEAST_SHARE * tile:
        return None
    stride = float(gaps[gaps < 1.5 * gaps.min()].mean())
    steps = np.concatenate([[0], np.cumsum(np.rint(gaps / stride))])
    stride, first = (round(float(value), _DIGITS) for value in np.polyfit(steps, unique, 1))
    if not _fits(unique, steps, first, stride):
        return None
    return _Axis(steps.astype(np.int64)[which], first, stride)


def _fits(
    starts: NDArray[np.int32], steps: NDArray[np.float64], first: float, stride: float
) -> bool:
    """Return whether starts are those of a grid, each with a step of its own."""
    off = np.abs(first + steps * stride - starts).max()
    return bool(off <= _OFF_PX and (np.diff(steps) > 0).all())


def _irregular(coords: NDArray[np.int32], tile: tuple[float, float]) -> Cells:
    origin = coords.min(axis=0).astype(float)
    extent = coords.max(axis=0) + np.array(tile) - origin
    # Larger cells where the picture would be too large, as that of a hostile file.
    side = np.maximum(np.array(tile) / _PARTS, extent / _MOST_SIDE)
    along, down = np.maximum(1, np.rint(np.array(tile) / side)).astype(int).tolist()
    corner = np.rint((coords - origin) / side).astype(np.int64)
    columns, rows = (corner.max(axis=0) + np.array([along, down])).tolist()
    index = np.full((rows, columns), -1, np.int32)
    number = np.arange(len(coords), dtype=np.int32)
    for y in range(down):
        for x in range(along):
            index[corner[:, 1] + y, corner[:, 0] + x] = number
    right, bottom = origin + np.array([columns, rows]) * side
    bounds = (float(origin[0]), float(origin[1]), float(right), float(bottom))
    return Cells(index, bounds, False)


def to_png(cells: Cells, levels: NDArray[np.uint8], colours: RGB) -> bytes:
    """Return a picture of the cells as PNG, transparent where there is no tile.

    Args:
        cells: which tile is where.
        levels: the colour of each tile (n,), below 255; 255 for tiles that are not shown.
        colours: (at most 255, 3).
    """
    table = np.append(levels, np.uint8(LEVELS))  # the index -1 is its last
    image = Image.fromarray(table[cells.index], "P")
    palette = np.zeros((LEVELS + 1, 3), np.uint8)  # with fewer colours, none is transparent
    palette[: len(colours)] = colours
    image.putpalette(palette.tobytes(), "RGB")
    stream = io.BytesIO()
    image.save(stream, "PNG", transparency=LEVELS, compress_level=1)
    return stream.getvalue()


def levels_of(shares: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return the colours of values (n,) from 0 to 1; others are those of 0 or 1."""
    return np.rint(np.clip(shares, 0, 1) * (LEVELS - 1)).astype(np.uint8)
