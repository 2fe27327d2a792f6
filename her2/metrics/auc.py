"""Area under the ROC curve: the share of concordant pairs, with ties counting half."""

import numpy as np

from her2.core.types import Bools, Floats
from her2.metrics.base import Binary, Classified, Metric, Selection


def auc(rows: Binary) -> Floats:
    """Return the share of concordant (positive, negative) pairs (b,); NaN without both sides."""
    counts = rows.ranked
    pairs = counts.positives * counts.negatives
    defined = pairs > 0
    # A negative in group k has hit_k positives at or above it; those of its own score count half.
    concordant = ((counts.every - counts.up) * (counts.hit - counts.up / 2)).sum(axis=1)
    return np.where(defined, concordant / np.where(defined, pairs, 1), np.nan)


def ranking_area(positive: Bools, scores: Floats) -> float:
    """Return the AUC of one ranking (n,), to the last bit that of scikit-learn's `roc_auc_score`.

    Trainings call it after every epoch, where the import and the checks of scikit-learn would take
    longer than the epoch. `auc` may differ from it in the last digit, which would change histories
    and, among equal epochs, the one that is kept.

    Args:
        positive: whether each row is positive; both kinds must be present.
        scores: finite scores, higher for positive rows.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of equal scores
    hits = np.cumsum(positive[order], dtype=np.float64)[last]
    misses = 1.0 + last - hits
    if len(last) > 2:  # points on a straight line change nothing but the rounding
        corner = (np.diff(hits, 2) != 0) | (np.diff(misses, 2) != 0)
        kept = np.concatenate([[True], corner, [True]])
        hits, misses = hits[kept], misses[kept]
    high = np.append(0.0, hits) / hits[-1]
    wide = np.append(0.0, misses) / misses[-1]
    return float(np.sum(np.diff(wide) * (high[1:] + high[:-1]) / 2.0))


def _macro(rows: Classified) -> float:
    """Return the mean AUC of the classes; NaN where a class is absent."""
    if len(np.unique(rows.target)) < rows.classes:
        return float("nan")
    each = [
        ranking_area(rows.target == index, rows.probabilities[:, index])
        for index in range(rows.classes)
    ]
    return float(np.mean(each))


METRICS = (
    Metric(
        name="auc",
        label="AUC",
        phrase="AUC",
        definition="one-vs-rest: share of pairs (one patient of the class, one of the rest, in "
        "the same test set) in the right order, with ties counting half; mean over the rounds; "
        "`macro` is the unweighted mean over the classes, `weighted` the mean weighted by "
        "prevalence",
        order=10,
        each_class=True,
        within_folds=True,
        one_vs_rest=auc,
        means=("macro", "weighted"),
        grouping=auc,
        headline=0,
        selection=Selection(
            name="macro_auc", words="the highest macro AUC", compute=_macro, needs="all"
        ),
        note="Weighted: mean over the classes, weighted by their prevalence.",
    ),
    Metric(
        name="auc_pooled",
        label="AUC, pooled",
        phrase="AUC pooled over folds",
        definition="the same with pairs across test sets, of probabilities averaged over the "
        "rounds; biased, because models of different folds are not on one scale",
        order=11,
        each_class=True,
        one_vs_rest=auc,
        means=("macro", "weighted"),
        grouping=auc,
    ),
)
