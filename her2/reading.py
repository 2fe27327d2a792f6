"""Stage 1, embed: tiles of many slides, cut in threads ahead of the device, in order."""

import logging
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2.slide import Slide, SlideError, TileError
from her2.staging import Stage, staged
from her2.tiling import TileTable

log = logging.getLogger(__name__)

READ_GROUP = 16
"""Tiles a reader takes at a time: neighbours share OpenSlide's cache of decoded JPEG tiles."""


@dataclass
class Passage:
    """A slide on its way through the embedder: rows fill as batches come back from the device."""

    slide_id: str
    path: Path
    table: TileTable
    key: str
    features: NDArray[Any]
    readable: NDArray[np.bool_]
    waiting: int
    """Tiles that are neither encoded nor given up yet."""
    error: str | None = None
    handle: Slide | None = None
    seconds: dict[str, float] = field(default_factory=lambda: {"reading": 0.0, "encoding": 0.0})


@dataclass(frozen=True, slots=True)
class TileGroup:
    """Tiles a reader has cut: `images` uint8 (k, size, size, 3) of the rows `rows` (k,)."""

    slide: Passage
    rows: NDArray[np.int64]
    images: NDArray[np.uint8]
    failed: NDArray[np.int64]
    seconds: float


def read_groups(
    slides: list[Passage], threads: int, *, ahead: int, scratch: str | None = None
) -> Iterator[TileGroup]:
    """Cut tiles in threads; groups come in order of slides and rows, `ahead` of the consumer.

    With `scratch`, slides are copied to that folder before they are read.
    """
    tasks = (
        (slide, np.arange(start, min(start + READ_GROUP, len(slide.table))))
        for slide in slides
        for start in range(0, len(slide.table), READ_GROUP)
    )
    with (
        staged(scratch, [slide.path for slide in slides]) as stage,
        ThreadPoolExecutor(threads, thread_name_prefix="reader") as pool,
    ):
        pending: deque[Future[TileGroup]] = deque()
        try:
            for slide, rows in tasks:
                # Opened here, in order: at most a few slides are open at a time.
                _open(slide, stage)
                pending.append(pool.submit(_read_group, slide, rows))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _open(slide: Passage, stage: Stage | None) -> None:
    if slide.handle is None and slide.error is None:
        try:
            slide.handle = stage.open(slide.path) if stage else Slide(slide.path)
        except SlideError as error:
            log.warning("%s: failed: %s", slide.slide_id, error)
            slide.error = str(error)


def _read_group(slide: Passage, rows: NDArray[np.int64]) -> TileGroup:
    meta = slide.table.meta
    size = meta.tile_px
    images = np.empty((len(rows), size, size, 3), np.uint8)
    read = np.zeros(len(rows), bool)
    begin = time.perf_counter()
    for index, row in enumerate(rows):
        if slide.handle is None:
            break
        x, y = slide.table.coords[row]
        try:
            images[index] = slide.handle.region(
                float(x), float(y), meta.level0_width, meta.level0_height, (size, size)
            )
            read[index] = True
        except TileError as error:
            log.warning("%s: tile at %d, %d cannot be read: %s", slide.slide_id, x, y, error)
        except SlideError as error:  # the file went away while it was read
            slide.error = str(error)
    seconds = time.perf_counter() - begin
    return TileGroup(slide, rows[read], images[read], rows[~read], seconds)
