"""`her2 view`: slides at every magnification, in squares that a page asks for.

Level 0 of the zoom is the coarsest, one square; each further one has twice the px, and the last is
full resolution. A square is the part of the slide that it says it is, to a fraction of a px, and is
read as tiles are (`her2.slides.slide.Slide.region`), whatever levels the file has. Squares of full
resolution lose nothing. `her2.viewer.open_slides` keeps slides open and squares in memory.
"""

import io
import itertools
import math
import threading
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from her2.core.errors import TileError
from her2.core.types import RGB
from her2.slides.backends.flat import FlatImage
from her2.slides.slide import RESAMPLING, Slide

TILE_PX = 256
OVERLAP_PX = 2
"""At least one px of the screen, as a page reduces squares by less than half."""
FULL, REDUCED = "webp", "jpg"
"""Endings of squares: of full resolution, without loss, and of the other levels."""
_OPENSLIDE_BYTES = 32 << 20
"""What OpenSlide keeps of each slide."""
_QUALITY = 90
_READ_PX = 2048
"""Px per side that are read of a file at once."""
_OVERVIEW_PX = 4096
_COARSEST_READ = 8


@dataclass(frozen=True, slots=True)
class Square:
    """A part of a slide, left, top, width and height in level-0 px, and its (width, height) in px.

    It has `OVERLAP_PX` of its right and lower neighbours, so that no seam shows between squares
    that a page scales. At the right and lower border it ends where the slide ends, so its last px
    may be narrower than the others.
    """

    left: int
    top: int
    width: int
    height: int
    out: tuple[int, int]


def level_count(size_px: tuple[int, int]) -> int:
    """Return how many levels a slide has, of which the first fits into one square."""
    return 1 + max(0, math.ceil(math.log2(max(size_px) / TILE_PX)))


def square_at(size_px: tuple[int, int], level: int, column: int, row: int) -> Square:
    """Return a square of a level.

    Raises:
        IndexError: there is no such level, column or row.
    """
    levels = level_count(size_px)
    if not 0 <= level < levels:
        raise IndexError(f"level {level}")
    step = 1 << (levels - 1 - level)
    side = TILE_PX * step
    for name, at, whole in (("column", column, size_px[0]), ("row", row, size_px[1])):
        if not 0 <= at * side < whole:
            raise IndexError(f"{name} {at} on level {level}")
    left, top = column * side, row * side
    longest = side + OVERLAP_PX * step
    width, height = min(longest, size_px[0] - left), min(longest, size_px[1] - top)
    return Square(left, top, width, height, (math.ceil(width / step), math.ceil(height / step)))


@dataclass(frozen=True, slots=True)
class OpenSlide:
    """A slide that is open; `version` tells it from another file under the same path."""

    version: str
    slide: Slide
    _overview: list[Image.Image] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def size_px(self) -> tuple[int, int]:
        """Return width and height of full resolution."""
        return self.slide.width_px, self.slide.height_px

    @property
    def held_bytes(self) -> int:
        """Return about how much memory it takes while it is open."""
        width, height = self.size_px
        own = 4 * width * height if self.slide.vendor == FlatImage.vendor else _OPENSLIDE_BYTES
        return own + sum(3 * one.width * one.height for one in self._overview)

    def px(self, square: Square) -> RGB:
        """Return the px of a square, uint8 (h, w, 3), white where nothing was scanned.

        Raises:
            TileError: the file is damaged there.
        """
        step = square.width / square.out[0], square.height / square.out[1]
        if self._reduction(min(step)) > _COARSEST_READ and max(self.size_px) > 2 * _OVERVIEW_PX:
            overview = self._reduced()
            scale = overview.width / self.size_px[0], overview.height / self.size_px[1]
            if scale[0] * step[0] >= 1 and scale[1] * step[1] >= 1:
                box = (
                    square.left * scale[0],
                    square.top * scale[1],
                    min(overview.width, (square.left + square.width) * scale[0]),
                    min(overview.height, (square.top + square.height) * scale[1]),
                )
                return np.asarray(overview.resize(square.out, RESAMPLING, box=box))
        return self._in_parts(square)

    def _reduction(self, downsample: float) -> float:
        return downsample / self.slide.downsamples[self.slide.level_for(downsample)]

    def _in_parts(self, square: Square) -> RGB:
        """Read a square in parts, so that the memory for it does not grow with what is reduced.

        Of several parts, those that are damaged are hatched: one of them is no reason to show none.
        """
        (width, height), step_x = square.out, square.width / square.out[0]
        step_y = square.height / square.out[1]
        side = max(16, int(_READ_PX / max(1.0, self._reduction(min(step_x, step_y)))))
        if side >= max(width, height):
            region = square.left, square.top, square.width, square.height
            return self.slide.region(*region, square.out)
        result, errors = np.empty((height, width, 3), np.uint8), []
        parts = list(itertools.product(range(0, height, side), range(0, width, side)))
        for top, left in parts:
            w, h = min(side, width - left), min(side, height - top)
            corner = square.left + left * step_x, square.top + top * step_y
            try:
                part = self.slide.region(*corner, w * step_x, h * step_y, (w, h))
            except TileError as error:
                errors.append(error)
                part = _hatched(w, h)
            result[top : top + h, left : left + w] = part
        if len(errors) == len(parts):
            raise errors[0]
        return result

    def _reduced(self) -> Image.Image:
        """Return the slide at up to `_OVERVIEW_PX`, where the file has no coarse level; read once.

        Otherwise each coarse square would read all that lies under it again.
        """
        with self._lock:
            if not self._overview:
                self._overview.append(Image.fromarray(self._whole(_OVERVIEW_PX)))
            return self._overview[0]

    def _whole(self, longest_px: int) -> RGB:
        width, height = self.size_px
        step = max(1.0, max(width, height) / longest_px)
        out = max(1, round(width / step)), max(1, round(height / step))
        return self._in_parts(Square(0, 0, width, height, out))

    def thumbnail(self, longest_px: int) -> RGB:
        """Return the whole slide, whose longer side has `longest_px` or, of a smaller one, its own.

        Raises:
            TileError: the file is damaged where it is read.
        """
        return self._whole(longest_px)


def _hatched(width: int, height: int) -> RGB:
    """Return stripes, as the page draws over a square that cannot be read."""
    y, x = np.mgrid[:height, :width]
    return np.where(((x + y) % 12 < 3)[..., None], 154, [243] * 3).astype(np.uint8)


def to_jpeg(image: Image.Image, quality: int = _QUALITY) -> bytes:
    """Return an RGB image as JPEG without subsampled colours."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


def to_webp(image: Image.Image) -> bytes:
    """Return an RGB image as WebP without any loss, the quickest way."""
    stream = io.BytesIO()
    image.save(stream, "WEBP", lossless=True, quality=0, method=0)
    return stream.getvalue()
