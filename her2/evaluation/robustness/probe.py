r"""Stage 2, robustness: how well a property of patients is predicted from their embeddings.

A linear discriminant of the patients' mean embeddings, standardised over all patients, in
`REPEATS` times `FOLDS`-fold cross-validation over patients. With the covariance T and the class
means m_c of a training set, and B the covariance of these means,

    S = (1 - g) (T - B) + g I           the covariance within classes, shrunk
    score_c(x) = x' S^-1 m_c - (m_c' S^-1 m_c - e_c) / 2

that is, all classes weigh alike. m_c is the mean of n_c patients, whose noise makes m_c' S^-1 m_c
larger by e_c = tr(S^-1 W) / n_c, with W the covariance within classes; with hundreds of features
that alone would keep every patient out of a small class, so it is taken off (Moran and Murphy,
Applied Statistics 28(3), 1979). W is that of all patients about the training set's mean, less what
its class means make of it. The shrinkage g is that of Ledoit and Wolf (Journal of Multivariate
Analysis 88(2), 2004) for all patients. Neither looks at a label of the test set. So nothing is
chosen by the labels, and the whole procedure is repeated with labels shuffled over the patients:
chance, and how far chance reaches, are measured instead of assumed, whatever the number of
patients, groups and features.

AUCs are over pairs of patients of one test set (`her2.evaluation.areas`), by the odds of a class:
with many features, probabilities are 0 or 1 within rounding, and many patients would tie.
"""

from dataclasses import dataclass

import numpy as np

from her2.core.types import Floats, Ints
from her2.evaluation.areas import HeldOut, class_areas, macro_area
from her2.evaluation.intervals import Estimate, mean_estimate

FOLDS = 5
REPEATS = 5
PERMUTATIONS = 200
LEAST = 5
"""Patients below which a group is left out, so that as a rule each test set has one of them."""
LEAST_SHRINKAGE = 1e-3
_AT_ONCE = 25
"""Permutations that are computed together."""


@dataclass(frozen=True, slots=True)
class Chance:
    """A figure beside those with shuffled labels: their mean, limits, and the p value."""

    value: float
    mean: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True)
class Probe:
    """How well a property is predicted: `area` with its interval, and both against chance."""

    area: Estimate
    auc: Chance
    balanced_accuracy: Chance


def probe(means: Floats, groups: Ints, *, confidence: float, seed: int) -> Probe:
    """Return how well the groups of patients are predicted from their mean embeddings.

    Args:
        means: of the patients (n, d).
        groups: of the patients (n,), 0 to c - 1, each with at least `LEAST` patients; c >= 2.
        confidence: of the intervals.
        seed: of folds and permutations.
    """
    generator = np.random.default_rng(seed)
    shuffled = [generator.permutation(groups) for _ in range(PERMUTATIONS)]
    labels = np.stack([groups, *shuffled])
    folds = np.stack(
        [generator.permutation(np.arange(len(groups)) % FOLDS) for _ in range(REPEATS)]
    )
    rows, shrinkage = rotated(means)
    areas, right, observed = [], np.zeros(labels.shape), []
    for one in folds:
        scores = _held_out(rows, labels, one, shrinkage)
        areas.append(_areas(labels, scores, one))
        right += scores.argmax(axis=2) == labels
        observed.append(scores[0])
    held = _rows(groups, np.stack(observed), folds)
    own = class_areas(held)
    return Probe(
        mean_estimate(macro_area(held, own), own, confidence),
        _chance(_mean(np.stack(areas)), confidence),
        _chance(_accuracies(labels, right / REPEATS), confidence),
    )


def rotated(means: Floats) -> tuple[Floats, float]:
    """Return standardised embeddings in their principal axes (n, r), and the shrinkage.

    The rotation changes no score, and leaves at most n columns.
    """
    spread = means.std(axis=0)
    varies = spread > 1e-9 * np.maximum(1.0, np.abs(means).max(axis=0))
    if not varies.any():
        return np.zeros((len(means), 1)), 1.0
    rows = (means[:, varies] - means[:, varies].mean(axis=0)) / spread[varies]
    left, lengths, _ = np.linalg.svd(rows, full_matrices=False)
    used = lengths > 1e-9 * lengths[0]
    return left[:, used] * lengths[used], max(_shrinkage(rows, lengths), LEAST_SHRINKAGE)


def _shrinkage(rows: Floats, lengths: Floats) -> float:
    """Return the shrinkage of Ledoit and Wolf for centred rows (n, d) of these singular values."""
    n, d = rows.shape
    trace, squared = (lengths**2).sum() / n, (lengths**4).sum() / n**2
    apart = squared - trace**2 / d
    noise = (((rows**2).sum(axis=1) ** 2).sum() / n - squared) / n
    return float(min(max(noise / apart, 0.0), 1.0)) if apart > 0 else 1.0


def _held_out(rows: Floats, labels: Ints, folds: Ints, shrinkage: float) -> Floats:
    """Return held-out scores (b, n, c) in (0, 1) for b labellings of the rows (b, n)."""
    count = int(labels.max()) + 1
    found = np.zeros((*labels.shape, count))
    for fold in range(FOLDS):
        test = folds == fold
        if test.any():
            logs = discriminant(rows[~test], rows[test], labels[:, ~test], count, shrinkage)
            found[:, test] = _ranking(logs)
    return found


def discriminant(train: Floats, test: Floats, labels: Ints, count: int, shrinkage: float) -> Floats:
    """Return log probabilities of test rows (b, m, c) by discriminants for b labellings (b, n).

    S^-1 is that of (1 - g) T + g I, which no label changes, and a correction of rank c - 1.
    """
    middle, n = train.mean(axis=0), len(train)
    train, test = train - middle, test - middle
    total = (1 - shrinkage) * (train.T @ train) / n + shrinkage * np.eye(train.shape[1])
    solved = np.linalg.solve(total, train.T)  # (r, n)
    within, across = train @ solved, test @ solved  # (n, n), (m, n)
    lengths = np.trace(within) + (test.T * np.linalg.solve(total, test.T)).sum()
    found = np.empty((len(labels), len(test), count))
    for start in range(0, len(labels), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        members = (labels[part, None] == np.arange(count)[:, None]).astype(float)  # (b, c, n)
        sizes = members.sum(axis=2)  # (b, c)
        members /= np.maximum(sizes, 1)[..., None]
        between = (members @ within) @ members.transpose(0, 2, 1)  # (b, c, c)
        towards = (members @ across.T).transpose(0, 2, 1)  # (b, m, c)
        weights = n / np.maximum(sizes, 1) / (1 - min(shrinkage, 1 - 1e-9))
        inner = np.eye(count) * weights[:, None] - between
        correction = np.linalg.solve(inner, between)  # (b, c, c)
        scores = towards + towards @ correction
        own = np.diagonal(between + between @ correction, axis1=1, axis2=2)
        # tr(S^-1 W): of all patients about the middle, less that of the means.
        crossed = np.concatenate([members @ within, members @ across.T], axis=2)
        extra = np.linalg.solve(inner, crossed @ crossed.transpose(0, 2, 1))
        spread = (lengths + np.trace(extra, axis1=1, axis2=2)) / (n + len(test))
        spread = (spread - (sizes * own).sum(axis=1) / n) / (1 - (sizes > 0).sum(axis=1) / n)
        own = own - np.maximum(spread, 0)[:, None] / np.maximum(sizes, 1)
        scores = np.where(sizes[:, None] > 0, scores - own[:, None] / 2, -np.inf)
        scores = scores - scores.max(axis=2, keepdims=True)
        found[part] = scores - np.log(np.exp(scores).sum(axis=2, keepdims=True))
    return found


def _ranking(logs: Floats) -> Floats:
    """Return scores in (0, 1) in the order of the odds of each class, from log probabilities.

    The probabilities themselves are 0 or 1 within rounding where there are many features.
    """
    found = np.empty(logs.shape)
    logs = np.maximum(logs, -1e9)  # of a class without training patients
    for index in range(logs.shape[2]):
        others = np.delete(logs, index, axis=2)
        highest = others.max(axis=2)
        odds = logs[..., index] - highest
        odds = odds - np.log(np.exp(others - highest[..., None]).sum(axis=2))
        found[..., index] = (1 + odds / (1 + np.abs(odds))) / 2
    return found


def _rows(groups: Ints, scores: Floats, folds: Ints) -> HeldOut:
    """Return the held-out rows of all repeats, (r, n, c), as the evaluation has them."""
    repeats, n = folds.shape
    return HeldOut(
        target=np.tile(groups, repeats),
        probabilities=scores.reshape(repeats * n, -1),
        patients=np.tile(np.arange(n), repeats),
        models=(folds + FOLDS * np.arange(repeats)[:, None]).ravel(),
        rounds=np.repeat(np.arange(repeats), FOLDS),
        folds=FOLDS,
        names=tuple(map(str, range(n))),
        classes=groups,
    )


def _areas(labels: Ints, scores: Floats, folds: Ints) -> Floats:
    """Return the macro AUC within test sets of each labelling (b,), from (b, n, c).

    It is NaN where no test set has patients of a class and others.
    """
    won = np.zeros((len(labels), scores.shape[2]))
    pairs = np.zeros(won.shape)
    for fold in range(FOLDS):
        test = folds == fold
        positive = labels[:, test, None] == np.arange(won.shape[1])
        up = positive.sum(axis=1)
        won += (_ranks(scores[:, test]) * positive).sum(axis=1) - up * (up + 1) / 2
        pairs += up * (test.sum() - up)
    found = np.divide(won, pairs, out=np.full(won.shape, np.nan), where=pairs > 0)
    return np.asarray(found.mean(axis=1))


def _mean(rounds: Floats) -> Floats:
    """Return the mean over the repeats (b,) that have the figure, NaN where none has."""
    there = ~np.isnan(rounds)
    total, count = np.where(there, rounds, 0).sum(axis=0), there.sum(axis=0)
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def _ranks(scores: Floats) -> Floats:
    """Return the ranks from 1 along the second axis of (b, m, c), equal scores sharing theirs."""
    values = np.round(scores, 10)
    order = np.argsort(values, axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    m = scores.shape[1]
    new = np.ones(scores.shape, bool)
    new[:, 1:] = ordered[:, 1:] > ordered[:, :-1]
    place = np.arange(m)[None, :, None]
    first = np.maximum.accumulate(np.where(new, place, 0), axis=1)
    ends = np.ones(scores.shape, bool)
    ends[:, :-1] = new[:, 1:]
    last = np.minimum.accumulate(np.where(ends, place, m)[:, ::-1], axis=1)[:, ::-1]
    found = np.empty(scores.shape)
    np.put_along_axis(found, order, (first + last) / 2 + 1, axis=1)
    return found


def _accuracies(labels: Ints, right: Floats) -> Floats:
    """Return the balanced accuracy of each labelling (b,), from how often each row is right."""
    members = labels[..., None] == np.arange(int(labels.max()) + 1)
    recall = (right[..., None] * members).sum(axis=1) / members.sum(axis=1)
    found: Floats = recall.mean(axis=1)
    return found


def _chance(values: Floats, confidence: float) -> Chance:
    """Return the first value beside the others, which are of shuffled labels."""
    drawn = values[1:][~np.isnan(values[1:])]
    if np.isnan(values[0]) or not len(drawn):
        return Chance(float(values[0]), *[float("nan")] * 4)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    better = np.count_nonzero(drawn >= values[0] - 1e-12)
    p = float((1 + better) / (1 + len(drawn)))
    return Chance(float(values[0]), float(drawn.mean()), float(low), float(high), p)
