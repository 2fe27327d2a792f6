"""Connected pieces of masks."""

import cv2
import numpy as np

from her2.core.types import Mask


def drop_small(mask: Mask, min_area_px: float) -> Mask:
    """Remove pieces (8-connected) of less than `min_area_px`."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_area_px
    keep[0] = False
    kept: Mask = keep[labels]
    return kept


def drop_short(mask: Mask, length_px: float) -> Mask:
    """Remove pieces whose bounding box has a diagonal of less than `length_px`."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    diagonal = np.hypot(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT])
    keep = diagonal >= length_px
    keep[0] = False
    kept: Mask = keep[labels]
    return kept


def with_share_of(clear: Mask, candidates: Mask, share: float) -> Mask:
    """Keep the pieces of `candidates` of which at least `share` is `clear`."""
    if not clear.any():
        return np.zeros_like(candidates)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        candidates.astype(np.uint8), connectivity=8
    )
    keep = np.bincount(labels[clear], minlength=count) >= share * stats[:, cv2.CC_STAT_AREA]
    keep[0] = False
    kept: Mask = keep[labels]
    return kept


def grown(mask: Mask, radius_px: float) -> Mask:
    """Dilate a mask by a disc."""
    side = 2 * round(radius_px) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)
