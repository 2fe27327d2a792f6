"""Stage 2, evaluate: resampling of patients, and the intervals and p values made of it.

Resamples are `weights` (b, n): how often each row counts in each of b resamples. A row of ones
gives the figure itself, by the same code (`her2.metrics`).
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

# scipy.stats has these too, and takes half a second to import.
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from her2.core.types import Floats, Ints

BLOCK_VALUES = 1_000_000
"""Weights in memory at a time: 8 MB, and some such arrays beside it."""


def weight_blocks(patients: Ints, target: Ints, *, resamples: int, seed: int) -> Iterator[Floats]:
    """Bootstrap over patients, stratified by class: how often each row counts, a block at a time.

    Patients are drawn with replacement within their class, and bring all of their rows. The draws
    do not depend on how large the blocks are.

    Args:
        patients: (n,) patient of each row, 0 to p - 1.
        target: (n,) class of each row; a patient has one class.
        resamples: in all.
        seed: of the draws.

    Yields:
        (b, n), until they are `resamples` rows together.
    """
    count = int(patients.max()) + 1
    label = np.zeros(count, int)
    label[patients] = target
    members = {int(value): np.flatnonzero(label == value) for value in np.unique(label)}
    streams = {value: np.random.default_rng([seed, value]) for value in members}
    step = max(1, BLOCK_VALUES // max(len(patients), 1))
    for first in range(0, resamples, step):
        size = min(step, resamples - first)
        draws = np.empty((size, count))
        for value, group in members.items():
            chosen = streams[value].integers(0, len(group), size=(size, len(group)))
            chosen += np.arange(size)[:, None] * len(group)
            draws[:, group] = np.bincount(chosen.ravel(), minlength=size * len(group)).reshape(
                size, -1
            )
        yield draws[:, patients]


def bootstrapped(
    measure: Callable[[Floats], Floats],
    patients: Ints,
    target: Ints,
    *,
    resamples: int,
    seed: int,
) -> Floats:
    """What `measure`, (b, n) weights -> (b, k) figures, gives of all rows and of each resample.

    Returns:
        (1 + resamples, k), the point figures first. Without rows all are NaN.
    """
    ones = np.ones((1, len(target)))
    point = measure(ones)
    if not len(target):
        return np.full((1 + resamples, point.shape[1]), np.nan)
    blocks = weight_blocks(patients, target, resamples=resamples, seed=seed)
    return np.concatenate([point, *(measure(weights) for weights in blocks)])


def interval(values: Floats, confidence: float, sizes: Sequence[int]) -> tuple[float, float]:
    """Expanded percentile interval; NaN when a resample is undefined, or a group has one patient.

    Percentiles of resamples are too close together where groups are small: resampling n patients
    gives (n - 1) / n of the variance, and its tails are normal where Student's are wider. So the
    percentiles are those of an interval wider by as much.

    Source: Hesterberg, The American Statistician 69(4), 2015.

    Args:
        values: (b,) of the resamples.
        confidence: of the interval.
        sizes: patients of each group that the figure sets against each other; see `expansion`.
    """
    if np.isnan(values).any() or min(sizes, default=0) < 2:
        return float("nan"), float("nan")
    factor, freedom = expansion(sizes)
    tail = ndtr(-factor * stdtrit(freedom, (1 + confidence) / 2))
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def unvarying(values: Floats) -> str:
    """Why resamples (b,) say nothing of how a figure could vary: all of them are the same.

    So it is with an AUC of 1: no resample mixes what is apart, and "1 to 1" would be certainty.
    """
    same = not np.isnan(values).any() and np.ptp(values) <= 1e-12
    return "interval not defined: every resample gives the same" if same else ""


def two_sided(values: Floats, sizes: Sequence[int]) -> float:
    """p of the resamples of a difference being 0, two-sided, to go with `interval`.

    The share of resamples on the far side of zero, counting one more so that it is never 0, taken
    for a normal tail and expanded.
    """
    tail = min(np.count_nonzero(values <= 0), np.count_nonzero(values >= 0))
    return tail_p((tail + 1) / (len(values) + 1), sizes)


def tail_p(share: float, sizes: Sequence[int]) -> float:
    """The two-sided p of a share of resamples on one side of zero."""
    if min(sizes, default=0) < 2:
        return float("nan")
    factor, freedom = expansion(sizes)
    return float(2 * stdtr(freedom, ndtri(min(share, 0.5)) / factor))


def expansion(sizes: Sequence[int]) -> tuple[float, float]:
    """How much too narrow resamples within groups are, and Student's degrees of freedom.

    Both as of a contrast of the groups' means with equal variance of a patient (Welch and
    Satterthwaite: Biometrika 34, 1947; Biometrics Bulletin 2, 1946).
    """
    counts = np.asarray(sizes, np.float64)
    shares = 1 / counts
    factor = np.sqrt((shares * counts / (counts - 1)).sum() / shares.sum())
    freedom = shares.sum() ** 2 / (shares**2 / (counts - 1)).sum()
    return float(factor), float(freedom)
