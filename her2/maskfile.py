"""Stage 1, tile: a tissue mask that another program made, as PNG or TIFF of any size."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from her2.slide import SlideError
from her2.tissue import Mask

_ASPECT_SLACK = 0.02


def read_mask(path: Path, shape: tuple[int, int], *, size_px: tuple[int, int]) -> Mask:
    """Tissue where the mask is not zero, at the size of the thumbnail.

    Args:
        path: PNG or TIFF; of a pyramid the smallest page that is large enough is read. Any
            channel counts, but not transparency; of a palette the indices do.
        shape: (h, w) of the result, which covers the whole slide, as the mask must.
        size_px: (width, height) of the slide at level 0.

    Raises:
        SlideError: naming the file and what is wrong with it.
    """
    try:
        image = _tiff(path, shape) if path.suffix.lower() in (".tif", ".tiff") else _flat(path)
    except FileNotFoundError:
        raise SlideError(f"its tissue mask {path.name} does not exist") from None
    # Decoders raise what they like on broken files.
    except Exception as error:
        detail = str(error).replace(str(path), path.name)
        raise SlideError(
            f"its tissue mask {path.name} is not a readable PNG or TIFF ({detail})"
        ) from None
    height, width = image.shape
    stretch = (width / height) / (size_px[0] / size_px[1])
    # A side of few px is rounded by much.
    if abs(np.log(stretch)) > _ASPECT_SLACK + 1 / min(height, width):
        raise SlideError(
            f"its tissue mask {path.name} ({width} x {height} px) has not the shape of the slide "
            f"({size_px[0]} x {size_px[1]} px); a mask covers the whole slide"
        )
    filled = (image != 0).astype(np.float32)
    larger = shape[0] > height or shape[1] > width
    interpolation = cv2.INTER_LINEAR if larger else cv2.INTER_AREA
    found: Mask = cv2.resize(filled, shape[::-1], interpolation=interpolation) >= 0.5
    return found


def _flat(path: Path) -> NDArray[Any]:
    with Image.open(path) as image:
        opaque = {"RGBA": "RGB", "LA": "L", "PA": "P"}.get(image.mode)
        values = np.asarray(image.convert(opaque) if opaque else image)
    return np.asarray(values if values.ndim == 2 else values.any(axis=2))


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
    # All other axes (channels, planes of one) join.
    others = tuple(i for i, name in enumerate(axes) if name not in "YX")
    return np.asarray(values.any(axis=others) if others else values)


def _size(level: Any) -> tuple[int, int]:
    return level.shape[level.axes.index("Y")], level.shape[level.axes.index("X")]
