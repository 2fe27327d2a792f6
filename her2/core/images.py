"""Every stage: the one way to open an image that somebody else has made.

Pillow tries all of its formats, whatever a file is called, and some of them start a program (EPS:
Ghostscript) or read other files that the image names. So only the formats below are opened.
`tests/unit/test_images.py` fails if another module opens an image itself.
"""

import errno
import os
import stat
from pathlib import Path

from PIL import Image

from her2.core.reading import LFS_POINTER, is_lfs_pointer

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


def check_regular(path: Path) -> None:
    """Raise an OSError unless a path is that of a file; to open a named pipe could wait for ever.

    Raises:
        OSError: it does not exist, or is a folder, a named pipe, a device or a pointer of Git LFS.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a named pipe or device, not a file", str(path))
    if is_lfs_pointer(path):
        raise OSError(errno.EINVAL, f"it {LFS_POINTER}", str(path))
