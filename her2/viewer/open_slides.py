"""`her2 view`: the slides that are open and the squares cut of them, within limits of memory.

The latest slides stay open, and squares stay in memory up to a limit, so that memory stays flat
however many slides are looked at.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from her2.core.crashes import reading
from her2.core.errors import SlideError
from her2.core.files import digest
from her2.slides.backends import planned_files, read_header
from her2.slides.slide import Slide
from her2.viewer.zoom import OpenSlide, level_count, square_at, to_jpeg, to_webp

CACHE_BYTES = 256 << 20
"""Memory of the squares that are kept."""
OPEN_SLIDES = 8
OPEN_BYTES = 2 << 30
"""Memory of the slides that are open; a flat image is in memory whole."""
_THUMBNAIL_READ_PX = 1 << 26


class _NoCoarseLevelError(Exception):
    """A slide without a level that is small enough to be read for a thumbnail."""


@dataclass(frozen=True, slots=True)
class _Opening:
    """A slide that is open, or that a thread is opening."""

    version: str
    found: "Future[OpenSlide]" = field(default_factory=Future)


class Slides:
    """The slides that are open, the latest few, and the squares cut of them. Thread-safe.

    A slide that is no longer among the latest is closed when the last thread has read from it.
    """

    def __init__(
        self,
        *,
        cache_bytes: int = CACHE_BYTES,
        open_slides: int = OPEN_SLIDES,
        open_bytes: int = OPEN_BYTES,
    ) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[Path, float | None], _Opening] = OrderedDict()
        self._most_open, self._most_open_bytes = open_slides, open_bytes
        self._pictures: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()
        self._bytes, self._limit = 0, cache_bytes
        # Decoding is work for processors, so more threads than these only take memory.
        self._turns = threading.BoundedSemaphore(max(2, os.cpu_count() or 2))

    @property
    def held_bytes(self) -> int:
        """Return the memory of the squares that are kept."""
        return self._bytes

    @property
    def opened(self) -> list[tuple[Path, float | None]]:
        """Return path and um/px of the slides that are open, the latest last."""
        return list(self._open)

    def open(self, path: Path, mpp: float | None) -> OpenSlide:
        """Return a slide, opened now or before.

        Raises:
            SlideError: it cannot be opened, or was deleted.
        """
        version = version_of(path)
        key = path, mpp
        with self._lock:
            opening = self._open.get(key)
            mine = opening is None or opening.version != version
            if opening is None or mine:
                opening = self._open[key] = _Opening(version)
            self._open.move_to_end(key)
        if mine:  # others who ask meanwhile wait for it
            try:
                opening.found.set_result(_opened(path, mpp, version))
            except BaseException as error:
                with self._lock:
                    if self._open.get(key) is opening:
                        del self._open[key]
                opening.found.set_exception(error)
            self._close_some()
        return opening.found.result()

    def square(
        self,
        path: Path,
        mpp: float | None,
        level: int,
        column: int,
        row: int,
        *,
        version: str | None = None,
    ) -> bytes:
        """Return a square of a level: WebP without loss at full resolution, else JPEG.

        Raises:
            SlideError: the slide cannot be opened, or is no longer the `version` that is asked for.
            TileError: the file is damaged there.
            IndexError: there is no such level, column or row.
        """
        opened = self.open(path, mpp)
        if version not in (None, opened.version):
            raise SlideError("its file has changed since this page was opened; load the page again")
        square = square_at(opened.size_px, level, column, row)
        encode = to_webp if level == level_count(opened.size_px) - 1 else to_jpeg

        def cut() -> bytes:
            with self._turns, reading(str(path)):
                return encode(Image.fromarray(opened.px(square)))

        return self.kept((path, opened.version, level, column, row), cut)

    def thumbnail(self, path: Path, mpp: float | None, size_px: int) -> bytes | None:
        """Return a slide with `size_px` on its longer side, a JPEG of its coarsest fitting level.

        None for a slide without a coarse level, of which everything would have to be read.

        Raises:
            SlideError: the slide cannot be opened.
            TileError: the file is damaged.
        """
        key = (path, version_of(path), "thumbnail", size_px)

        def draw() -> bytes:
            with reading(str(path)):
                most = _read_for(path, size_px)
            if most > _THUMBNAIL_READ_PX:
                raise _NoCoarseLevelError
            with self._turns, reading(str(path)), Slide(path, mpp) as slide:
                return to_jpeg(Image.fromarray(OpenSlide("", slide).thumbnail(size_px)))

        try:
            return self.kept(key, draw)
        except _NoCoarseLevelError:
            return None

    def kept(self, key: tuple[Any, ...], make: Callable[[], bytes]) -> bytes:
        """Return bytes that were made before, or make them; the latest stay, up to the limit."""
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
                return self._pictures[key]
        found = make()
        with self._lock:
            if key not in self._pictures:
                self._pictures[key] = found
                self._bytes += len(found)
            while self._bytes > self._limit:
                self._bytes -= len(self._pictures.popitem(last=False)[1])
        return found

    def _close_some(self) -> None:
        """Let go of the slides that were not asked for lately.

        They are not closed here, since a thread may be reading them: the file is closed with the
        last reference to it.
        """
        with self._lock:
            ready = [
                (key, one.found.result().held_bytes)
                for key, one in self._open.items()
                if one.found.done() and one.found.exception() is None
            ]
            held = sum(size for _, size in ready)
            for key, size in ready[:-1]:
                if len(self._open) <= self._most_open and held <= self._most_open_bytes:
                    break
                del self._open[key]
                held -= size


def version_of(path: Path) -> str:
    """Return what tells the state of a slide's files from a later one.

    Raises:
        SlideError: a file is absent or cannot be read.
    """
    state = []
    for file in planned_files(path):
        try:
            stat = file.stat()
        except FileNotFoundError:
            raise SlideError(
                f"its file {file.name} is not there; was it moved or deleted since the run?"
            ) from None
        except OSError as error:
            raise SlideError(f"its file {file.name} cannot be read ({error.strerror})") from None
        state.append([stat.st_size, stat.st_mtime_ns])
    return digest(state)[:16]


def _read_for(path: Path, longest_px: int) -> int:
    """Return how many px a thumbnail has to read; a flat image is not decoded to tell."""
    sizes = read_header(path).level_sizes
    fitting = [size for size in sizes if max(size) >= longest_px] or [sizes[0]]
    return min(width * height for width, height in fitting)


def _opened(path: Path, mpp: float | None, version: str) -> OpenSlide:
    with reading(str(path)):
        return OpenSlide(version, Slide(path, mpp))
