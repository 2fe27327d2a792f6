"""Stage 2, evaluate: intervals and p values of AUCs and of their differences, without resampling.

Each patient's influence gives a variance for given models (`spread`). But cross-validated models
and their errors rest on the same patients: each of two patients of different folds is tested by a
model that learned from the other. `standard_error` therefore takes the smaller of two larger ones:

- that of one round, and more for the luck of how patients were divided, of which several repeats
  see the mean: they make a figure steadier, but tell no more of other patients;
- 2.4 times that of the mean over the rounds. For useless predictors, whose figure is a degenerate
  U-statistic (Hoeffding, Annals of Mathematical Statistics 19(3), 1948), the true one is twice
  that, and intervals of twice were still below 0.5 in 5 to 6 % of studies.

Tried and left, alone: the first (where four of five rounds were perfect, limits were as wide as 0.3
to 1 on the logit scale); a multiple of the second that grows with the rounds (good models covered
99 to 100 %).

Every factor and limit of this module was set by simulation (`benchmarks/coverage.py`), whose tables
are in docs/coverage.md.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit, stdtr, stdtrit

from her2.core.types import Floats
from her2.evaluation.areas import Area

DIVIDED = 0.6
"""Part that the division into folds adds to the variance of one round."""
COUNTED_TWICE = 2.4
"""Most that shared patients add: times the variance of the mean over the rounds."""
FEW_MISPLACED = 2.0
"""An AUC of which fewer patients of the smaller side are misplaced is near its bound (a mean of
AUCs: fewer in all classes together). A variance estimated from so few is unreliable, or 0. Limits
of 1 to 4.5 did not differ in the coverage of classes; a mean that was widened as soon as one class
was near its bound had intervals up to twice as wide, which covered 99 to 100 %."""
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
    """Return the variance of an AUC for given models, and its degrees of freedom.

    Patients are exchangeable within their group. The degrees of freedom are those of a sum of
    group variances (Satterthwaite, Biometrics Bulletin 2(6), 1946). Both are NaN if a group has one
    patient.
    """
    parts, sizes = _group_variances(area, area.influence[area.defined].mean(axis=0)[None])
    total = float(parts.sum())
    if not total > 0:
        return total, math.nan
    return total, float(total**2 / (parts**2 / (sizes - 1)).sum())


def standard_error(area: Area) -> tuple[float, float]:
    """Return the standard error of an AUC, and its degrees of freedom; both NaN without any.

    With several folds it is that of cross-validated models (see above), with a single fixed test
    set that of the given models.
    """
    variance, freedom = spread(area)
    if area.folds > 1:
        one_round = float(_group_variances(area, area.influence[area.defined])[0].sum())
        divided = (1 + DIVIDED / area.divisions) * one_round
        variance = min(divided, COUNTED_TWICE * variance)
    if not variance > 1e-15:
        return math.nan, math.nan
    return math.sqrt(variance), freedom


def _group_variances(area: Area, influence: Floats) -> tuple[Floats, Floats]:
    """Return what each group adds to the variance, as the mean of rounds (r, p), and its size."""
    parts, sizes = [], []
    for group in np.unique(area.groups[area.groups >= 0]):
        own = influence[:, area.groups == group]
        size = own.shape[1]
        parts.append(size * own.var(axis=1, ddof=1).mean() if size > 1 else math.nan)
        sizes.append(size)
    return np.array(parts), np.array(sizes, np.float64)


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
    if _misplaced(area) < FEW_MISPLACED:
        ends = newcombe(value, first, second, confidence)
        low, high = float(np.fmin(low, ends[0])), float(np.fmax(high, ends[1]))
    return _with_interval(area, low, high)


def mean_estimate(
    area: Area, parts: Sequence[Area], confidence: float, weights: Floats | None = None
) -> Estimate:
    """Return the mean of the classes' AUCs (the macro AUC) with its interval.

    As `area_estimate`; where fewer than `FEW_MISPLACED` patients of all classes are misplaced, the
    interval is widened to contain the one that the classes' own intervals add up to
    (`added_reach`).

    Args:
        area: the mean.
        parts: the AUC of each class.
        confidence: confidence level.
        weights: of each class in the mean; equal if left out.
    """
    if area.reason:
        return Estimate(math.nan, note=area.reason)
    if area.sizes.min() < 2:
        return _without_interval(area, "interval not defined: a class has 1 patient")
    low, high = _logit_limits(area, confidence)
    if sum(_misplaced(part) for part in parts) < FEW_MISPLACED:
        ends = [area_estimate(part, confidence) for part in parts]
        shares = np.full(len(parts), 1 / len(parts)) if weights is None else weights
        value = area.value
        below = added_reach(shares * np.array([one.value - one.low for one in ends]))
        above = added_reach(shares * np.array([one.high - one.value for one in ends]))
        low, high = float(np.fmin(low, value - below)), float(np.fmax(high, value + above))
        low, high = max(low, 0.0), min(high, 1.0)
    if math.isnan(low):
        return _without_interval(area, "interval not defined: the predictions do not vary")
    return _with_interval(area, low, high)


def added_reach(reaches: Floats) -> float:
    """Return how far the interval of a sum reaches, from the reaches of its parts (c,).

    Source: Zou and Donner, Statistics in Medicine 27(10), 2008 (MOVER), with a correlation of
    1 / (c - 1) between classes: two classes have the same AUC, and the more there are, the less
    two of them have in common. In simulation of four classes it is about 0.1.
    """
    correlation = 1 / max(len(reaches) - 1, 1)
    alone = float((reaches**2).sum())
    return math.sqrt(alone + correlation * (float(reaches.sum()) ** 2 - alone))


def difference_estimate(area: Area, confidence: float) -> Estimate:
    """Return a difference of AUCs with its interval and p value, by Student's t.

    There are none for fewer than `LEAST_COMPARED` patients in a group, and where no patient has an
    influence on the difference.
    """
    if area.reason:
        return Estimate(math.nan, note=area.reason)
    if area.sizes.min() < LEAST_COMPARED:
        return _without_interval(
            area, f"no interval or p value: fewer than {LEAST_COMPARED} patients of a class or side"
        )
    error, freedom = standard_error(area)
    if math.isnan(error):
        return _without_interval(
            area, "no interval or p value: the difference is the same for every patient"
        )
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
    error, freedom = standard_error(area)
    if math.isnan(error) or not 0 < value < 1:
        return math.nan, math.nan
    reach = float(stdtrit(freedom, (1 + confidence) / 2)) * error / (value * (1 - value))
    return float(expit(logit(value) - reach)), float(expit(logit(value) + reach))


def _misplaced(area: Area) -> float:
    """Return how many patients of the smaller group are misplaced, as the AUC counts them."""
    return float(area.sizes.min() * min(area.value, 1 - area.value))


def _with_interval(area: Area, low: float, high: float) -> Estimate:
    lowest, highest = _range(area)
    return Estimate(area.value, low, high, lowest=lowest, highest=highest)


def _without_interval(area: Area, note: str) -> Estimate:
    lowest, highest = _range(area)
    return Estimate(area.value, lowest=lowest, highest=highest, note=note)


def _range(area: Area) -> tuple[float, float]:
    found = area.rounds[area.defined]
    return float(found.min()), float(found.max())
