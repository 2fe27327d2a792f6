"""Tiles as pictures: every tile is where its cell is, whatever the grid."""

import io

import numpy as np
import pytest
from PIL import Image

from her2.tiling.grid import grid_axis
from her2.viewer.overlay.raster import LEVELS, Cells, cells_of, levels_of, to_png

SIDES = [(128.0, 0.0), (223.7, 0.0), (223.7, 0.3), (96.5, 0.5), (100.0, 0.89)]
"""Side of a tile in level-0 px, and overlap."""


def grid(tile: float, overlap: float, length_px: int = 6000) -> np.ndarray:
    """All corners of a grid, by rows."""
    starts = grid_axis(length_px, tile, overlap)
    return np.stack([np.tile(starts, len(starts)), np.repeat(starts, len(starts))], axis=1)


def middles(cells: Cells, count: int) -> np.ndarray:
    """The middle of each tile's cell in level-0 px, (n, 2)."""
    left, top, right, bottom = cells.bounds_px
    rows, columns = cells.index.shape
    found = np.full((count, 2), np.nan)
    y, x = np.nonzero(cells.index >= 0)
    found[cells.index[y, x], 0] = left + (x + 0.5) * (right - left) / columns
    found[cells.index[y, x], 1] = top + (y + 0.5) * (bottom - top) / rows
    return found


@pytest.mark.parametrize(("tile", "overlap"), SIDES)
@pytest.mark.parametrize("share", [1.0, 0.4, 0.02])
def test_a_cell_is_in_the_middle_of_its_tile_to_the_px(
    tile: float, overlap: float, share: float
) -> None:
    coords = grid(tile, overlap)
    rows = np.sort(
        np.random.default_rng(1).permutation(len(coords))[: int(share * len(coords)) + 2]
    )
    cells = cells_of(coords[rows], (tile, tile))
    assert cells.regular
    # Starts are rounded down to whole px, and a grid of them has no better line than that.
    assert np.abs(middles(cells, len(rows)) - (coords[rows] + tile / 2)).max() <= 1.0


@pytest.mark.parametrize(("tile", "overlap"), [(128.0, 0.0), (128.0, 0.5)])
def test_on_a_grid_of_whole_px_cells_are_exactly_the_strides(tile: float, overlap: float) -> None:
    coords = grid(tile, overlap, 1300)
    cells = cells_of(coords, (tile, tile))
    stride, spare = tile * (1 - overlap), tile * overlap / 2
    columns = len(np.unique(coords[:, 0]))
    assert cells.bounds_px == (spare, spare, spare + columns * stride, spare + columns * stride)
    assert cells.index.tolist() == np.arange(len(coords)).reshape(columns, columns).tolist()


def test_gaps_between_tiles_are_filled() -> None:
    coords = grid(200.0, 0.0, 1300)
    cells = cells_of(coords, (150.0, 150.0))
    assert cells.bounds_px == (-25.0, -25.0, 1175.0, 1175.0)
    assert cells.regular


def test_one_tile_is_a_picture_of_one_px() -> None:
    cells = cells_of(np.array([[512, 96]], np.int32), (64.0, 48.0))
    assert (cells.index.tolist(), cells.bounds_px) == ([[0]], (512.0, 96.0, 576.0, 144.0))


def test_tiles_off_a_grid_are_an_eighth_of_a_tile_off_at_most() -> None:
    generator = np.random.default_rng(2)
    pieces = [grid(100.0, 0.0, 500) + generator.integers(0, 99, 2) + at for at in (0, 2000, 4000)]
    coords = np.concatenate(pieces).astype(np.int32)
    cells = cells_of(coords, (100.0, 100.0))
    assert not cells.regular
    left, top, right, _ = cells.bounds_px
    width = (right - left) / cells.index.shape[1]
    assert width == 25.0
    for number, (x, y) in enumerate(coords.tolist()):
        rows, columns = np.nonzero(cells.index == number)
        assert abs(left + columns.min() * width - x) <= 12.5
        assert abs(top + rows.min() * width - y) <= 12.5
        assert (len(set(rows)), len(set(columns))) == (4, 4)


def test_of_tiles_on_top_of_each_other_the_last_shows() -> None:
    cells = cells_of(np.array([[0, 0], [0, 0], [100, 0]], np.int32), (100.0, 100.0))
    assert not cells.regular
    assert set(cells.index.ravel()) == {1, 2}


def test_a_sparse_far_flung_grid_stays_small() -> None:
    coords = np.array([[0, 0], [7, 3], [900_000, 900_000]], np.int32)
    cells = cells_of(coords, (30.0, 30.0))
    assert max(cells.index.shape) <= 1 << 13
    assert 2 in cells.index


@pytest.mark.parametrize("count", [1, 3, LEVELS])
def test_a_picture_has_each_tiles_colour_and_is_transparent_elsewhere(count: int) -> None:
    coords = np.array([[0, 0], [64, 0], [64, 128]], np.int32)
    colours = np.random.default_rng(0).integers(0, 255, (count, 3)).astype(np.uint8)
    levels = np.array([0, count - 1, LEVELS], np.uint8)
    image = Image.open(io.BytesIO(to_png(cells_of(coords, (64.0, 64.0)), levels, colours)))
    px = np.asarray(image.convert("RGBA"))
    assert px.shape == (3, 2, 4)
    assert px[0, 0].tolist() == [*colours[0].tolist(), 255]
    assert px[0, 1].tolist() == [*colours[count - 1].tolist(), 255]
    # No tile, and a tile that is not shown.
    assert {int(px[1, 0, 3]), int(px[1, 1, 3]), int(px[2, 0, 3]), int(px[2, 1, 3])} == {0}


def test_shares_beyond_the_ends_have_the_colour_of_the_end() -> None:
    assert levels_of(np.array([-1.0, 0.0, 0.5, 1.0, 7.0])).tolist() == [0, 0, 127, 254, 254]
