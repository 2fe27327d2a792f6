"""`her2 view`: the outline of a note, checked before it is written to a file that others read."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_CORNERS = 2000
"""Every pair of sides is compared."""
NEAR = 0.1
"""Outlines may leave a slide by this share of its longer side."""
_STEPS = 100
"""Corners are at multiples of 1/100 px, so that crossings are decided in whole numbers."""
_FARTHEST_PX = 1e7
_ROWS = 256


class OutlineRefusedError(Exception):
    """An outline that is not written; the message says why, and what to do."""


def check_outline(points: Any, size_px: Sequence[int] | None) -> list[list[float]]:
    """Return the outline of a region as a closed ring of [x, y], of 1/100 px.

    Args:
        points: what was sent: a list of [x, y] in level-0 px, closed or not.
        size_px: width and height of the slide, None where not known.

    Raises:
        OutlineRefusedError: it has no area or too many corners, crosses itself, or is elsewhere.
    """
    ring = _corners(points)
    if len(ring) > MOST_CORNERS:
        raise OutlineRefusedError(
            f"The outline has {len(ring):,} corners, more than {MOST_CORNERS:,}; draw fewer."
        )
    if size_px is not None:
        _check_place(ring, size_px)
    exact = np.rint(ring * _STEPS).astype(np.int64)
    exact = exact[(exact != np.roll(exact, -1, axis=0)).any(axis=1)]
    if len(exact) < 3:
        raise OutlineRefusedError(
            "The outline has fewer than 3 different corners; draw a larger one."
        )
    if crosses_itself(exact):
        raise OutlineRefusedError(
            "The outline crosses or touches itself, so that it is not clear what is inside. Draw "
            "it again, or as two regions."
        )
    found: list[list[float]] = (exact / _STEPS).tolist()
    return [*found, found[0]]


def _corners(points: Any) -> NDArray[np.float64]:
    try:
        # float() first: numpy would also take texts.
        flat = [(float(x), float(y)) for x, y in points] if isinstance(points, list) else []
        if any(isinstance(value, str) for point in points for value in point):
            raise TypeError
    except (TypeError, ValueError, OverflowError):
        raise OutlineRefusedError(
            "The outline is no list of corners, each of two numbers."
        ) from None
    ring = np.array(flat, np.float64).reshape(-1, 2)
    if not np.isfinite(ring).all() or (np.abs(ring) > _FARTHEST_PX).any():
        raise OutlineRefusedError("A corner of the outline is on no slide.")
    return ring


def _check_place(ring: NDArray[np.float64], size_px: Sequence[int]) -> None:
    size, margin = np.array(size_px, np.float64), NEAR * max(size_px)
    if not len(ring):
        return
    beyond = (ring < -margin).any() or (ring > size + margin).any()
    if beyond or (ring.max(axis=0) <= 0).any() or (ring.min(axis=0) >= size).any():
        raise OutlineRefusedError(
            f"The outline is not on the slide, which has {size_px[0]:,} x {size_px[1]:,} px."
        )


def crosses_itself(ring: NDArray[np.int64]) -> bool:
    """Return whether an open ring of different neighbours (n, 2) crosses, touches or folds back."""
    begin, end = ring, np.roll(ring, -1, axis=0)
    after = np.roll(end, -1, axis=0)
    along, onward = end - begin, after - end
    flat = along[:, 0] * onward[:, 1] == along[:, 1] * onward[:, 0]
    if (flat & ((along * onward).sum(axis=1) < 0)).any():
        return True
    low, high = np.minimum(begin, end), np.maximum(begin, end)
    number = np.arange(len(ring))
    for start in range(0, len(ring), _ROWS):
        part = slice(start, start + _ROWS)
        beside = (low[part, None] <= high[None]).all(axis=2) & (high[part, None] >= low[None]).all(
            axis=2
        )
        gap = (number[None] - number[part, None]) % len(ring)
        first, second = np.nonzero(beside & (gap > 1) & (gap < len(ring) - 1))
        first += start
        a, b, c, d = begin[first], end[first], begin[second], end[second]
        meets = (_side(a, b, c) * _side(a, b, d) <= 0) & (_side(c, d, a) * _side(c, d, b) <= 0)
        if meets.any():
            return True
    return False


def _side(a: NDArray[np.int64], b: NDArray[np.int64], c: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return on which side of lines through a and b points c are: -1, 0 or 1."""
    found: NDArray[np.int64] = np.sign(
        (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    )
    return found
