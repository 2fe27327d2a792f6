"""Stage 1, tile and embed: a slide file as exact um/px and RGB regions.

OpenSlide opens the scanners' formats, and through Pillow flat images (PNG, JPEG), whose um/px the
manifest must give.
"""

import logging
import math
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import openslide
from PIL import Image, UnidentifiedImageError

from her2.core.errors import SlideError, SlideUnfit, TileError
from her2.core.types import MPP_RANGE, RGB
from her2.slides.jpeg import JpegTiles, open_jpeg_tiles

log = logging.getLogger(__name__)


RESAMPLING = Image.Resampling.BICUBIC
"""Pillow widens every filter by the reduction, so this is antialiased."""

_UNREADABLE = (
    openslide.OpenSlideError,
    OSError,
    ValueError,
    SyntaxError,  # Pillow's for a broken PNG
    Image.DecompressionBombError,
)
_TILE_WIDTH_TAG = 322
_STRIP_PX = 4096
"""Thumbnails of slides without a pyramid are read in pieces of this many px a side."""


_UM_IN = {"nm": 1e-3, "\u00b5m": 1.0, "\u03bcm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4}
"""Two characters look like the sign for micro."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Micrometres per level-0 px on each axis, and who says so."""

    mpp_x: float
    mpp_y: float
    source: str


class Slide:
    """An open slide. All coordinates are px in the level 0 reference frame.

    Reads are thread-safe. After one unreadable region an OpenSlide handle answers every later
    read with the same error, so the handle is opened anew each time that happens.

    Raises:
        SlideError: the file cannot be opened, or is too damaged to tell its size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._handle = self._open()
        self._decoded: JpegTiles | None = None
        self.width_px, self.height_px = self._handle.dimensions
        self.downsamples: tuple[float, ...] = tuple(self._handle.level_downsamples)
        self._level_sizes = tuple(self._handle.level_dimensions)
        properties = self._handle.properties
        self.vendor: str = properties.get(openslide.PROPERTY_NAME_VENDOR, "flat image")
        self._mpp = (
            properties.get(openslide.PROPERTY_NAME_MPP_X),
            properties.get(openslide.PROPERTY_NAME_MPP_Y),
        )
        if None in self._mpp:
            self._mpp = _ome_mpp(properties.get("tiff.ImageDescription", ""))
        self.bounds_corner_px: tuple[int, int] = (
            int(properties.get(openslide.PROPERTY_NAME_BOUNDS_X, 0)),
            int(properties.get(openslide.PROPERTY_NAME_BOUNDS_Y, 0)),
        )

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
        self._handle.close()
        if self._decoded is not None:
            self._decoded.close()
            self._decoded = None

    def scale(self, manifest_mpp: float | None = None) -> Scale:
        """The slide's um/px: the manifest's when it gives one, else the file's metadata.

        An objective's nominal power is never turned into um/px: 20x means anything from 0.4 to
        0.55.

        Raises:
            SlideUnfit: neither gives a scale, or the metadata's is absurd.
        """
        if manifest_mpp is not None:
            return Scale(manifest_mpp, manifest_mpp, "manifest")
        if None in self._mpp:
            raise SlideUnfit(
                "no um/px in its metadata; give it in the manifest's column 'mpp' (um/px at full "
                "resolution)"
            )
        x, y = (_number(str(text)) for text in self._mpp)
        if not all(MPP_RANGE[0] <= value <= MPP_RANGE[1] for value in (x, y)):
            shown = " x ".join(str(text) for text in self._mpp)
            raise SlideUnfit(
                f"um/px {shown} in its metadata is outside {MPP_RANGE[0]}-{MPP_RANGE[1]}; give the "
                "right one in the manifest's column 'mpp'"
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
        pixels = self._decoded.read(level, left, top, size) if self._decoded else None
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
            image = self._read(corner, level, size, scanned)
        return np.asarray(image if as_it_is else image.resize(out, RESAMPLING, box=box))

    def decode_directly(self, x: float, y: float, width: float, height: float) -> bool:
        """From now on read plain JPEG tiles without OpenSlide, which takes several times as long.

        One region is read both ways first, and unless the two are equal nothing changes.

        Args:
            x, y, width, height: the region to compare, level-0 px.

        Raises:
            TileError: the region cannot be read.
        """
        out = round(width), round(height)
        expected = self.region(x, y, width, height, out)
        found = open_jpeg_tiles(self.path, self.vendor, self._level_sizes, self.downsamples)
        if found is None:
            return False
        self._decoded = found
        if np.array_equal(self.region(x, y, width, height, out), expected):
            return True
        self._decoded = None
        found.close()
        log.warning("%s: JPEG tiles decode differently; OpenSlide reads it alone", self.path.name)
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

    def _read(
        self, corner: tuple[int, int], level: int, size: tuple[int, int], scanned: bool
    ) -> Image.Image:
        handle = self._handle
        try:
            return _on_white(handle.read_region(corner, level, size), scanned)
        except (openslide.OpenSlideError, OSError):
            with self._lock:
                # Not closed here: another thread may be inside it. It goes when they let go.
                if self._handle is handle:
                    self._handle = self._open()
        # The error may have been another region's, latched. On a fresh handle it is this one's.
        fresh = self._open()
        try:
            return _on_white(fresh.read_region(corner, level, size), scanned)
        except (openslide.OpenSlideError, OSError) as error:
            raise TileError(f"level {level} at {corner}: {error}") from error
        finally:
            fresh.close()

    def _open(self) -> openslide.AbstractSlide:
        try:
            try:
                return openslide.OpenSlide(self.path)
            except openslide.OpenSlideUnsupportedFormatError:
                return _open_flat(self.path)
        except FileNotFoundError:
            raise SlideError("the file does not exist") from None
        except _UNREADABLE as error:
            # Pillow's own words would name the path, which differs from one machine to the next.
            detail = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
            raise SlideError(
                "not a slide that OpenSlide or Pillow can open, or cut off; compare it with the "
                f"original and copy it again{detail}"
            ) from error


def _open_flat(path: Path) -> openslide.ImageSlide:
    """A flat image, decoded at once: Pillow decodes at the first read, and not thread-safely."""
    image = Image.open(path)
    if _TILE_WIDTH_TAG in getattr(image, "tag_v2", ()):
        # OpenSlide reads every whole tiled TIFF; the first page of half a one is no slide.
        raise ValueError("a tiled TIFF that OpenSlide refuses")
    image.load()
    return openslide.ImageSlide(image)


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


def _ome_mpp(description: str) -> tuple[str | None, str | None]:
    """um/px of OME-TIFF, whose writers need not fill the TIFF's own resolution tags.

    Source: OME-XML, Pixels@PhysicalSizeX and @PhysicalSizeXUnit (um where it is absent).
    """
    pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", description) if "<OME" in description else None
    if pixels is None:
        return None, None
    found = dict(re.findall(r"\b(PhysicalSize[XY](?:Unit)?)=[\"']([^\"']*)[\"']", pixels[0]))
    sizes = [
        _number(found.get(name, "")) * _UM_IN.get(found.get(f"{name}Unit", "\u00b5m"), math.nan)
        for name in ("PhysicalSizeX", "PhysicalSizeY")
    ]
    if not all(map(math.isfinite, sizes)):
        return None, None
    return f"{sizes[0]:.9g}", f"{sizes[1]:.9g}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
