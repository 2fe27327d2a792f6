"""Masks: their areas inside rectangles, exact where edges cut through px, and their pieces.

Pieces are 8-connected.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from her2.core.types import Mask


def share_inside(mask: Mask, boxes: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the share of each rectangle that a mask (h, w) covers: float32 (n,), 0 to 1.

    `boxes` are (n, 4) left, top, right, bottom in mask px, and may be fractional.
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


def drop_small(mask: Mask, min_area_px: float) -> Mask:
    """Remove pieces of less than `min_area_px`."""
    return _pieces(mask, lambda _, stats: stats[:, cv2.CC_STAT_AREA] >= min_area_px)


def drop_short(mask: Mask, length_px: float) -> Mask:
    """Remove pieces whose bounding box has a diagonal of less than `length_px`."""
    box = (cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT)
    return _pieces(mask, lambda _, stats: np.hypot(*stats[:, box].T) >= length_px)


def with_share_of(clear: Mask, candidates: Mask, share: float) -> Mask:
    """Keep the pieces of `candidates` of which at least `share` is `clear`."""

    def keep(labels: Any, stats: Any) -> Any:
        inside = np.bincount(labels[clear], minlength=len(stats))
        return inside >= share * stats[:, cv2.CC_STAT_AREA]

    return _pieces(candidates, keep) if clear.any() else np.zeros_like(candidates)


def at_the_edge(mask: Mask) -> Mask:
    """Keep the pieces that touch an edge of the image."""

    def keep(labels: Any, _: Any) -> Any:
        edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        return np.bincount(edge, minlength=labels.max() + 1) > 0

    return _pieces(mask, keep) if mask.any() else mask


def _pieces(mask: Mask, keep: Callable[[Any, Any], Any]) -> Mask:
    """Return the pieces for which `keep(labels (h, w), stats (pieces, 5))` is True."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    kept = keep(labels, stats)
    kept[0] = False  # the background
    return np.asarray(kept[labels], bool)


def grown(mask: Mask, radius_px: float) -> Mask:
    """Dilate a mask by a disc."""
    side = 2 * round(radius_px) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)
