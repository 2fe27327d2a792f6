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


def open_image(path: Path) -> Image.Image:
    """Open an image of one of `FORMATS`; its px are read when they are needed.

    Raises:
        PIL.UnidentifiedImageError: it is none of these.
        FileNotFoundError, OSError: it cannot be read, or is not a regular file.
        Image.DecompressionBombError: it has more than 179 million px.
    """
    check_regular(path)
    return Image.open(path, formats=FORMATS)
