"""Agreement of predicted and true class with equal weight per class: mean recall, mean F1."""

import numpy as np

from her2.core.types import Floats
from her2.metrics.base import Classified, Metric, Selection, share


def balanced_accuracy(rows: Classified) -> Floats:
    """Return the mean recall of the classes (b,); NaN where a class is absent."""
    hits = np.diagonal(rows.matrices, axis1=1, axis2=2)
    result: Floats = share(hits, rows.matrices.sum(axis=2)).mean(axis=1)
    return result


def macro_f1(rows: Classified) -> Floats:
    """Return the mean F1 of the classes (b,); NaN where a class is absent.

    A class that is never predicted has F1 = 0.
    """
    support = rows.matrices.sum(axis=2)
    hits = np.diagonal(rows.matrices, axis1=1, axis2=2)
    f1 = share(2 * hits, support + rows.matrices.sum(axis=1))
    result: Floats = np.where(support > 0, f1, np.nan).mean(axis=1)
    return result


def _over_present_classes(rows: Classified) -> float:
    """Return the mean recall of the classes that a (small) tuning set contains."""
    recall = share(np.diagonal(rows.matrices[0]), rows.matrices[0].sum(axis=1))
    return float(np.mean(recall[~np.isnan(recall)]))


METRICS = (
    Metric(
        name="balanced_accuracy",
        label="Balanced accuracy",
        phrase="balanced accuracy",
        definition="mean recall of the classes",
        order=30,
        each_class=True,
        overall=balanced_accuracy,
        headline=2,
        selection=Selection(
            name="balanced_accuracy",
            words="the highest balanced accuracy",
            compute=_over_present_classes,
        ),
    ),
    Metric(
        name="macro_f1",
        label="Macro F1",
        phrase="macro F1",
        definition="mean F1 of the classes",
        order=40,
        each_class=True,
        overall=macro_f1,
    ),
)
