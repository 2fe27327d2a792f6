"""Stage 1, embed: cut the tiles of many slides with several threads, opening each slide once."""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from her2.core.crashes import reading
from her2.core.errors import SlideError, TileError, blamed_on
from her2.slides.backends import slide_files
from her2.slides.slide import Slide
from her2.slides.staging import Stager
from her2.storage.spool import RowSpool
from her2.storage.tiles import TileTable

log = logging.getLogger(__name__)

BAND_TILES = 8
"""Height in tiles of the bands in which tiles are cut, column by column. Neighbours are then read
soon after each other, so a small cache of decoded blocks serves slides of any width."""
_COLD_SHARE = 0.02
"""Share of bytes from storage above which a slide is cold (was not in the page cache)."""


@dataclass
class PendingSlide:
    """A slide in the embedder, whose rows fill as they come back from the device.

    `seconds` are summed over threads. `order` (n,) holds the rows in the order of cutting. `key` is
    that of the plain store, `seed` that of the augmented views, and `std` the encoder's.
    """

    slide_id: str
    path: Path
    table: TileTable
    key: str
    spool: RowSpool | None
    """Receives the rows of the plain store; None if the cache has it."""
    views: Mapping[int, RowSpool] = field(default_factory=dict)
    """Receive the rows of the augmented views that the cache lacks, by their numbers from 1."""
    seed: int = 0
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    before: NDArray[np.bool_] | None = None
    """Which tiles (n,) the plain store in the cache has; views have the same."""
    readable: NDArray[np.bool_] = field(init=False)
    order: NDArray[np.int64] = field(init=False)
    waiting: int = field(init=False)
    """Number of rows that are neither encoded nor given up yet, in all spools."""
    unread: int = field(init=False)
    """Number of tiles that are not cut yet."""
    stager: Stager | None = None
    """Opens the slide from a copy on a local disk."""
    error: str | None = None
    handle: Slide | None = None
    reader: str = "openslide"
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("reading", "waiting", "encoding", "writing"), 0.0)
    )
    storage_bytes: int | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        order = band_order(self.table.coords, self.table.grid.level0_height)
        self.readable = np.ones(len(self.table), bool)
        if self.before is not None:
            self.readable[:] = self.before
        self.order = order[self.readable[order]]
        self.unread = len(self.order)
        self.waiting = self.unread * len(self.spools)

    @property
    def spools(self) -> dict[int, RowSpool]:
        """Return all spools: that of the plain store as 0, and of views by their numbers."""
        return {**({} if self.spool is None else {0: self.spool}), **self.views}

    def add(self, what: str, seconds: float) -> None:
        """Add time spent on this slide, from any thread."""
        with self.lock:
            self.seconds[what] += seconds

    @property
    def cold(self) -> bool | None:
        """Whether the slide's bytes came from storage; None where the system does not tell."""
        if self.storage_bytes is None:
            return None
        try:
            size = sum(file.stat().st_size for file in slide_files(self.path))
        except (OSError, SlideError):  # the file has disappeared
            return None
        return self.storage_bytes > _COLD_SHARE * size


def band_order(coords: NDArray[np.int32], tile_height: float) -> NDArray[np.int64]:
    """Return the order in which to cut tiles, int64 (n,): bands of `BAND_TILES` rows, by column.

    `coords` (n, 2) are upper left corners, in level-0 px as `tile_height`.
    """
    x, y = coords[:, 0], coords[:, 1]
    return np.lexsort((y, x, (y // (BAND_TILES * tile_height)).astype(np.int64)))


Part = tuple[PendingSlide, NDArray[np.int64]]
"""Some rows of a slide."""


class TileQueue:
    """Thread-safe queue of the tiles of many slides.

    Slides with the most tiles come first, so that the end of a job does not wait for one of them.
    """

    def __init__(self, slides: Sequence[PendingSlide]) -> None:
        self._slides = sorted(slides, key=lambda slide: (-len(slide.table), slide.slide_id))
        self._lock = threading.Lock()
        self._next = 0  # index of the current slide
        self._row = 0  # position in its order
        self.left = sum(len(slide.order) * len(slide.spools) for slide in slides)
        """Number of patches still to encode: tiles, in each view that is needed."""

    @property
    def paths(self) -> list[Path]:
        """Files of the slides, in the order in which they are opened."""
        return [slide.path for slide in self._slides]

    def take(self, count: int, *, across: bool = True) -> list[Part]:
        """Take up to `count` tiles, none at the end; with `across` from more than one slide."""
        found: list[Part] = []
        with self._lock:
            while count and self._next < len(self._slides):
                slide = self._slides[self._next]
                rows = slide.order[self._row : self._row + count]
                if len(rows):
                    found.append((slide, rows))
                count -= len(rows)
                self._row += len(rows)
                self.left -= len(rows) * len(slide.spools)
                if self._row == len(slide.order):
                    self._next, self._row = self._next + 1, 0
                if len(rows) and not across:
                    break
        return found


@dataclass(frozen=True, slots=True)
class TileGroup:
    """Cut tiles: `images` uint8 (k, size, size, 3) of the rows `rows` (k,), as in a view."""

    slide: PendingSlide
    rows: NDArray[np.int64]
    images: NDArray[np.uint8]
    failed: NDArray[np.int64]
    view: int = 0


def read_part(slide: PendingSlide, rows: NDArray[np.int64], images: NDArray[np.uint8]) -> TileGroup:
    """Cut tiles into the front of `images` (at least len(rows), size, size, 3).

    Unreadable ones are in `failed`: all of them if the slide cannot be opened, see its `error`.
    """
    begin = time.perf_counter()
    read = np.zeros(len(rows), bool)
    with blamed_on(slide.slide_id), _failing(slide), reading(slide.slide_id):
        _open(slide)
        _cut(slide, rows, images, read)
    with slide.lock:
        slide.seconds["reading"] += time.perf_counter() - begin
        slide.unread -= len(rows)
        finished = slide.unread == 0
    if finished:
        _close(slide)
    return TileGroup(slide, rows[read], images[: np.count_nonzero(read)], rows[~read])


@contextmanager
def _failing(slide: PendingSlide) -> Iterator[None]:
    """Turn an error of the slide into its `error`, so that its other tiles are given up."""
    try:
        yield
    except (SlideError, TileError) as error:
        log.warning("%s: failed: %s", slide.slide_id, error)
        slide.error = str(error)


def _cut(
    slide: PendingSlide,
    rows: NDArray[np.int64],
    images: NDArray[np.uint8],
    read: NDArray[np.bool_],
) -> None:
    """Cut tiles of an opened slide, and set which of them (n,) were read."""
    handle, grid = slide.handle, slide.table.grid
    size = grid.level0_width, grid.level0_height, (grid.tile_px, grid.tile_px)
    count = 0
    for index, row in enumerate(rows):
        if handle is None or slide.error is not None:
            break
        x, y = slide.table.coords[row]
        try:
            images[count] = handle.region(float(x), float(y), *size, scanned=True)
            read[index], count = True, count + 1
        except TileError as error:
            log.warning("%s: tile at %d, %d cannot be read: %s", slide.slide_id, x, y, error)


def _open(slide: PendingSlide) -> None:
    """Open the slide once, in the first thread that needs it; the others wait."""
    with slide.lock:
        if slide.handle is not None or slide.error is not None:
            return
        if (before := _storage_bytes()) is not None:
            slide.storage_bytes = -before
        try:
            handle = slide.stager.open(slide.path) if slide.stager else Slide(slide.path)
            slide.handle = handle
            grid = slide.table.grid
            x, y = slide.table.coords[slide.order[0]]
            with suppress(TileError):  # read_part will fail on the same tile and count it
                handle.decode_directly(float(x), float(y), grid.level0_width, grid.level0_height)
            slide.reader = handle.reader
        except Exception as error:
            slide.error = str(error)  # before another thread tries
            raise


def _close(slide: PendingSlide) -> None:
    """Close a slide whose tiles are all cut."""
    if slide.handle is not None:
        with _failing(slide), reading(slide.slide_id):
            slide.handle.close()
    if slide.storage_bytes is not None and (now := _storage_bytes()) is not None:
        slide.storage_bytes += now


def _storage_bytes() -> int | None:
    """Return the bytes this process has read from storage, not from the page cache (Linux)."""
    try:
        with Path("/proc/self/io").open(encoding="ascii") as stream:
            return next(int(line.split()[1]) for line in stream if line.startswith("read_bytes"))
    except (OSError, StopIteration, ValueError):
        return None
