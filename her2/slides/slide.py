"""Stage 1, tile and embed: a slide as exact um/px and RGB regions, whatever its format.

What is particular to a format is its backend's, see `her2.slides.backends`.
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from her2.core.errors import SlideUnfit, TileError
from her2.core.types import MPP_RANGE, RGB
from her2.slides.backend import TileDecoder
from her2.slides.backends import open_slide

log = logging.getLogger(__name__)


RESAMPLING = Image.Resampling.BICUBIC
"""Pillow widens every filter by the reduction, so this is antialiased."""

_STRIP_PX = 4096
"""Thumbnails of slides without a pyramid are read in pieces of this many px a side."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Micrometres per level-0 px on each axis, and who says so."""

    mpp_x: float
    mpp_y: float
    source: str


class Slide:
    """An open slide. All coordinates are px in the level 0 reference frame. Reads are thread-safe.

    Raises:
        SlideError: the file cannot be opened, or is too damaged to tell its size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened = open_slide(path)
        self._decoder: TileDecoder | None = None
        self._level_sizes = tuple(self._opened.level_sizes)
        self.width_px, self.height_px = self._level_sizes[0]
        self.downsamples = tuple(self._opened.downsamples)
        self.vendor = self._opened.vendor
        self.bounds_corner_px = self._opened.bounds_corner_px

    def __enter__(self) -> "Slide":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._opened.close()
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    @property
    def reader(self) -> str:
        """What decodes its px now, see `decode_directly`."""
        return self._opened.reader if self._decoder is None else self._decoder.reader

    def scale(self, manifest_mpp: float | None = None) -> Scale:
        """The slide's um/px: the manifest's when it gives one, else the file's metadata.

        An objective's nominal power is never turned into um/px: 20x means anything from 0.4 to
        0.55.

        Raises:
            SlideUnfit: neither gives a scale, or the metadata's is absurd.
        """
        if manifest_mpp is not None:
            return Scale(manifest_mpp, manifest_mpp, "manifest")
        if self._opened.mpp is None:
            raise SlideUnfit(
                "no um/px in its metadata; give it in the manifest's column 'mpp' (um/px at full "
                "resolution)"
            )
        x, y = self._opened.mpp
        if not all(MPP_RANGE[0] <= value <= MPP_RANGE[1] for value in (x, y)):
            raise SlideUnfit(
                f"um/px {x:g} x {y:g} in its metadata is outside {MPP_RANGE[0]}-{MPP_RANGE[1]}; "
                "give the right one in the manifest's column 'mpp'"
            )
        return Scale(x, y, "metadata")

    def region(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        out: tuple[int, int],
        *,
        scanned: bool = False,
    ) -> RGB:
        """A rectangle of the slide, resampled to exactly `out` px.

        Args:
            x, y: top left, level-0 px; fractions are honoured.
            width, height: level-0 px; fractions are honoured.
            out: (width, height) of the result, px.
            scanned: expect an image there: a rectangle that the file holds nothing of (a tile
                lost in copying reads as transparent) is an error instead of white.

        Returns:
            uint8 (out height, out width, 3); what lies outside the scanned area is white.

        Raises:
            TileError: the file is damaged there, or (with `scanned`) empty.
        """
        level = self._level(min(width / out[0], height / out[1]))
        factor = self.downsamples[level]
        # Whole level px around the rectangle; OpenSlide takes their corner in level-0 px. Rounded
        # down, so that neither the rectangle begins before it nor the read ends beyond the slide.
        left, top = (math.floor(v / factor) for v in (x, y))
        corner = math.floor(left * factor), math.floor(top * factor)
        box_left, box_top = (x - corner[0]) / factor, (y - corner[1]) / factor
        box_right, box_bottom = box_left + width / factor, box_top + height / factor
        size = (
            _extent(box_right, self._level_sizes[level][0] - left),
            _extent(box_bottom, self._level_sizes[level][1] - top),
        )
        pixels = None if self._decoder is None else self._decoder.read(level, left, top, size)
        box = (
            max(0.0, box_left),
            max(0.0, box_top),
            min(box_right, size[0]),
            min(box_bottom, size[1]),
        )
        as_it_is = size == out and box == (0, 0, *out)
        if pixels is not None and as_it_is:
            return pixels
        if pixels is not None:
            image = Image.fromarray(pixels)
        else:
            image = _on_white(self._opened.read_region(corner, level, size), scanned)
        return np.asarray(image if as_it_is else image.resize(out, RESAMPLING, box=box))

    def decode_directly(self, x: float, y: float, width: float, height: float) -> bool:
        """Take the backend's faster way to the px from now on, where it has one.

        One region is read both ways first, and unless the two are equal nothing changes.

        Args:
            x, y, width, height: the region to compare, level-0 px.

        Raises:
            TileError: the region cannot be read.
        """
        out = round(width), round(height)
        expected = self.region(x, y, width, height, out)
        found = self._opened.tile_decoder()
        if found is None:
            return False
        self._decoder = found
        if np.array_equal(self.region(x, y, width, height, out), expected):
            return True
        self._decoder = None
        found.close()
        log.warning("%s: px decoded directly differ from those of %s, which reads all of them",
                    self.path.name, self.reader)  # fmt: skip
        return False

    def thumbnail(self, mpp: float, scale: Scale) -> RGB:
        """The whole slide at `mpp` um/px: uint8 (h, w, 3), each side at least one px.

        Raises:
            TileError: some part of the level it is read from is damaged.
        """
        step_x, step_y = mpp / scale.mpp_x, mpp / scale.mpp_y
        width = max(1, round(self.width_px / step_x))
        height = max(1, round(self.height_px / step_y))
        step_x, step_y = self.width_px / width, self.height_px / height
        reduction = min(step_x, step_y) / self.downsamples[self._level(min(step_x, step_y))]
        side = max(16, int(_STRIP_PX / max(1.0, reduction)))
        result = np.empty((height, width, 3), np.uint8)
        for top in range(0, height, side):
            for left in range(0, width, side):
                w, h = min(side, width - left), min(side, height - top)
                result[top : top + h, left : left + w] = self.region(
                    left * step_x, top * step_y, w * step_x, h * step_y, (w, h)
                )
        return result

    def read_level(self, target_mpp: float, scale: Scale) -> int:
        """The pyramid level that tiles at `target_mpp` um/px are read from."""
        return self._level(min(target_mpp / scale.mpp_x, target_mpp / scale.mpp_y))

    def _level(self, downsample: float) -> int:
        """The coarsest level that still only needs to be reduced (1 % of slack)."""
        fitting = [i for i, d in enumerate(self.downsamples) if d <= downsample * 1.01]
        return max(fitting, default=0)


def _extent(end: float, available: int) -> int:
    """How many px of a level reach `end`; of those that the slide's border cuts, the whole ones.

    A level's size is rounded, so it may lack a little of what level 0 has.
    """
    wanted = max(1, math.ceil(end - 1e-6))
    return max(1, available) if available < wanted <= available + 2 else wanted


def _on_white(image: Image.Image, scanned: bool) -> Image.Image:
    """RGBA (transparent where nothing was scanned) -> RGB on white.

    Raises:
        TileError: all of it is transparent, where something `scanned` is expected.
    """
    if image.mode != "RGBA":
        return image.convert("RGB")
    alpha = image.getchannel("A")
    least, most = alpha.getextrema()
    if least == 255:
        return image.convert("RGB")
    if scanned and most == 0:
        raise TileError("the file holds no image there")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=alpha)
    return white
