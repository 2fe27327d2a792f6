"""`her2 view`: the two searches for similar tiles: of a sample in memory, and of all stores.

The sample is a fixed draw from each slide's tiles, as many as fit into the memory, in float16: the
features as they are stored, or unit vectors where they are stored in more digits. All tiles are
read from the stores, a block of rows at a time, so that memory stays flat.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2.core.errors import UserError, first_line
from her2.core.hardware import allowed_cpus
from her2.viewer.similar.search import (
    MOST,
    PER_PATIENT,
    SPARE,
    Found,
    Query,
    Searched,
    best_of,
    choose,
    cosines,
    open_checked,
    scaled,
    settle,
)
from her2.viewer.similar.stores import EmbeddedSlide

SAMPLE_BYTES = 512 << 20
"""Memory of the samples of all encoders together."""
SEED = 1
ABANDONED_SECONDS = 180.0
"""A search that no page has asked about for so long is ended; hidden pages ask once a minute."""

_ROW_BYTES = 8
"""Of a sampled tile, beside its features: which slide and tile it is."""
_MOST_WORKERS = 8
_NICE = 10
_SAMPLE_BLOCK = 1024
_NONE: NDArray[Any] = np.empty(0, np.int32)


def rows_per_slide(tiles: Sequence[int], dimension: int, limit_bytes: int) -> int:
    """Return how many tiles of each slide fit into the memory; 0 if not even one does."""
    most = limit_bytes // (2 * dimension + _ROW_BYTES)
    sizes = np.asarray(tiles, np.int64)
    low, high = 0, int(sizes.max(initial=0))
    while low < high:  # the largest m with sum(min(m, n)) <= most
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= most else (low, middle - 1)
    return low


def draw(slide: EmbeddedSlide, tiles: int, count: int, *, seed: int = SEED) -> NDArray[np.int64]:
    """Draw `count` of the tiles of a slide, sorted; the same ones each time."""
    if tiles <= count:
        return np.arange(tiles)
    words = hashlib.sha256(f"{seed}\0{slide.cohort}\0{slide.slide_id}".encode()).digest()
    generator = np.random.default_rng(np.frombuffer(words, np.uint32))
    return np.sort(generator.choice(tiles, count, replace=False))


def _as_float16(rows: NDArray[Any]) -> NDArray[np.float16]:
    """Return rows of the same directions; float32 ones could be too large or too small."""
    if rows.dtype == np.float16:
        return rows
    values = scaled(rows)
    lengths = np.sqrt(np.einsum("ij,ij->i", values, values))
    return (values / lengths[:, None]).astype(np.float16)


class Sample:
    """The sampled tiles of all slides by one encoder: features as float16, which slide, which row.

    Args:
        slides: the slides with features by the encoder.
        dimension: number of features d.
        limit_bytes: memory that the sample may take.
    """

    def __init__(self, slides: Sequence[EmbeddedSlide], dimension: int, limit_bytes: int) -> None:
        self.slides, self.dimension = slides, dimension
        count = rows_per_slide([one.tiles for one in slides], dimension, limit_bytes)
        self.per_slide = max(1, count)
        chosen = list(range(len(slides)))
        if not count:  # one tile each of some slides
            most = limit_bytes // (2 * dimension + _ROW_BYTES)
            chosen = sorted(
                np.random.default_rng(SEED).choice(len(slides), most, replace=False).tolist()
            )
        planned = np.array([min(slides[i].tiles, self.per_slide) for i in chosen], np.int64)
        self._first = dict(zip(chosen, (np.cumsum(planned) - planned).tolist(), strict=True))
        self._planned = dict(zip(chosen, planned.tolist(), strict=True))
        total = int(planned.sum())
        self.rows = np.zeros((total, dimension), np.float16)
        self.slide = np.full(total, -1, np.int32)
        self.tile = np.zeros(total, np.int32)
        self.skipped: dict[int, str] = {}
        self.undefined = 0
        self.done = 0
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Return the memory that it takes."""
        return self.rows.nbytes + self.slide.nbytes + self.tile.nbytes

    @property
    def number(self) -> int:
        """Return the number of slides that are read for it."""
        return len(self._first)

    @property
    def whole(self) -> bool:
        """Return whether it has all tiles of all slides."""
        whole = sum(one.tiles for one in self.slides)
        return self.number == len(self.slides) and len(self.rows) == whole

    def build(self, cancelled: threading.Event) -> None:
        """Read the sample, unless cancelled; a slide that cannot be read is skipped."""
        in_parallel(self._first, self._read, cancelled)

    def _read(self, number: int) -> None:
        try:
            store = open_checked(self.slides[number], self.dimension)
            drawn = draw(self.slides[number], len(store), self._planned[number])
            values = store.gather(drawn)
        except (OSError, UserError) as error:
            with self._lock:
                self.skipped[number] = first_line(error)
                self.done += 1
            return
        kept = np.flatnonzero(~np.isnan(cosines(values, np.ones(self.dimension, np.float32))))
        part = slice(self._first[number], self._first[number] + len(kept))
        self.rows[part] = _as_float16(values[kept])
        self.tile[part] = drawn[kept]
        self.slide[part] = number
        with self._lock:
            self.undefined += len(drawn) - len(kept)
            self.done += 1

    def search(self, query: Query) -> Found:
        """Return the most similar tiles of the sample, with the cosines of the stored features."""
        similarity = np.empty(len(self.rows), np.float32)

        def block(start: int) -> None:
            part = slice(start, start + _SAMPLE_BLOCK)
            similarity[part] = cosines(self.rows[part], query.features)

        starts = range(0, len(self.rows), _SAMPLE_BLOCK)
        with ThreadPoolExecutor(workers()) as pool:
            list(pool.map(block, starts))
        there = self.slide >= 0
        searched = Searched(
            slides=len(np.unique(self.slide[there])),
            patients=len({self.slides[i].patient_id for i in np.unique(self.slide[there])}),
            tiles=int(there.sum()),
            whole=self.whole,
            undefined=self.undefined,
            skipped=dict(self.skipped),
        )
        rough = choose(self.slides, query, self.slide[there], self.tile[there], similarity[there])
        return settle(self.slides, query, rough, searched)


class Search:
    """A search of all tiles in the stores, in the threads that call `run`.

    Args:
        slides: the slides with features by the encoder.
        query: the tile.
    """

    def __init__(self, slides: Sequence[EmbeddedSlide], query: Query) -> None:
        self.slides, self.query = slides, query
        self.cancelled = threading.Event()
        self.asked_at = time.monotonic()
        self.done = self.tiles = self.undefined = 0
        self.skipped: dict[int, str] = {}
        self._best: list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]] = []
        self._searched: list[int] = []
        self._lock = threading.Lock()

    def run(self) -> Found | None:
        """Search, and return what was found; None if it was cancelled."""
        in_parallel(range(len(self.slides)), self._read, self.cancelled)
        if self.cancelled.is_set():
            return None
        parts = [np.concatenate(one) for one in zip(*self._best, strict=True)] or [_NONE] * 3
        rough = choose(self.slides, self.query, *parts)
        searched = Searched(
            slides=len(self._searched),
            patients=len({self.slides[i].patient_id for i in self._searched}),
            tiles=self.tiles,
            undefined=self.undefined,
            skipped=self.skipped,
        )
        return settle(self.slides, self.query, rough, searched)

    def _read(self, number: int) -> None:
        if time.monotonic() - self.asked_at > ABANDONED_SECONDS:
            self.cancelled.set()
            return
        asked = self.slides[self.query.slide]
        own = self.slides[number].patient_id == asked.patient_id
        most = SPARE * (MOST + 1 if own else PER_PATIENT)
        try:
            store = open_checked(self.slides[number], len(self.query.features))
            best = best_of(store, self.query.features, most, self.cancelled)
        except (OSError, UserError) as error:
            with self._lock:
                self.skipped[number] = first_line(error)
                self.done += 1
            return
        rows, values, undefined = best
        slide = np.full(len(rows), number, np.int32)
        with self._lock:
            self._best.append((slide, rows.astype(np.int32), values))
            self._searched.append(number)
            self.tiles += len(store) - undefined
            self.undefined += undefined
            self.done += 1


def workers() -> int:
    """Return the number of threads of a search."""
    return min(_MOST_WORKERS, allowed_cpus())


def in_parallel(
    numbers: Iterable[int], work: Callable[[int], None], cancelled: threading.Event
) -> None:
    """Work on numbers in several threads, and wait for them; they stop when it is cancelled.

    The threads yield to those that answer the page, and never keep the program from ending.

    Raises:
        Exception: what the work raised first.
    """
    waiting, lock = iter(numbers), threading.Lock()
    problems: list[Exception] = []

    def loop() -> None:
        with suppress(OSError, AttributeError):  # only Linux knows priorities of threads
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while not cancelled.is_set() and not problems:
            with lock:
                number = next(waiting, None)
            if number is None:
                return
            try:
                work(number)
            except Exception as error:
                problems.append(error)

    threads = [threading.Thread(target=loop, daemon=True) for _ in range(workers())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
