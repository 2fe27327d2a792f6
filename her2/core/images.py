"""Every stage: the one way to open an image that somebody else has made.

Pillow tries all of its formats, whatever a file is called, and some of them start a program (EPS:
Ghostscript) or read other files that the image names. So only the formats below are opened.
`tests/unit/test_images.py` fails if another module opens an image itself.
"""

from pathlib import Path

from PIL import Image

from her2.core.reading import check_regular

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "JPEG2000", "PPM", "WEBP")
"""Plain images, which Pillow and the libraries linked into it decode on their own."""

LARGEST_PX = 178_956_970
"""Px of an image where no memory is allowed for; this is Pillow's own limit."""
_BYTES_PER_PX = {"1": 1, "L": 1, "P": 1, "LA": 4, "PA": 4, "I;16": 2, "I;16B": 2, "I;16L": 2}
"""Memory of a px by Pillow's mode; 4 bytes in all others, also of three colours."""

Image.MAX_IMAGE_PIXELS = None  # checked below: Pillow's limit is one for all, of px, not of memory


class ImageTooLarge(ValueError):
    """An image that would take more memory than is allowed when it is decoded."""

    def __init__(self, size: tuple[int, int], needed: int, allowed: int) -> None:
        self.size, self.needed, self.allowed = size, needed, allowed
        super().__init__(
            f"has {size[0]:,} x {size[1]:,} px, which take {needed / 1e9:,.1f} GB of memory; at "
            f"most {allowed / 1e9:,.1f} GB are read at once, "
            f"{allowed * size[0] * size[1] // max(needed, 1):,} px of its kind"
        )


def open_image(path: Path, *, largest_bytes: int | None = None) -> Image.Image:
    """Open an image of one of `FORMATS`; its px are read when they are needed.

    Args:
        path: the file.
        largest_bytes: memory that it may take when it is decoded; default: that of `LARGEST_PX`.

    Raises:
        PIL.UnidentifiedImageError: it is none of these.
        FileNotFoundError, OSError: it cannot be read, or is not a regular file.
        ImageTooLarge: it takes more memory.
    """
    check_regular(path)
    image = Image.open(path, formats=FORMATS)
    needed = decoded_bytes(image)
    allowed = LARGEST_PX * _bytes_per_px(image) if largest_bytes is None else largest_bytes
    if needed > allowed:
        image.close()
        raise ImageTooLarge(image.size, needed, allowed)
    return image


def decoded_bytes(image: Image.Image) -> int:
    """Return the memory that an image takes when it is decoded."""
    return image.width * image.height * _bytes_per_px(image)


def _bytes_per_px(image: Image.Image) -> int:
    return _BYTES_PER_PX.get(image.mode, 4)
