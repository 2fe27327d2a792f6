"""Stage 2, evaluate: AUC, its variance and covariance without resampling (DeLong).

Sources: DeLong, DeLong and Clarke-Pearson, Biometrics 44(3), 1988; the computation by ranks after
Sun and Xu, IEEE Signal Processing Letters 21(11), 2014. Rows must be independent, which means one
per patient.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from her2.core.types import Floats


@dataclass(frozen=True, slots=True)
class AreaTest:
    """Two AUCs on the same patients, and the interval and two-sided p value of their difference."""

    first: float
    second: float
    low: float
    high: float
    p: float

    @property
    def difference(self) -> float:
        """Difference of the AUCs, first minus second."""
        return self.first - self.second


def ranks(scores: Floats) -> Floats:
    """Return ranks from 1 within each row of scores (m, n); equal scores share their mean rank."""
    found = np.empty(scores.shape)
    for row, own in zip(found, scores, strict=True):
        ordered = np.sort(own)
        before, until = (np.searchsorted(ordered, own, side) for side in ("left", "right"))
        row[:] = (before + until + 1) / 2
    return found


def covariance(positive: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
    """Return the AUCs of several scores of the same rows, and their covariance.

    Args:
        positive: (n,), True for positive rows.
        scores: (m, n), one row per model.

    Returns:
        (m,) and (m, m). Both are NaN without positives or negatives. The covariance is also NaN
        with only one positive or one negative.
    """
    count = len(scores)
    ups, downs = int(positive.sum()), int((~positive).sum())
    if ups == 0 or downs == 0:
        return np.full(count, np.nan), np.full((count, count), np.nan)
    overall = ranks(scores)
    # Share of negatives below each positive, and share of positives above each negative.
    above = (overall[:, positive] - ranks(scores[:, positive])) / downs
    below = 1 - (overall[:, ~positive] - ranks(scores[:, ~positive])) / ups
    areas: Floats = above.mean(axis=1)
    if ups == 1 or downs == 1:
        return areas, np.full((count, count), np.nan)
    spread = np.atleast_2d(np.cov(above)) / ups + np.atleast_2d(np.cov(below)) / downs
    return areas, spread


def area_interval(
    positive: NDArray[np.bool_], scores: Floats, confidence: float
) -> tuple[float, float, float]:
    """Return the AUC of scores (n,) and its interval, from the logit scale to stay within 0 to 1.

    Returns:
        area, low, high; the limits are NaN where the variance is 0 (an AUC of 0 or 1) or undefined.
    """
    areas, spread = covariance(positive, scores[None])
    area, variance = float(areas[0]), float(spread[0, 0])
    if not variance > 0 or not 0 < area < 1:
        return area, math.nan, math.nan
    centre = math.log(area / (1 - area))
    reach = float(ndtri((1 + confidence) / 2)) * math.sqrt(variance) / (area * (1 - area))
    low, high = (1 / (1 + math.exp(-end)) for end in (centre - reach, centre + reach))
    return area, low, high


def compare_areas(
    positive: NDArray[np.bool_], first: Floats, second: Floats, confidence: float
) -> AreaTest:
    """Test the difference of the AUCs of two scores (n,) of the same rows.

    `p` and the limits are NaN where the variance of the difference is not defined. If both scores
    give the same order, the interval is 0 to 0 and p is 1.
    """
    areas, spread = covariance(positive, np.stack([first, second]))
    variance = float(spread[0, 0] + spread[1, 1] - 2 * spread[0, 1])
    difference = float(areas[0] - areas[1])
    if variance <= 1e-15 and difference == 0:
        return AreaTest(float(areas[0]), float(areas[1]), 0.0, 0.0, 1.0)
    if not variance > 1e-15:
        return AreaTest(float(areas[0]), float(areas[1]), math.nan, math.nan, math.nan)
    error = math.sqrt(variance)
    reach = float(ndtri((1 + confidence) / 2)) * error
    p = 2 * float(ndtr(-abs(difference) / error))
    return AreaTest(float(areas[0]), float(areas[1]), difference - reach, difference + reach, p)
