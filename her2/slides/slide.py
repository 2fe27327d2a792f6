"""Stage 1, tile and embed: a slide's exact um/px and RGB regions, whatever its format.

Everything specific to a format is in its backend, see `her2.slides.backends`.
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from her2.core.crashes import reading
from her2.core.errors import SlideError, SlideUnfit, TileError, UserError
from her2.core.types import MPP_RANGE, RGB
from her2.slides import backends

log = logging.getLogger(__name__)


RESAMPLING = Image.Resampling.BICUBIC
"""Antialiased, because Pillow widens every filter by the reduction."""

_LARGEST_THUMBNAIL_PX = 1 << 29
"""At 8 um/px, 185 mm in square; the largest glass slides have 200 x 150 mm."""
_STRIP_PX = 4096
"""Thumbnails of slides without a pyramid are read in squares of this many px per side."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Micrometres per level-0 px on each axis, and their source."""

    mpp_x: float
    mpp_y: float
    source: str


def find_scale(file_mpp: tuple[float, float] | None, manifest_mpp: float | None = None) -> Scale:
    """Return a slide's um/px: the manifest's if given, else that of the file's metadata, (x, y).

    Raises:
        SlideUnfit: neither gives a scale, or the metadata's is out of range.
    """
    if manifest_mpp is not None:
        return Scale(manifest_mpp, manifest_mpp, "manifest")
    if file_mpp is None:
        raise SlideUnfit(
            "no um/px in its metadata; set it in the manifest's column 'mpp' (um/px at full "
            "resolution)"
        )
    x, y = file_mpp
    if not all(MPP_RANGE[0] <= value <= MPP_RANGE[1] for value in (x, y)):
        raise SlideUnfit(
            f"um/px {x:g} x {y:g} in its metadata is outside {MPP_RANGE[0]}-{MPP_RANGE[1]}; "
            "set the right one in the manifest's column 'mpp'"
        )
    return Scale(x, y, "metadata")


def open_slide(path: Path | str, mpp: float | None = None) -> "Slide":
    """Open a slide of any format that is known here, whose um/px are known.

    Args:
        path: the slide's file; of several files the one that OpenSlide opens.
        mpp: um/px at full resolution; default: those of the file.

    Raises:
        UserError: `mpp` is outside the possible.
        SlideError: the file cannot be opened, or does not tell its um/px and `mpp` is not given.

    >>> import her2
    >>> with her2.open_slide("slides/demo-004-a.svs") as slide:
    ...     slide.width_px, slide.height_px, slide.scale().mpp_x
    ...     slide.thumbnail(mpp=8.0).shape  # uint8 (h, w, 3)
    (768, 768, 0.5)
    (48, 48, 3)
    """
    path = Path(path)
    if mpp is not None and not MPP_RANGE[0] <= mpp <= MPP_RANGE[1]:
        raise UserError(f"{path}: mpp {mpp:g} is outside {MPP_RANGE[0]}-{MPP_RANGE[1]} um/px.")
    try:
        with reading(str(path)):
            slide = Slide(path, mpp)
            try:
                slide.scale()
            except SlideError:
                slide.close()
                raise
    except SlideUnfit as error:
        raise SlideUnfit(f"{path}: {error}, or give them as open_slide(path, mpp=...)") from None
    except SlideError as error:
        raise SlideError(f"{path}: {error}") from None
    return slide


class Slide:
    """An open slide. All coordinates are px in the level 0 reference frame. Reads are thread-safe.

    `mpp` are the um/px at full resolution, where they are known better than by the file.

    Raises:
        SlideError: the file cannot be opened, or is too damaged to tell the slide's size.
    """

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        self.path, self._mpp = path, mpp
        self._closed = False
        self._opened = backends.open_slide(path)
        self._decoder: backends.TileDecoder | None = None
        self.level_sizes = tuple(self._opened.level_sizes)
        self.width_px, self.height_px = self.level_sizes[0]
        if self.width_px < 1 or self.height_px < 1:
            raise SlideError(f"has {self.width_px} x {self.height_px} px; copy it again")
        self.downsamples = tuple(self._opened.downsamples)
        self.vendor, self.objective = self._opened.vendor, self._opened.objective
        self.file_mpp = self._opened.mpp
        self.bounds_corner_px = self._opened.bounds_corner_px

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._closed = True
        self._opened.close()
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    @property
    def reader(self) -> str:
        """Return the name of the current decoder, see `decode_directly`."""
        return self._opened.reader if self._decoder is None else self._decoder.reader

    def __repr__(self) -> str:
        """Return what it is: its file, size, um/px and reader."""
        try:
            scale = f"{self.scale().mpp_x:.4g} um/px"
        except SlideUnfit:
            scale = "um/px not known"
        return (
            f"<Slide {self.path.name}: {self.width_px:,} x {self.height_px:,} px, {scale}, "
            f"read by {self.reader}>"
        )

    def scale(self, manifest_mpp: float | None = None) -> Scale:
        """Return the slide's um/px: the given ones, else those of the file's metadata.

        The nominal magnification is never converted to um/px: 20x means anything from 0.4 to 0.55.

        Raises:
            SlideUnfit: neither gives a scale, or the metadata's is out of range.
        """
        given = self._mpp if manifest_mpp is None else manifest_mpp
        return find_scale(self._opened.mpp, given)

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
        """Read a rectangle of the slide, resampled to exactly `out` (width, height) px.

        The top left `x, y`, `width` and `height` are level-0 px and may be fractional. With
        `scanned`, image data are expected: a rectangle without any (a tile lost in copying reads as
        transparent) is an error instead of white.

        Returns:
            uint8 (out height, out width, 3), white outside the scanned area.

        Raises:
            UserError: the slide is closed.
            TileError: the file is damaged in this region or, with `scanned`, empty.
        """
        if self._closed:
            raise UserError(
                f"{self.path}: is closed; read it inside `with open_slide(...)`, or open it again."
            )
        level = self.level_for(min(width / out[0], height / out[1]))
        factor = self.downsamples[level]
        # Read whole px of the level around the rectangle. OpenSlide takes their corner in level-0
        # px. It is rounded down, so that the rectangle does not begin before it and the read does
        # not end beyond the slide.
        left, top = (math.floor(v / factor) for v in (x, y))
        corner = math.floor(left * factor), math.floor(top * factor)
        box_left, box_top = (x - corner[0]) / factor, (y - corner[1]) / factor
        box_right, box_bottom = box_left + width / factor, box_top + height / factor
        size = (
            _extent(box_right, self.level_sizes[level][0] - left),
            _extent(box_bottom, self.level_sizes[level][1] - top),
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

    def level_px(self, corner: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        """Read px of a level as they are: RGB, or RGBA, transparent where nothing was scanned.

        The top left `corner` is in level-0 px, `size` (width, height) in px of the level.

        Raises:
            TileError: the file is damaged in this region.
        """
        return self._opened.read_region(corner, level, size)

    def decode_directly(self, x: float, y: float, width: float, height: float) -> bool:
        """Use the backend's faster decoder from now on, if it has one; return whether it is used.

        This region (level-0 px) is read both ways first. If the two differ, it is not used.

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
        log.warning("%s: directly decoded pixels differ from those of %s, so %s reads this slide",
                    self.path.name, self.reader, self.reader)  # fmt: skip
        return False

    def thumbnail(self, mpp: float, scale: Scale | None = None) -> RGB:
        """Read the whole slide at `mpp` um/px: uint8 (h, w, 3), each side at least one px.

        `scale` are the slide's um/px, by default its own.

        Raises:
            SlideUnfit: it would be too large for any piece of glass.
            TileError: a part of the level that it is read from is damaged.
        """
        width, height = thumbnail_size((self.width_px, self.height_px), mpp, scale or self.scale())
        step_x, step_y = self.width_px / width, self.height_px / height
        reduction = min(step_x, step_y) / self.downsamples[self.level_for(min(step_x, step_y))]
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
        """Return the pyramid level that tiles at `target_mpp` um/px are read from."""
        return self.level_for(min(target_mpp / scale.mpp_x, target_mpp / scale.mpp_y))

    def level_for(self, downsample: float) -> int:
        """Return the coarsest level that needs no enlargement (with 1 % tolerance)."""
        fitting = [i for i, d in enumerate(self.downsamples) if d <= downsample * 1.01]
        return max(fitting, default=0)


def thumbnail_size(size_px: tuple[int, int], mpp: float, scale: Scale) -> tuple[int, int]:
    """Return (width, height) px of a slide of `size_px` at `mpp` um/px, each at least one.

    Raises:
        SlideUnfit: it would be too large for any piece of glass.
    """
    width = max(1, round(size_px[0] / (mpp / scale.mpp_x)))
    height = max(1, round(size_px[1] / (mpp / scale.mpp_y)))
    if width * height > _LARGEST_THUMBNAIL_PX:
        raise SlideUnfit(
            f"its {size_px[0]:,} x {size_px[1]:,} px at {scale.mpp_x:g} um/px "
            f"({scale.source}) are {width * mpp / 1e3:,.0f} x {height * mpp / 1e3:,.0f} mm, "
            "too large to be searched for tissue; is the um/px right? The column 'mpp' of the "
            "manifest corrects it"
        )
    return width, height


def _extent(end: float, available: int) -> int:
    """Return how many px of a level reach `end`, without those that the slide's border cuts.

    A level's size is rounded, so the level may be slightly shorter than level 0.
    """
    wanted = max(1, math.ceil(end - 1e-6))
    return max(1, available) if available < wanted <= available + 2 else wanted


def _on_white(image: Image.Image, scanned: bool) -> Image.Image:
    """Convert RGBA (transparent where nothing was scanned) to RGB on white."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    alpha = image.getchannel("A")
    least, most = alpha.getextrema()
    if least == 255:
        return image.convert("RGB")
    if scanned and most == 0:
        raise TileError("the file has no image data there")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=alpha)
    return white
