"""`her2 view`: slides at every magnification, as square JPEGs that a page asks for.

OpenSlide's Deep Zoom generator divides them, for every format that a run reads. Slides stay open
while they are looked at, and the JPEGs in memory up to a limit, so that memory stays flat however
many slides are looked at.
"""

import io
import itertools
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openslide
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image

from her2.core.crashes import reading
from her2.core.errors import SlideError
from her2.slides.slide import Slide

TILE_PX = 256
_QUALITY = 90
_OPEN_SLIDES = 8
CACHE_BYTES = 256 << 20
"""Memory of the JPEGs that are kept."""


class _Reader(openslide.AbstractSlide):
    """A slide of any backend, as the Deep Zoom generator wants one."""

    def __init__(self, slide: Slide) -> None:
        super().__init__()
        self.slide = slide

    @classmethod
    def detect_format(cls, filename: Path | str) -> str | None:  # type: ignore[override]
        return None

    def close(self) -> None:
        self.slide.close()

    @property
    def level_count(self) -> int:
        return len(self.slide.downsamples)

    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        return self.slide.level_sizes

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        return self.slide.downsamples

    @property
    def properties(self) -> Mapping[str, str]:
        return {}

    @property
    def associated_images(self) -> Mapping[str, Image.Image]:
        return {}

    def get_best_level_for_downsample(self, downsample: float) -> int:
        return self.slide.level_for(downsample)

    def read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> Image.Image:
        return self.slide.level_px(location, level, size).convert("RGBA")


@dataclass(frozen=True, slots=True)
class OpenSlide:
    """A slide that is open, and its Deep Zoom levels; level 0 is one px, the last full resolution.

    `number` tells it from what was opened before, also under the same path.
    """

    number: int
    slide: Slide
    zoom: DeepZoomGenerator


class Slides:
    """The slides that are open, the latest few, and the JPEGs cut of them. Thread-safe."""

    def __init__(self, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._open: OrderedDict[Path, tuple[tuple[int, int], OpenSlide]] = OrderedDict()
        self._jpegs: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()
        self._bytes, self._limit = 0, cache_bytes

    def open(self, path: Path, mpp: float | None) -> OpenSlide:
        """Return a slide, opened now or before.

        Raises:
            SlideError: it cannot be opened, or was deleted.
        """
        try:
            stat = path.stat()
        except OSError as error:
            raise SlideError(f"its file {path.name} cannot be read ({error.strerror})") from None
        state = stat.st_size, stat.st_mtime_ns
        with self._lock:
            if path in self._open and self._open[path][0] == state:
                self._open.move_to_end(path)
                return self._open[path][1]
        with reading(str(path)):
            slide = Slide(path, mpp)
            zoom = DeepZoomGenerator(_Reader(slide), TILE_PX, overlap=0)
            found = OpenSlide(next(self._numbers), slide, zoom)
        with self._lock:
            self._open[path] = state, found
            while len(self._open) > _OPEN_SLIDES:
                # Not closed: another thread may be reading it. Its handle goes with the last use.
                self._open.popitem(last=False)
        return found

    def jpeg(self, path: Path, mpp: float | None, level: int, column: int, row: int) -> bytes:
        """Return a square of a Deep Zoom level as JPEG.

        Raises:
            SlideError: the slide cannot be opened.
            TileError: the file is damaged there.
            IndexError: there is no such level, column or row.
        """
        opened = self.open(path, mpp)
        key = (opened.number, level, column, row)
        with self._lock:
            if key in self._jpegs:
                self._jpegs.move_to_end(key)
                return self._jpegs[key]
        if not 0 <= level < opened.zoom.level_count:
            raise IndexError(f"level {level}")
        columns, rows = opened.zoom.level_tiles[level]
        if not (0 <= column < columns and 0 <= row < rows):
            raise IndexError(f"column {column}, row {row}")
        with reading(str(path)):
            found = to_jpeg(opened.zoom.get_tile(level, (column, row)))
        self._keep(key, found)
        return found

    def _keep(self, key: tuple[Any, ...], found: bytes) -> None:
        with self._lock:
            if key not in self._jpegs:
                self._jpegs[key] = found
                self._bytes += len(found)
            while self._bytes > self._limit:
                self._bytes -= len(self._jpegs.popitem(last=False)[1])


def to_jpeg(image: Image.Image, quality: int = _QUALITY) -> bytes:
    """Return an RGB image as JPEG without subsampled colours."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()
