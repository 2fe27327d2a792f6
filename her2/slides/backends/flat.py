"""Flat images (PNG, JPEG, ...): one level in memory; the manifest must give the um/px.

Their px are those in the file. An EXIF orientation, by which viewers turn photographs, is ignored.
"""

import logging
from pathlib import Path

import openslide
from PIL import ExifTags, Image, UnidentifiedImageError

from her2.core.errors import SlideError
from her2.core.images import ImageTooLarge, open_image
from her2.slides.backends import OpenedSlide, SlideHeader, UnreadableSlide

log = logging.getLogger(__name__)

NAME = "Pillow"
ORDER = 90

LARGEST_BYTES = 3 << 29
"""Memory of a decoded slide, 403 million px in colour: two at once fit into a job that tiles."""
_TILE_WIDTH_TAG = 322


def files(path: Path) -> list[Path] | None:
    """Return None: a flat image is one file."""
    return None


def open_slide(path: Path) -> "FlatImage | None":
    """Open an image that Pillow identifies.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableSlide: it is truncated or a tiled TIFF.
        SlideError: it would take more than `LARGEST_BYTES` of memory.
    """
    image = _identified(path, decode=True)
    if image is None:
        return None
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation != 1:
        log.warning(
            "%s: its EXIF orientation is %s, so viewers turn it; here the px are read as they are "
            "stored, and annotations and masks must fit that",
            path.name, orientation,
        )  # fmt: skip
    return FlatImage(image)


def read_header(path: Path) -> SlideHeader | None:
    """Read the size of an image that Pillow identifies, without decoding it.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableSlide: it is a tiled TIFF.
        SlideError: it would take more than `LARGEST_BYTES` of memory.
    """
    image = _identified(path, decode=False)
    if image is None:
        return None
    with image:
        return SlideHeader(FlatImage.vendor, NAME, (image.size,), None)


def _identified(path: Path, *, decode: bool) -> Image.Image | None:
    """Return an image, or None where Pillow does not know the format."""
    try:
        image = open_image(path, largest_bytes=LARGEST_BYTES)
        if _TILE_WIDTH_TAG in getattr(image, "tag_v2", ()):
            # OpenSlide reads every complete tiled TIFF, so this one is truncated.
            raise UnreadableSlide("a tiled TIFF that OpenSlide refuses")
        if decode:  # otherwise Pillow decodes at the first read, which is not thread-safe
            image.load()
            image.getexif()
        return image
    except UnidentifiedImageError:
        return None
    except ImageTooLarge as error:
        raise SlideError(
            f"{error}, since a flat image is decoded whole; make a pyramidal TIFF of it (`her2 "
            "import bcnb --convert` does, or libvips: vips tiffsave A.jpg A.tif --tile --pyramid "
            "--compression jpeg --Q 90 --bigtiff) and name that in the manifest"
        ) from None
    except (FileNotFoundError, UnreadableSlide, MemoryError):
        raise
    except Exception as error:  # Pillow raises all kinds of errors on damaged files
        raise UnreadableSlide(error) from error


class FlatImage(OpenedSlide):
    """A decoded image."""

    reader = "openslide"  # its ImageSlide pads beyond the border
    vendor = "flat image"
    downsamples = (1.0,)

    def __init__(self, image: Image.Image) -> None:
        self._handle = openslide.ImageSlide(image)
        self.level_sizes = (image.size,)

    def read_region(
        self, corner: tuple[int, int], level: int, size: tuple[int, int]
    ) -> Image.Image:
        return self._handle.read_region(corner, level, size)

    def close(self) -> None:
        self._handle.close()
