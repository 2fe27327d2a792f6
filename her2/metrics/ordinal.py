"""Agreement of predicted and true class on an ordered scale: quadratic kappa, mean error."""

import numpy as np

from her2.core.types import Floats
from her2.metrics.base import Classified, Metric, Selection, share, steps


def quadratic_kappa(rows: Classified) -> Floats:
    """Return Cohen's kappa with quadratic weights (b,): chance-corrected ordinal agreement.

    Source: Cohen, Psychological Bulletin 70(4), 1968.
    """
    matrices = rows.matrices
    distance = steps(rows.classes) ** 2
    total = matrices.sum(axis=(1, 2))
    expected = matrices.sum(axis=2)[:, :, None] * matrices.sum(axis=1)[:, None, :]
    observed_cost = (matrices * distance).sum(axis=(1, 2))
    expected_cost = share((expected * distance).sum(axis=(1, 2)), total)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected_cost > 0, 1 - observed_cost / expected_cost, np.nan)


def ordinal_mae(rows: Classified) -> Floats:
    """Return the mean distance of predicted and true class (b,), in steps of ordered classes."""
    costs = (rows.matrices * steps(rows.classes)).sum(axis=(1, 2))
    return share(costs, rows.matrices.sum(axis=(1, 2)))


def _kappa(rows: Classified) -> float:
    """Return the quadratic kappa; NaN where there is only one class.

    It is computed in the order of scikit-learn's `cohen_kappa_score`, with which it agrees to the
    last bit (`her2.metrics.auc.ranking_area` says why this matters).
    """
    if len(np.unique(rows.target)) < 2:
        return float("nan")
    matrix = rows.matrices[0]
    by_prediction, by_target = matrix.sum(axis=0), matrix.sum(axis=1)
    expected = np.outer(by_prediction, by_target) / by_prediction.sum()
    distance = steps(rows.classes).astype(np.float64) ** 2
    return float(1 - np.sum(distance * matrix) / np.sum(distance * expected))


METRICS = (
    Metric(
        name="quadratic_kappa",
        label="Quadratic weighted kappa",
        phrase="the quadratic weighted kappa (Cohen 1968)",
        definition="Cohen 1968, quadratic weights; ordered classes",
        order=50,
        ordinal=True,
        overall=quadratic_kappa,
        headline=1,
        selection=Selection(
            name="quadratic_kappa",
            words="the highest quadratic weighted kappa",
            compute=_kappa,
            needs="two",
        ),
        references={"Cohen 1968": "Psychological Bulletin 70"},
    ),
    Metric(
        name="ordinal_mae",
        label="Mean absolute error, in classes",
        phrase="the mean error in steps",
        definition="mean distance of predicted and true class in steps; ordered classes",
        order=60,
        larger_is_better=False,
        ordinal=True,
        overall=ordinal_mae,
    ),
)
