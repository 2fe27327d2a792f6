"""Masks made by another program or by hand, as PNG or TIFF of any size."""

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from her2.core.errors import SlideError
from her2.core.images import ImageTooLarge, open_image
from her2.core.reading import check_regular
from her2.core.types import Mask

_ASPECT_SLACK = 0.02
_LARGEST_PX = 1 << 29
"""A mask of more px (23,000 x 23,000) would need more memory than its job has."""
_LARGEST_BYTES = 1 << 31
_ALPHA = {tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA}


def read_mask(path: Path, shape: tuple[int, int], *, size_px: tuple[int, int]) -> Mask:
    """Read a mask (PNG or TIFF), True where it is not zero, at the size of the thumbnail (h, w).

    The mask covers the whole slide, `size_px` (width, height) at level 0. Of a pyramid, the
    smallest page that is large enough is read. Every channel counts; of a palette, the indices
    count. A px that is transparent, or not a number, is not set.

    Raises:
        SlideError: the mask cannot be used; the message names the file and the problem.
    """
    return fitted(read_values(path, shape, size_px=size_px, what="tissue mask") != 0, shape)


def read_values(
    path: Path, shape: tuple[int, int], *, size_px: tuple[int, int], what: str
) -> NDArray[Any]:
    """Read the stored values (h, w), the largest channel's, of an image of the whole slide.

    They are 0 where the image is transparent or not a number. Arguments and errors are those of
    `read_mask`; errors call the file `what`.
    """
    try:
        read = _tiff(path, shape) if path.suffix.lower() in (".tif", ".tiff") else _flat(path)
        image = _shown(*read)
    except FileNotFoundError:
        raise SlideError(f"its {what} {path.name} does not exist") from None
    except _Unusable as error:
        raise SlideError(f"its {what} {path.name} {error}") from None
    except MemoryError:
        raise
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


class _Unusable(Exception):
    """A file that can be read but is no mask; the message follows the file's name."""


def _numbers(values: NDArray[Any]) -> NDArray[Any]:
    """Return values with 0 for what is not a number."""
    if values.dtype.kind not in "buif":
        raise _Unusable(f"holds {values.dtype} values; save whole numbers, 0 outside of tissue")
    if values.dtype.kind == "f" and np.isnan(values).any():
        return np.where(np.isnan(values), np.zeros((), values.dtype), values)
    return values


def _shown(values: NDArray[Any], visible: NDArray[np.bool_] | None) -> NDArray[Any]:
    """Return values (h, w) with 0 for px that are not visible."""
    if 0 in values.shape:
        raise _Unusable(f"has {values.shape[1]} x {values.shape[0]} px")
    if visible is None or visible.all():
        return values
    if not visible.any():
        raise _Unusable("is transparent everywhere; save it without transparency")
    return np.where(visible, values, np.zeros((), values.dtype))


def _flat(path: Path) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Return values (h, w), and which px are visible, None for all."""
    visible = None
    try:
        opened = open_image(path)
    except ImageTooLarge as error:
        raise _Unusable(
            f"{error}; save it smaller, since a mask covers the slide at any size"
        ) from None
    with opened as image:
        clear = image.info.get("transparency")
        opaque = {"RGBA": "RGB", "LA": "L", "PA": "P"}.get(image.mode)
        if opaque or isinstance(clear, bytes) or (clear is not None and image.mode in "1LRGBP"):
            visible = np.asarray(image.convert("RGBA").getchannel("A")) > 0
        values = np.asarray(image.convert(opaque) if opaque else image)
    if clear is not None and visible is None:  # 16 bits, of which Pillow knows no transparency
        visible = values != clear
    values = _numbers(values)
    return np.asarray(values if values.ndim == 2 else values.max(axis=2)), visible


def _tiff(path: Path, shape: tuple[int, int]) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Return values (h, w), and which px are visible, None for all."""
    check_regular(path)
    # Without these options, tifffile also opens other files that this one names.
    alone = tifffile.TiffFile(path, _multifile=False, is_mmstack=False, is_ndtiff=False)
    with alone as tiff:
        if not tiff.series:
            raise _Unusable("holds no image")
        levels = tiff.series[0].levels
        fits = [
            level for level in levels if _size(level)[0] >= shape[0] and _size(level)[1] >= shape[1]
        ]
        level = fits[-1] if fits else levels[0]
        if math.prod(level.shape) > _LARGEST_PX or level.nbytes > _LARGEST_BYTES:
            height, width = _size(level)
            raise _Unusable(
                f"has {width:,} x {height:,} px, more than can be read at once; save it with at "
                "most 20,000 px a side, or as a pyramid"
            )
        page, size = level.keyframe, path.stat().st_size
        tile_bytes = math.prod(page.chunks) * level.dtype.itemsize
        counts = (count for part in level.pages if part for count in part.databytecounts)
        if tile_bytes > _LARGEST_BYTES or any(count > size for count in counts):
            raise ValueError("truncated or damaged: its parts are larger than it is")
        values, axes = level.asarray(), level.axes
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        values = np.invert(values)
    visible: NDArray[np.bool_] | None = None
    if page.extrasamples and axes.endswith("S"):
        colours = values.shape[-1] - len(page.extrasamples)
        alpha = [i for i, kind in enumerate(page.extrasamples, colours) if kind in _ALPHA]
        if alpha:
            visible = np.asarray((values[..., alpha] > 0).all(axis=-1))
        values = values[..., :colours]
    values = _numbers(values)
    # Merge all other axes (channels, single planes).
    others = tuple(i for i, name in enumerate(axes) if name not in "YX")
    if visible is not None:
        planes = tuple(i for i in others if i < visible.ndim)
        visible = np.asarray(visible.any(axis=planes)) if planes else visible
    return np.asarray(values.max(axis=others) if others else values), visible


def _size(level: Any) -> tuple[int, int]:
    return level.shape[level.axes.index("Y")], level.shape[level.axes.index("X")]
