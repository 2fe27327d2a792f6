"""Stage 2, evaluate: point figures and their bootstrap, vectorised over resamples.

Everything takes `weights` (b, n): how often each row counts in each of b resamples. Ones give the
point figure, and both come from the same code. scikit-learn is the reference in the tests.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def auc(positive: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """Area under the ROC curve as the share of concordant pairs, ties counting half.

    Args:
        positive: (n,).
        scores: (n,).
        weights: (b, n).

    Returns:
        (b,); NaN where a resample lacks positives or negatives.
    """
    order = np.argsort(scores, kind="stable")
    # Equal scores form one group: within it, pairs count half.
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    sorted_weights, sorted_positive = weights[:, order], positive[order]
    up = np.add.reduceat(sorted_weights * sorted_positive, starts, axis=1)  # (b, groups)
    down = np.add.reduceat(sorted_weights * ~sorted_positive, starts, axis=1)
    below = np.cumsum(down, axis=1) - down
    with np.errstate(invalid="ignore"):
        concordant: Floats = (up * (below + down / 2)).sum(axis=1)
        pairs = up.sum(axis=1) * down.sum(axis=1)
        return np.where(pairs > 0, concordant / np.where(pairs > 0, pairs, 1), np.nan)


def confusion(target: NDArray[np.int64], predicted: NDArray[np.int64], classes: int,
              weights: Floats) -> Floats:  # fmt: skip
    """Confusion matrices (b, c, c): rows are the true classes."""
    cells = np.zeros((len(target), classes * classes))
    cells[np.arange(len(target)), target * classes + predicted] = 1
    matrices: Floats = (weights @ cells).reshape(-1, classes, classes)
    return matrices


def balanced_accuracy(matrices: Floats) -> Floats:
    """Mean recall of the classes (b,); NaN where a class is absent."""
    support = matrices.sum(axis=2)
    recall = np.divide(
        np.diagonal(matrices, axis1=1, axis2=2),
        support,
        out=np.full(support.shape, np.nan),
        where=support > 0,
    )
    result: Floats = recall.mean(axis=1)
    return result


def quadratic_kappa(matrices: Floats) -> Floats:
    """Cohen's kappa with quadratic weights (b,): agreement on ordered classes beyond chance.

    Source: Cohen, Psychological Bulletin 70(4), 1968.
    """
    classes = matrices.shape[1]
    distance = (np.arange(classes)[:, None] - np.arange(classes)[None, :]) ** 2
    total = matrices.sum(axis=(1, 2))
    expected = matrices.sum(axis=2)[:, :, None] * matrices.sum(axis=1)[:, None, :]
    observed_cost = (matrices * distance).sum(axis=(1, 2))
    expected_cost = (expected * distance).sum(axis=(1, 2)) / total
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected_cost > 0, 1 - observed_cost / expected_cost, np.nan)


def patient_weights(
    patients: NDArray[np.int64], target: NDArray[np.int64], *, resamples: int, seed: int
) -> Floats:
    """Bootstrap over patients, stratified by class: how often each row counts.

    Patients are drawn with replacement within their class, and bring all of their rows.

    Args:
        patients: (n,) patient of each row, 0 to p - 1.
        target: (n,) class of each row; a patient has one class.
        resamples: b.
        seed: of the draws.

    Returns:
        (b, n).
    """
    generator = np.random.default_rng(seed)
    count = int(patients.max()) + 1
    label = np.zeros(count, int)
    label[patients] = target
    draws = np.zeros((resamples, count))
    for value in np.unique(label):
        members = np.flatnonzero(label == value)
        draws[:, members] = generator.multinomial(
            len(members), np.full(len(members), 1 / len(members)), size=resamples
        )
    result: Floats = draws[:, patients]
    return result


def interval(values: Floats, confidence: float) -> tuple[float, float]:
    """Percentile interval; NaN when any resample is undefined."""
    if np.isnan(values).any():
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
