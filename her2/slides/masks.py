"""Masks made by another program or by hand, as PNG or TIFF of any size."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from her2.core.errors import SlideError
from her2.core.types import Mask

_ASPECT_SLACK = 0.02


def read_mask(path: Path, shape: tuple[int, int], *, size_px: tuple[int, int]) -> Mask:
    """Read a mask (PNG or TIFF), True where it is not zero, at the size of the thumbnail (h, w).

    The mask covers the whole slide, `size_px` (width, height) at level 0. Of a pyramid, the
    smallest page that is large enough is read. Every channel counts except transparency; of a
    palette, the indices count.

    Raises:
        SlideError: the mask cannot be used; the message names the file and the problem.
    """
    return fitted(read_values(path, shape, size_px=size_px, what="tissue mask") != 0, shape)


def read_values(
    path: Path, shape: tuple[int, int], *, size_px: tuple[int, int], what: str
) -> NDArray[Any]:
    """Read the stored values (h, w), the largest channel's, of an image of the whole slide.

    Arguments and errors are those of `read_mask`; errors call the file `what`.
    """
    try:
        image = _tiff(path, shape) if path.suffix.lower() in (".tif", ".tiff") else _flat(path)
    except FileNotFoundError:
        raise SlideError(f"its {what} {path.name} does not exist") from None
    # Decoders raise all kinds of errors on broken files.
    except Exception as error:
        detail = str(error).replace(str(path), path.name)
        raise SlideError(
            f"its {what} {path.name} is not a readable PNG or TIFF ({detail})"
        ) from None
    height, width = image.shape
    stretch = (width / height) / (size_px[0] / size_px[1])
    # Rounding matters more when a side has few px.
    if abs(np.log(stretch)) > _ASPECT_SLACK + 1 / min(height, width):
        raise SlideError(
            f"its {what} {path.name} ({width} x {height} px) has another aspect ratio than the "
            f"slide ({size_px[0]} x {size_px[1]} px); a mask must cover the whole slide"
        )
    return image


def fitted(mask: Mask, shape: tuple[int, int]) -> Mask:
    """Resize a mask to (h, w): True where at least half of a px is set."""
    larger = shape[0] > mask.shape[0] or shape[1] > mask.shape[1]
    interpolation = cv2.INTER_LINEAR if larger else cv2.INTER_AREA
    found: Mask = cv2.resize(mask.astype(np.float32), shape[::-1], interpolation=interpolation) >= (
        0.5
    )
    return found


def _flat(path: Path) -> NDArray[Any]:
    with Image.open(path) as image:
        opaque = {"RGBA": "RGB", "LA": "L", "PA": "P"}.get(image.mode)
        values = np.asarray(image.convert(opaque) if opaque else image)
    return np.asarray(values if values.ndim == 2 else values.max(axis=2))


def _tiff(path: Path, shape: tuple[int, int]) -> NDArray[Any]:
    with tifffile.TiffFile(path) as tiff:
        levels = tiff.series[0].levels
        fits = [
            level for level in levels if _size(level)[0] >= shape[0] and _size(level)[1] >= shape[1]
        ]
        level = fits[-1] if fits else levels[0]
        values, axes, page = level.asarray(), level.axes, level.keyframe
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        values = np.invert(values)
    if page.extrasamples and axes.endswith("S"):  # transparency
        values = values[..., : values.shape[-1] - len(page.extrasamples)]
    # Merge all other axes (channels, single planes).
    others = tuple(i for i, name in enumerate(axes) if name not in "YX")
    return np.asarray(values.max(axis=others) if others else values)


def _size(level: Any) -> tuple[int, int]:
    return level.shape[level.axes.index("Y")], level.shape[level.axes.index("X")]
