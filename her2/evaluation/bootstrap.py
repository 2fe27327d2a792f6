"""Stage 2, evaluate: bootstrap over patients, with its intervals.

Resamples are `weights` (b, n), which tell how often each row counts in each of b resamples. A row
of ones gives the figure of the sample itself, by the same code (`her2.metrics`).
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

# scipy.stats has these functions too, but takes half a second to import.
from scipy.special import ndtr, stdtrit

from her2.core.types import Floats, Ints

BLOCK_VALUES = 1_000_000
"""Number of weights in memory at a time: 8 MB, plus a few arrays of the same size."""


def weight_blocks(patients: Ints, target: Ints, *, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield the weights of a bootstrap over patients, stratified by class, in blocks.

    Patients are drawn with replacement within their class, and bring all of their rows. The draws
    do not depend on the size of the blocks.

    Args:
        patients: patient of each row (n,), 0 to p - 1.
        target: class of each row (n,); a patient has one class.
        resamples: total number of resamples.
        seed: seed of the draws.

    Yields:
        (b, n), which add up to `resamples` rows.
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
    """Measure all rows, then each resample; `measure` turns weights (b, n) into figures (b, k).

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
    """Return the expanded percentile interval of a bootstrap.

    In small groups the percentiles of resamples are too close together: resampling n patients gives
    (n - 1) / n of the variance, and normal tails instead of Student's wider ones. So percentiles
    are taken further out by that much. The limits are NaN when a resample is undefined or a group
    has only one patient.

    Source: Hesterberg, The American Statistician 69(4), 2015.

    Args:
        values: figures of the resamples (b,).
        confidence: confidence level of the interval.
        sizes: number of patients in each group that the figure contrasts; see `expansion`.
    """
    if np.isnan(values).any() or min(sizes, default=0) < 2:
        return float("nan"), float("nan")
    factor, freedom = expansion(sizes)
    tail = ndtr(-factor * stdtrit(freedom, (1 + confidence) / 2))
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def unvarying(values: Floats) -> str:
    """Return a note if all resamples (b,) are equal, which gives no interval; else "".

    This happens with an AUC of 1: perfect separation holds in every resample, and an interval of
    "1 to 1" would claim certainty.
    """
    same = not np.isnan(values).any() and np.ptp(values) <= 1e-12
    return "interval not defined: all resamples give the same value" if same else ""


def expansion(sizes: Sequence[int]) -> tuple[float, float]:
    """Return the factor by which intervals of resamples are too narrow, and Student's freedom.

    Both are those of a contrast of group means with equal variance per patient (Welch, Biometrika
    34, 1947; Satterthwaite, Biometrics Bulletin 2, 1946).
    """
    counts = np.asarray(sizes, np.float64)
    shares = 1 / counts
    factor = np.sqrt((shares * counts / (counts - 1)).sum() / shares.sum())
    freedom = shares.sum() ** 2 / (shares**2 / (counts - 1)).sum()
    return float(factor), float(freedom)
