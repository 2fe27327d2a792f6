import threading
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from her2.embedding.reading import BAND_TILES, PendingSlide, TileQueue, band_order
from her2.storage.features import RowSpool
from her2.storage.tiles import TileTable
from tests.unit.tile_makers import slide_facts, tile_grid


def pending(name: str, coords: np.ndarray, side: float = 10.0) -> PendingSlide:
    facts = slide_facts(width_px=10_000, height_px=10_000)
    tiles = tile_grid(16, side)
    table = TileTable(coords.astype(np.int32), np.ones(len(coords), np.float32), facts, tiles)
    spool = RowSpool(len(coords), 2, "float16", Path())
    return PendingSlide(name, Path(name), table, name, spool)


def grid(columns: int, rows: int, side: int = 10) -> np.ndarray:
    y, x = np.mgrid[:rows, :columns] * side
    return np.stack([x.ravel(), y.ravel()], axis=1)


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), min_size=1, max_size=60))
def test_the_order_of_cutting_holds_every_tile_once(places: list[tuple[int, int]]) -> None:
    order = band_order(np.array(places, np.int32), 10.0)
    assert sorted(order) == list(range(len(places)))


def test_tiles_are_cut_in_bands_column_by_column() -> None:
    """For any width of slide, the neighbours of a tile are cut within two columns of a band."""
    coords = grid(50, 3 * BAND_TILES)
    order = band_order(coords, 10.0)
    place = np.argsort(order).reshape(3 * BAND_TILES, 50)
    assert (np.diff(place, axis=1) == BAND_TILES).all()
    inside = np.delete(np.diff(place, axis=0), [BAND_TILES - 1, 2 * BAND_TILES - 1], axis=0)
    assert (inside == 1).all()


def test_long_slides_come_first_so_that_none_trails_at_the_end() -> None:
    slides = [pending(name, grid(n, 1)) for name, n in (("a", 3), ("b", 30), ("c", 9), ("d", 9))]
    queue, seen = TileQueue(slides), []
    while parts := queue.take(5):
        seen += [slide.slide_id for slide, _ in parts]
    assert list(dict.fromkeys(seen)) == ["b", "c", "d", "a"]


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    count=st.integers(1, 50),
    across=st.booleans(),
)
def test_the_feed_hands_out_every_tile_once(sizes: list[int], count: int, across: bool) -> None:
    slides = [pending(str(i), grid(n, 1)) for i, n in enumerate(sizes)]
    queue = TileQueue(slides)
    batches = list(iter(lambda: queue.take(count, across=across), []))
    found = [(slide.slide_id, row) for parts in batches for slide, rows in parts for row in rows]
    assert sorted(found) == sorted((str(i), row) for i, n in enumerate(sizes) for row in range(n))
    assert queue.left == 0
    sums = [sum(len(rows) for _, rows in parts) for parts in batches]
    if across:
        assert set(sums[:-1]) <= {count}
    else:
        assert all(len(parts) == 1 for parts in batches)


def test_threads_share_a_feed() -> None:
    slides = [pending(str(i), grid(97, 1)) for i in range(5)]
    queue, lock = TileQueue(slides), threading.Lock()
    found: list[tuple[str, int]] = []

    def work() -> None:
        while parts := queue.take(7):
            with lock:
                found.extend((slide.slide_id, row) for slide, rows in parts for row in rows)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(set(found)) == 5 * 97
