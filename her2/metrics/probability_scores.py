"""Mean losses of predicted probabilities: Brier score, log loss."""

import numpy as np

from her2.core.types import Floats
from her2.metrics.base import Binary, Classified, Metric, mean


def brier(rows: Classified) -> Floats:
    """Return the mean of the squared error summed over the classes (b,), 0 to 2.

    Source: Brier, Monthly Weather Review 78(1), 1950.
    """
    truth = np.eye(rows.classes)[rows.target]
    errors: Floats = ((rows.probabilities - truth) ** 2).sum(axis=1)
    return mean(errors, rows.weights)


def binary_brier(rows: Binary) -> Floats:
    """Return the mean squared error of the positive side's probability (b,), 0 to 1."""
    return mean((rows.scores - rows.positive) ** 2, rows.weights)


def log_loss(rows: Classified) -> Floats:
    """Return the mean of -log of the true class's probability (b,), clipped at float epsilon."""
    given = rows.probabilities[np.arange(len(rows.target)), rows.target]
    return mean(-np.log(np.clip(given, np.finfo(np.float64).eps, 1)), rows.weights)


METRICS = (
    Metric(
        name="brier",
        label="Brier score",
        phrase="the Brier score (Brier 1950)",
        definition="squared error summed over the classes, 0 to 2 (Brier 1950); for a grouping, "
        "0 to 1",
        order=80,
        larger_is_better=False,
        overall=brier,
        grouping=binary_brier,
        tables=("metrics", "calibration"),
        note="Brier score: summed over classes, 0 to 2.",
        references={"Brier 1950": "Monthly Weather Review 78"},
    ),
    Metric(
        name="log_loss",
        label="Log loss",
        phrase="the log loss",
        definition="mean of -log of the true class's probability",
        order=90,
        larger_is_better=False,
        overall=log_loss,
        tables=("metrics", "calibration"),
    ),
)
