"""Stage 2, evaluate: intervals and p values of AUCs and of their differences, without resampling.

Each patient's influence gives a variance for given models (`spread`). But cross-validated models
and their errors rest on the same patients: each of two patients of different folds is tested by a
model that learned from the other. For useless predictors, whose figure is a degenerate U-statistic
(Hoeffding, Annals of Mathematical Statistics 19(3), 1948), this doubles the variance; a predictor
whose order of patients does not hang on whom it was trained with has none of it. And repeats make
a figure steadier, but tell no more of other patients. So `trained_variance` is the larger of

- that of one round;
- that of the mean over the rounds, once for an AUC of 1 and twice for one of 0.5. In between, the
  second part falls with the square of the distance from 1 for an AUC, which is that of the models
  that were trained, and linearly for a difference, which is one of trainings
  (`SHARED_BY_DIFFERENCES`).

The interval of an AUC is that of Newcombe, which depends on the AUC and the numbers of patients
alone, with his variance times the factor by which the one above differs from it (`area_estimate`).
A limit is where a value that were true would be just compatible with the figure. So it exists at
an AUC of 1, and near it one misplaced patient does not stretch it, as it does an interval on the
logit scale.

What was tried and left, and how often these intervals contain the truth, stands in docs/coverage.md
(`benchmarks/coverage.py`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit

from her2.core.types import Floats
from her2.evaluation.areas import Area

ASSUMED_MISPLACED = 1.0
ASSUMED_FACTOR = 1.75
"""What an interval assumes beside what it sees: so many misplaced patients, with so many times
Newcombe's variance. His is that of exponential scores. With a long tail, or where some patients
look like the other class, it is 2 to 4 times as much, which an AUC near 1 does not show. 1.5 times
was too little for skewed scores; with half a patient, or more than 2 times, another pair in the
wrong order could raise the lower limit of a 95 % interval."""
SHARED_BY_DIFFERENCES = 0.8
"""What shared patients add to the variance of a difference of useless models, as a part of it. In
simulation it is 0.3 to 0.65 with one round and 0.8 to 1.05 with five."""
LEAST_COMPARED = 5
"""Number of patients per group below which a difference has no interval and no p value."""
NO_VARIANCE = 1e-15
"""What rounding may leave of a variance of 0."""


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


def trained_variance(area: Area, shared: float) -> float:
    """Return the variance of an AUC, or of a difference of AUCs, of cross-validated models.

    With a single fixed test set it is that for given models.

    Args:
        area: the AUC or difference.
        shared: what patients who train and test add to the variance of the mean over the rounds,
            as a part of it.
    """
    variance = spread(area)[0]
    if area.folds == 1:
        return variance
    one_round = float(_group_variances(area, area.influence[area.defined])[0].sum())
    return max(one_round, (1 + shared) * variance)


def useless(level: float) -> float:
    """Return how useless models of an AUC are: 1 for 0.5 and less, 0 for 1."""
    return min(1.0, 2 * (1 - level))


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

    It is that of Newcombe (`newcombe`) with his variance times a factor: `trained_variance` over
    his at the AUC. Of few misplaced patients this factor is unreliable, and of none it is 0. So it
    is averaged with `ASSUMED_FACTOR`, and counts for as many patients as are misplaced, of
    m n / (m + n) in all (the smaller group, where the other is much larger). The limit on the side
    of the nearer bound has the larger of that mean and the factor alone: one patient of six who is
    far off shows that there are such patients.
    """
    if area.reason:
        return Estimate(math.nan, note=area.reason)
    first, second = (int(size) for size in area.sizes)
    if min(first, second) < 2:
        return _without_interval(area, "interval not defined: a side has 1 patient")
    value = area.value
    variance = trained_variance(area, useless(area.level) ** 2)
    if not variance > NO_VARIANCE and 0 < value < 1:
        return _without_interval(area, "interval not defined: the predictions do not vary")
    far, near = _factors(value, variance, first, second)
    factors = (far, near) if value >= 0.5 else (near, far)
    return _with_interval(area, *newcombe(value, first, second, confidence, factors))


def _factors(value: float, variance: float, first: int, second: int) -> tuple[float, float]:
    """Return the factors of Newcombe's variance for the farther and the nearer bound."""
    misplaced = first * second / (first + second) * min(value, 1 - value)
    if not misplaced > 0:
        return ASSUMED_FACTOR, ASSUMED_FACTOR
    seen = variance / newcombe_variance(value, first, second)
    weighed = misplaced * seen + ASSUMED_MISPLACED * ASSUMED_FACTOR
    mean = weighed / (misplaced + ASSUMED_MISPLACED)
    return mean, max(mean, seen)


def mean_estimate(
    area: Area, parts: Sequence[Area], confidence: float, weights: Floats | None = None
) -> Estimate:
    """Return the mean of the classes' AUCs (the macro AUC) with its interval.

    Each limit is as far from the mean as the limits of the classes' intervals add up to (MOVER:
    Zou and Donner, Statistics in Medicine 27(10), 2008), with the correlations of the classes' AUCs
    in one round.

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
    ends = [area_estimate(part, confidence) for part in parts]
    if all(math.isnan(one.low) for one in ends):
        return _without_interval(area, "interval not defined: the predictions do not vary")
    shares = np.full(len(parts), 1 / len(parts)) if weights is None else weights
    correlations = _correlations(area, parts)
    below, above = (
        # A class whose predictions do not vary adds nothing.
        added_reach(shares * np.nan_to_num(reaches), correlations)
        for reaches in np.array([(one.value - one.low, one.high - one.value) for one in ends]).T
    )
    return _with_interval(area, max(area.value - below, 0.0), min(area.value + above, 1.0))


def _correlations(area: Area, parts: Sequence[Area]) -> Floats:
    """Return the correlations of the classes' AUCs in one round (c, c).

    Where all patients of a class are in place it is 1 / (c - 1): two classes have the same AUC, and
    the more there are, the less two of them have in common. In simulation of four classes it is
    about 0.1.
    """
    influence = np.stack([part.influence[area.defined] for part in parts])
    shared = np.zeros((len(parts), len(parts)))
    for group in np.unique(area.groups[area.groups >= 0]):
        own = influence[..., area.groups == group]
        own = own - own.mean(axis=-1, keepdims=True)
        size = own.shape[-1]
        shared += size / (size - 1) * np.einsum("irp,jrp->ij", own, own)
    errors = np.sqrt(np.diag(shared))
    scale = np.outer(errors, errors)
    unknown = np.full_like(shared, 1 / max(len(parts) - 1, 1))
    found: Floats = np.divide(shared, scale, out=unknown, where=scale > NO_VARIANCE)
    np.fill_diagonal(found, 1.0)
    return found


def added_reach(reaches: Floats, correlations: Floats) -> float:
    """Return how far the interval of a sum reaches, from the reaches of its parts (c,)."""
    return math.sqrt(max(float(reaches @ correlations @ reaches), 0.0))


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
    variance = trained_variance(area, SHARED_BY_DIFFERENCES * useless(area.level))
    freedom = spread(area)[1]
    if not variance > NO_VARIANCE:
        return _without_interval(
            area, "no interval or p value: the difference is the same for every patient"
        )
    error = math.sqrt(variance)
    reach = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    value = area.value
    p = 2 * float(stdtr(freedom, -abs(value) / error))
    return Estimate(value, value - reach, value + reach, p, *_range(area))


def newcombe(
    value: float,
    first: int,
    second: int,
    confidence: float,
    factors: tuple[float, float] = (1.0, 1.0),
) -> tuple[float, float]:
    """Return the interval of an AUC of two groups by method 5 of Newcombe.

    It holds the values whose own standard error reaches the observed one. Source: Newcombe,
    Statistics in Medicine 25(4), 2006, part 2.

    Args:
        value: the AUC.
        first, second: number of patients on each side.
        confidence: confidence level.
        factors: of the variance, for the lower and the upper limit; 1 is Newcombe's interval.
    """
    critical = float(ndtri((1 + confidence) / 2))

    def limit(outer: float, factor: float) -> float:
        reach = critical * math.sqrt(factor)
        return _crossing(
            lambda true: (
                abs(value - true) - reach * math.sqrt(newcombe_variance(true, first, second))
            ),
            outer,
            value,
        )

    return limit(0.0, factors[0]), limit(1.0, factors[1])


def newcombe_variance(true: float, first: int, second: int) -> float:
    """Return the variance of an AUC of two groups by method 5 of Newcombe.

    It is that of Hanley and McNeil for exponential scores, with the mean of both sizes for each.
    """
    pairs = (first + second) / 2 - 1
    mixed = 1 + pairs * ((1 - true) / (2 - true) + true / (1 + true))
    return true * (1 - true) * mixed / (first * second)


def _crossing(gap: Callable[[float], float], outer: float, inner: float) -> float:
    """Return where `gap` changes its sign between a bound and the observed value."""
    from scipy.optimize import brentq

    inner = min(max(inner, 1e-9), 1 - 1e-9)  # at a bound itself the standard error is 0
    return float(brentq(gap, outer, inner)) if gap(outer) > 0 else outer


def _with_interval(area: Area, low: float, high: float) -> Estimate:
    lowest, highest = _range(area)
    return Estimate(area.value, low, high, lowest=lowest, highest=highest)


def _without_interval(area: Area, note: str) -> Estimate:
    lowest, highest = _range(area)
    return Estimate(area.value, lowest=lowest, highest=highest, note=note)


def _range(area: Area) -> tuple[float, float]:
    found = area.rounds[area.defined]
    return float(found.min()), float(found.max())
