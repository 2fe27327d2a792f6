"""Stage 2, evaluate: intervals and p values of AUCs and of their differences, without resampling.

The variance is that of one round, averaged over the rounds: repeats and seeds share their patients,
so more of them make a figure steadier but do not tell more about other patients. Every factor and
limit of this module was set by simulation (`benchmarks/coverage.py`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit, stdtr, stdtrit

from her2.evaluation.areas import Area

SHARED_TRAINING = 1.15
"""Factor on the standard error of a cross-validated AUC: models of different folds share most of
their training patients, which the test rows alone do not show."""
SHARED_TRAINING_PAIRED = 1.25
"""The same for the difference of two models. What test rows add to its variance is smaller, since
both see the same patients, so the part of training is larger."""
FEW_MISPLACED = 3.0
"""An AUC of which fewer patients of the smaller side are misplaced is near its bound. A variance
estimated from so few is unreliable, or 0."""
LEAST_COMPARED = 5
"""Number of patients per group below which a difference has no interval and no p value."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval.

    Attributes:
        value: mean over the rounds.
        low, high: limits of the interval.
        p: two-sided p value of a difference being 0; NaN for an AUC.
        lowest, highest: the lowest and highest round.
        note: why a value or interval is not defined; "" if they are.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    lowest: float = math.nan
    highest: float = math.nan
    note: str = ""


def spread(area: Area) -> tuple[float, float]:
    """Return the variance of one round of an AUC, and its degrees of freedom.

    Patients are exchangeable within their group. The degrees of freedom are those of a sum of
    group variances (Satterthwaite, Biometrics Bulletin 2(6), 1946). Both are NaN if a group has one
    patient.
    """
    influence = area.influence[area.defined]
    parts, freedoms = [], []
    for group in np.unique(area.groups[area.groups >= 0]):
        own = influence[:, area.groups == group]
        count = own.shape[1]
        if count < 2:
            return math.nan, math.nan
        parts.append(float(count * own.var(axis=1, ddof=1).mean()))
        freedoms.append(count - 1)
    total = sum(parts)
    if not total > 0:
        return total, math.nan
    return total, total**2 / sum(part**2 / free for part, free in zip(parts, freedoms, strict=True))


def area_estimate(area: Area, confidence: float) -> Estimate:
    """Return an AUC of two groups with its interval.

    The interval is symmetric on the logit scale, with Student's t. Where fewer than
    `FEW_MISPLACED` patients of the smaller group are misplaced, it is widened to contain that of
    Newcombe, which also exists at an AUC of 0 or 1.
    """
    if area.reason:
        return Estimate(math.nan, note=area.reason)
    first, second = (int(size) for size in area.sizes)
    fewest = min(first, second)
    if fewest < 2:
        return _without_interval(area, "interval not defined: a side has 1 patient")
    value = area.value
    low, high = _logit_limits(area, confidence)
    if math.isnan(low) and 0 < value < 1:
        return _without_interval(area, "interval not defined: the predictions do not vary")
    if fewest * min(value, 1 - value) < FEW_MISPLACED:
        ends = newcombe(value, first, second, confidence)
        low, high = float(np.fmin(low, ends[0])), float(np.fmax(high, ends[1]))
    return _with_interval(area, low, high)


def mean_estimate(area: Area, parts: Sequence[Area], confidence: float) -> Estimate:
    """Return the mean of AUCs (the macro AUC) with its interval.

    As `area_estimate`; where almost no patient of a class is misplaced, the interval is widened to
    contain the mean of the classes' limits, as if the classes erred together.
    """
    if area.reason:
        return Estimate(math.nan, note=area.reason)
    if area.sizes.min() < 2:
        return _without_interval(area, "interval not defined: a class has 1 patient")
    low, high = _logit_limits(area, confidence)
    near = any(part.sizes.min() * min(part.value, 1 - part.value) < FEW_MISPLACED for part in parts)
    if near:
        ends = [area_estimate(part, confidence) for part in parts]
        low = float(np.fmin(low, np.mean([one.low for one in ends])))
        high = float(np.fmax(high, np.mean([one.high for one in ends])))
    if math.isnan(low):
        return _without_interval(area, "interval not defined: the predictions do not vary")
    return _with_interval(area, low, high)


def difference_estimate(area: Area, confidence: float) -> Estimate:
    """Return a difference of AUCs with its interval and p value, by Student's t.

    There are none for fewer than `LEAST_COMPARED` patients in a group, and where no resample of
    the patients could change the difference.
    """
    if area.reason:
        return Estimate(math.nan, note=area.reason)
    if area.sizes.min() < LEAST_COMPARED:
        return _without_interval(
            area, f"no interval or p value: fewer than {LEAST_COMPARED} patients of a class or side"
        )
    variance, freedom = spread(area)
    if not variance > 1e-15:
        return _without_interval(
            area, "no interval or p value: the difference is the same for every patient"
        )
    error = _factor(area, SHARED_TRAINING_PAIRED) * math.sqrt(variance)
    reach = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    value = area.value
    p = 2 * float(stdtr(freedom, -abs(value) / error))
    return Estimate(value, value - reach, value + reach, p, *_range(area))


def newcombe(value: float, first: int, second: int, confidence: float) -> tuple[float, float]:
    """Return the interval of an AUC of two groups by method 5 of Newcombe.

    It holds the values whose own standard error reaches the observed one. Source: Newcombe,
    Statistics in Medicine 25(4), 2006, part 2.

    Args:
        value: the AUC.
        first, second: number of patients on each side.
        confidence: confidence level.
    """
    critical = float(stdtrit(math.inf, (1 + confidence) / 2))

    def gap(true: float) -> float:
        pairs = (first + second) / 2 - 1
        mixed = 1 + pairs * ((1 - true) / (2 - true) + true / (1 + true))
        return abs(value - true) - critical * math.sqrt(
            true * (1 - true) * mixed / (first * second)
        )

    return _crossing(gap, 0.0, value), _crossing(gap, 1.0, value)


def _crossing(gap: Callable[[float], float], outer: float, inner: float) -> float:
    """Return where `gap` changes its sign between a bound and the observed value."""
    from scipy.optimize import brentq

    inner = min(max(inner, 1e-9), 1 - 1e-9)  # at a bound itself the standard error is 0
    return float(brentq(gap, outer, inner)) if gap(outer) > 0 else outer


def _logit_limits(area: Area, confidence: float) -> tuple[float, float]:
    value = area.value
    variance, freedom = spread(area)
    if not variance > 1e-15 or not 0 < value < 1:
        return math.nan, math.nan
    error = _factor(area, SHARED_TRAINING) * math.sqrt(variance) / (value * (1 - value))
    reach = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    return float(expit(logit(value) - reach)), float(expit(logit(value) + reach))


def _factor(area: Area, cross_validated: float) -> float:
    """Return the factor on the standard error; a single fixed test set has none."""
    return cross_validated if area.folds > 1 else 1.0


def _with_interval(area: Area, low: float, high: float) -> Estimate:
    lowest, highest = _range(area)
    return Estimate(area.value, low, high, lowest=lowest, highest=highest)


def _without_interval(area: Area, note: str) -> Estimate:
    lowest, highest = _range(area)
    return Estimate(area.value, lowest=lowest, highest=highest, note=note)


def _range(area: Area) -> tuple[float, float]:
    found = area.rounds[area.defined]
    return float(found.min()), float(found.max())
