"""Stage 1, tile: where the tissue is, from a thumbnail. Pure functions on arrays."""

import cv2
import numpy as np
from numpy.typing import NDArray

from her2.slide import RGB

Mask = NDArray[np.bool_]
"""(height, width), True on tissue."""

SATURATION_RANGE = (0.06, 0.20)
"""Otsu's threshold splits any histogram in two, also that of an empty slide (noise against
noise) or a full one (pale against dark tissue). Glass stays below the lower bound and stained
tissue above the upper one, so the threshold is kept between them."""

DARK_VALUE = 0.08
"""Scanner borders and marker are near black, where saturation means nothing."""


def tissue_mask(thumbnail: RGB, *, mpp: float, min_tissue_um: float) -> Mask:
    """Tissue by Otsu's threshold on the saturation (HSV).

    Args:
        thumbnail: uint8 (h, w, 3).
        mpp: um/px of the thumbnail.
        min_tissue_um: pieces and holes narrower than this are removed, filled.

    Source: Otsu, IEEE Trans. Syst. Man Cybern. 9(1), 1979.
    """
    pixels = thumbnail.astype(np.float32)
    value = pixels.max(axis=2)
    saturation = (value - pixels.min(axis=2)) / np.maximum(value, 1.0)
    smooth = cv2.GaussianBlur(saturation, (0, 0), sigmaX=max(0.6, 8.0 / mpp))
    mask = (smooth > _threshold(smooth)) & (value > DARK_VALUE * 255)
    return _clean(mask, min_px=min_tissue_um / mpp)


def tissue_share(mask: Mask, boxes: NDArray[np.float64]) -> NDArray[np.float32]:
    """The share of tissue in rectangles.

    Args:
        mask: (h, w).
        boxes: (n, 4) left, top, right, bottom in mask px; fractions are honoured.

    Returns:
        float32 (n,), 0 to 1.
    """
    height, width = mask.shape
    table = cv2.integral(mask.astype(np.uint8)).astype(np.float64)
    left, right = (np.clip(boxes[:, i], 0, width) for i in (0, 2))
    top, bottom = (np.clip(boxes[:, i], 0, height) for i in (1, 3))
    inside = (
        _bilinear(table, right, bottom)
        - _bilinear(table, left, bottom)
        - _bilinear(table, right, top)
        + _bilinear(table, left, top)
    )
    area = np.maximum((right - left) * (bottom - top), 1e-9)
    return np.clip(inside / area, 0, 1).astype(np.float32)


def _threshold(saturation: NDArray[np.float32]) -> float:
    scaled = np.round(np.clip(saturation, 0, 1) * 255).astype(np.uint8)
    otsu, _ = cv2.threshold(scaled, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return float(np.clip(otsu / 255, *SATURATION_RANGE))


def _clean(mask: Mask, *, min_px: float) -> Mask:
    """Opening removes specks; then small holes are filled and small pieces dropped."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    image = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel).astype(np.uint8)
    image = 1 - _drop_small(1 - image, min_px**2)
    return _drop_small(image, min_px**2).astype(bool)


def _drop_small(image: NDArray[np.uint8], min_area: float) -> NDArray[np.uint8]:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(image, connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_area
    keep[0] = False
    return keep[labels].astype(np.uint8)


def _bilinear(
    table: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A summed-area table between its px: exact for rectangles that cut through px."""
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    x1, y1 = np.minimum(x0 + 1, table.shape[1] - 1), np.minimum(y0 + 1, table.shape[0] - 1)
    fx, fy = x - x0, y - y0
    upper = table[y0, x0] * (1 - fx) + table[y0, x1] * fx
    lower = table[y1, x0] * (1 - fx) + table[y1, x1] * fx
    result: NDArray[np.float64] = upper * (1 - fy) + lower * fy
    return result
