"""Stage 2, evaluate: point figures and their bootstrap, vectorised over resamples.

Everything takes `weights` (b, n): how often each row counts in each of b resamples. Ones give the
point figure, and both come from the same code. scikit-learn is the reference in the tests.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

BLOCK_VALUES = 1_000_000
"""Weights in memory at a time: 8 MB, and some such arrays beside it."""


def auc(positive: Bools, scores: Floats, weights: Floats) -> Floats:
    """Area under the ROC curve as the share of concordant pairs, ties counting half.

    Args:
        positive: (n,).
        scores: (n,).
        weights: (b, n).

    Returns:
        (b,); NaN where a resample lacks positives or negatives.
    """
    return areas(positive, scores, weights)[0]


def average_precision(positive: Bools, scores: Floats, weights: Floats) -> Floats:
    """Area under the precision-recall curve, in steps: sum of (R_k - R_{k-1}) P_k.

    The definition is scikit-learn's `average_precision_score`. Chance gives the prevalence.

    Returns:
        (b,); NaN where a resample lacks positives or negatives.
    """
    return areas(positive, scores, weights)[1]


def areas(positive: Bools, scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """`auc` and `average_precision` at once: sorting the weights is most of the work of both."""
    order = np.argsort(-scores, kind="stable")
    # Equal scores form one group: within it, pairs count half, and no threshold lies in it.
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.inf))
    by_score = weights[:, order]
    up = by_score * positive[order]
    if len(starts) < len(scores):
        up = np.add.reduceat(up, starts, axis=1)  # (b, groups)
        by_score = np.add.reduceat(by_score, starts, axis=1)
    called, hit = np.cumsum(by_score, axis=1), np.cumsum(up, axis=1)
    total, ups = called[:, -1], hit[:, -1]
    pairs = ups * (total - ups)
    defined = pairs > 0
    # A negative of rank k has hit_k positives above it, less half of those with its own score.
    concordant = ((by_score - up) * (hit - up / 2)).sum(axis=1)
    precision = np.divide(hit, called, out=np.zeros_like(hit), where=called > 0)
    stepped = (up * precision).sum(axis=1)
    return (
        np.where(defined, concordant / np.where(defined, pairs, 1), np.nan),
        np.where(defined, stepped / np.where(defined, ups, 1), np.nan),
    )


def confusion(target: Ints, predicted: Ints, classes: int, weights: Floats) -> Floats:
    """Confusion matrices (b, c, c): rows are the true classes."""
    cells = np.zeros((len(target), classes * classes))
    cells[np.arange(len(target)), target * classes + predicted] = 1
    matrices: Floats = (weights @ cells).reshape(-1, classes, classes)
    return matrices


def balanced_accuracy(matrices: Floats) -> Floats:
    """Mean recall of the classes (b,); NaN where a class is absent."""
    hits = np.diagonal(matrices, axis1=1, axis2=2)
    result: Floats = _share(hits, matrices.sum(axis=2)).mean(axis=1)
    return result


def macro_f1(matrices: Floats) -> Floats:
    """Mean F1 of the classes (b,): 0 for one never predicted; NaN where a class is absent."""
    support = matrices.sum(axis=2)
    hits = np.diagonal(matrices, axis1=1, axis2=2)
    f1 = _share(2 * hits, support + matrices.sum(axis=1))
    result: Floats = np.where(support > 0, f1, np.nan).mean(axis=1)
    return result


def quadratic_kappa(matrices: Floats) -> Floats:
    """Cohen's kappa with quadratic weights (b,): agreement on ordered classes beyond chance.

    Source: Cohen, Psychological Bulletin 70(4), 1968.
    """
    distance = _steps(matrices.shape[1]) ** 2
    total = matrices.sum(axis=(1, 2))
    expected = matrices.sum(axis=2)[:, :, None] * matrices.sum(axis=1)[:, None, :]
    observed_cost = (matrices * distance).sum(axis=(1, 2))
    expected_cost = _share((expected * distance).sum(axis=(1, 2)), total)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected_cost > 0, 1 - observed_cost / expected_cost, np.nan)


def ordinal_mae(matrices: Floats) -> Floats:
    """Mean distance of predicted and true class (b,), in steps of the ordered classes."""
    return _share(
        (matrices * _steps(matrices.shape[1])).sum(axis=(1, 2)), matrices.sum(axis=(1, 2))
    )


def squared_errors(target: Ints, probabilities: Floats) -> Floats:
    """Each row's Brier score (n,): squared errors summed over the classes, 0 to 2.

    Source: Brier, Monthly Weather Review 78(1), 1950.
    """
    truth = np.eye(probabilities.shape[1])[target]
    result: Floats = ((probabilities - truth) ** 2).sum(axis=1)
    return result


def log_losses(target: Ints, probabilities: Floats) -> Floats:
    """Each row's negative log of its class's probability (n,); 0 counts as the least float step."""
    given = probabilities[np.arange(len(target)), target]
    return -np.log(np.clip(given, np.finfo(np.float64).eps, 1))


def mean(values: Floats, weights: Floats) -> Floats:
    """Weighted means (b,) of values (n,); NaN where nothing counts."""
    return _share(weights @ values, weights.sum(axis=1))


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
    tail = norm.sf(factor * student.ppf((1 + confidence) / 2, freedom))
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
    return float(2 * student.sf(norm.isf(min(share, 0.5)) / factor, freedom))


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


def _share(part: Floats, whole: Floats) -> Floats:
    """Part of whole; NaN where the whole is 0."""
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _steps(classes: int) -> Ints:
    return np.abs(np.arange(classes)[:, None] - np.arange(classes)[None, :])
