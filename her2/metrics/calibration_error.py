"""Expected calibration error: the mean gap between confidence and accuracy.

Source: Naeini, Cooper and Hauskrecht, AAAI 2015; for the top class of several, as here: Guo,
Pleiss, Sun and Weinberger, ICML 2017.

It sums absolute gaps, which chance alone makes larger than 0. So it is biased upwards, the more the
fewer patients there are, and resampling adds the same bias again: in simulations its bootstrap
interval contained the true value, 0, for no calibrated model.
"""

import numpy as np

from her2.core.types import Floats, Ints
from her2.metrics.base import Classified, Metric

BINS = 10
"""Number of bins, which have equal widths."""


def expected_calibration_error(rows: Classified) -> Floats:
    """Return the sum over the bins of |correct minus confidence| / n (b,) of the top class."""
    total = rows.weights.sum(axis=1)
    result: Floats = np.abs(rows.weights @ _gaps(rows)).sum(axis=1) / np.maximum(total, 1)
    return result


def _gaps(rows: Classified) -> Floats:
    """Return correct minus confidence of each row in the column of its bin, else 0 (n, bins)."""
    confidences = rows.probabilities.max(axis=1)
    gaps = np.zeros((len(rows.target), BINS))
    correct = rows.predicted == rows.target
    gaps[np.arange(len(rows.target)), bins_of(confidences)] = correct - confidences
    return gaps


def bins_of(probabilities: Floats) -> Ints:
    """Return the bin of each probability (n,): [0, 0.1] is 0, (0.1, 0.2] is 1, (0.9, 1] is 9."""
    edges = np.arange(1, BINS) / BINS
    return np.digitize(probabilities, edges, right=True).astype(np.int64)


METRICS = (
    Metric(
        name="ece",
        label="Expected calibration error",
        phrase=f"the expected calibration error ({BINS} bins, Naeini et al. 2015)",
        definition=f"mean of |accuracy - confidence| over {BINS} equal bins of the top "
        "probability (Naeini 2015); no interval, as it is biased upwards",
        order=70,
        larger_is_better=False,
        overall=expected_calibration_error,
        tables=("calibration",),
        no_interval="it is biased upwards, and bootstrap intervals cover 0 % of calibrated models",
        references={"Naeini et al. 2015": "AAAI"},
    ),
)
