"""Area under the precision-recall curve, in steps: sum of (R_k - R_{k-1}) P_k.

The definition is scikit-learn's `average_precision_score`. Its value by chance is the prevalence.
"""

import numpy as np

from her2.core.types import Floats
from her2.metrics.base import Binary, Metric


def average_precision(rows: Binary) -> Floats:
    """Return the mean precision over the steps of recall (b,); NaN without both sides."""
    counts = rows.ranked
    defined = counts.positives * counts.negatives > 0
    precision = np.divide(
        counts.hit, counts.called, out=np.zeros_like(counts.hit), where=counts.called > 0
    )
    stepped = (counts.up * precision).sum(axis=1)
    return np.where(defined, stepped / np.where(defined, counts.positives, 1), np.nan)


METRICS = (
    Metric(
        name="auprc",
        label="AUPRC",
        phrase="AUPRC",
        definition="average precision, one-vs-rest; chance is `prevalence`",
        order=20,
        each_class=True,
        one_vs_rest=average_precision,
        grouping=average_precision,
        note="AUPRC: average precision; chance is the prevalence.",
    ),
)
