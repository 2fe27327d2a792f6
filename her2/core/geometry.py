"""Areas of masks inside rectangles, exact where edges cut through px."""

import cv2
import numpy as np
from numpy.typing import NDArray

from her2.core.types import Mask


def share_inside(mask: Mask, boxes: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the share of each rectangle that a mask covers.

    Args:
        mask: (h, w).
        boxes: (n, 4) left, top, right, bottom in mask px; may be fractional.

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


def _bilinear(
    table: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Interpolate a summed-area table: exact for rectangles that cut through px."""
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    x1, y1 = np.minimum(x0 + 1, table.shape[1] - 1), np.minimum(y0 + 1, table.shape[0] - 1)
    fx, fy = x - x0, y - y0
    upper = table[y0, x0] * (1 - fx) + table[y0, x1] * fx
    lower = table[y1, x0] * (1 - fx) + table[y1, x1] * fx
    result: NDArray[np.float64] = upper * (1 - fy) + lower * fy
    return result
