"""Scanner formats, read by OpenSlide (Goode et al. 2013, doi:10.4103/2153-3539.119005)."""

import math
import re
import threading
from pathlib import Path

import openslide
from PIL import Image

from her2.core.errors import SlideError, TileError
from her2.slides.backends import OpenedSlide, TileDecoder, UnreadableSlide
from her2.slides.files import companions

NAME = "OpenSlide"
ORDER = 50

_UM_IN = {"nm": 1e-3, "\u00b5m": 1.0, "\u03bcm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4}
"""Two Unicode characters look like the micro sign."""
_LONGEST_ELEMENT = 1 << 16
_LEVELS_ARE_PAGES = {"aperio", "generic-tiff"}
"""Vendors whose TIFF files hold each level as a page, a plain grid of tiles."""


files = companions


def open_slide(path: Path) -> "OpenSlideFile | None":
    """Open a file in any of OpenSlide's formats.

    Raises:
        UnreadableSlide: it is too damaged to tell the slide's size.
    """
    try:
        return OpenSlideFile(path)
    except openslide.OpenSlideUnsupportedFormatError:
        return None
    except (openslide.OpenSlideError, ValueError) as error:
        raise UnreadableSlide(error) from error


class OpenSlideFile(OpenedSlide):
    """A file that OpenSlide opened, again after each unreadable region.

    Its handle would answer every later read with the same error.
    """

    reader = "openslide"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._handle = openslide.OpenSlide(path)
        self.level_sizes = self._handle.level_dimensions
        self.downsamples = self._handle.level_downsamples
        properties = self._handle.properties
        self.vendor = properties[openslide.PROPERTY_NAME_VENDOR]
        x = properties.get(openslide.PROPERTY_NAME_MPP_X)
        y = properties.get(openslide.PROPERTY_NAME_MPP_Y)
        if x is not None and y is not None:
            self.mpp = _number(x), _number(y)
        else:
            self.mpp = _ome_mpp(properties.get("tiff.ImageDescription", ""))
        objective = _number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER, ""))
        self.objective = objective if 0 < objective < math.inf else None
        self.bounds_corner_px = (
            int(properties.get(openslide.PROPERTY_NAME_BOUNDS_X, 0)),
            int(properties.get(openslide.PROPERTY_NAME_BOUNDS_Y, 0)),
        )

    def read_region(
        self, corner: tuple[int, int], level: int, size: tuple[int, int]
    ) -> Image.Image:
        handle = self._handle
        try:
            return handle.read_region(corner, level, size)
        except (openslide.OpenSlideError, OSError):
            with self._lock:
                # Another thread may still use the handle, so it is left to the garbage collector.
                if self._handle is handle:
                    self._handle = self._open_again()
        # The error may come from another region. On a fresh handle it is this region's.
        fresh = self._open_again()
        try:
            return fresh.read_region(corner, level, size)
        except (openslide.OpenSlideError, OSError) as error:
            raise TileError(f"level {level} at {corner}: {error}") from error
        finally:
            fresh.close()

    def close(self) -> None:
        self._handle.close()

    def tile_decoder(self) -> TileDecoder | None:
        if self.vendor not in _LEVELS_ARE_PAGES:
            return None
        from her2.slides.jpeg import open_jpeg_tiles

        return open_jpeg_tiles(self._path, self.level_sizes, self.downsamples)

    def _open_again(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(self._path)
        except openslide.OpenSlideError as error:
            if not self._path.exists():
                raise SlideError("the file does not exist") from None
            raise SlideError(
                f"the file changed while it was being read; copy it again ({error})"
            ) from error


def _ome_mpp(description: str) -> tuple[float, float] | None:
    """Return the um/px (x, y) of an OME-TIFF, which need not fill the TIFF resolution tags.

    Source: OME-XML, Pixels@PhysicalSizeX and @PhysicalSizeXUnit (um if absent).
    """
    pixels = re.search(r"<(?:\w{1,64}:)?Pixels\b", description) if "<OME" in description else None
    if pixels is None:
        return None
    end = description.find(">", pixels.start())
    element = description[pixels.start() : end][:_LONGEST_ELEMENT] if end >= 0 else ""
    found = dict(re.findall(r"\b(PhysicalSize[XY](?:Unit)?)=[\"']([^\"']*)[\"']", element))
    x, y = (
        _number(found.get(name, "")) * _UM_IN.get(found.get(f"{name}Unit", "\u00b5m"), math.nan)
        for name in ("PhysicalSizeX", "PhysicalSizeY")
    )
    if not (math.isfinite(x) and math.isfinite(y)):
        return None
    return float(f"{x:.9g}"), float(f"{y:.9g}")  # 250 nm are 0.25 um, not 0.25000000000000006


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
