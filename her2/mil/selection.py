"""Stage 2, train: figures on the tuning set, by which epochs and trials are compared."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from her2.config import Select
from her2.metrics import selecting_metrics
from her2.metrics.base import Classified

SELECT_WORDS: dict[Select, str] = {
    "loss": "the lowest loss",
    **{name: selection.words for name, (_, selection) in selecting_metrics().items()},
}
"""The criterion by which an epoch was kept, in the report's words."""


@dataclass(frozen=True, slots=True)
class TuneFigures:
    """Figures on a tuning set; NaN where one is not defined.

    `loss` is the mean cross-entropy per slide. `metrics` holds the figures that can select, under
    their names in `training.select`.
    """

    loss: float
    accuracy: float
    metrics: Mapping[str, float]

    def value(self, select: Select) -> float:
        """Return the figure that `training.select` names."""
        return self.loss if select == "loss" else self.metrics[select]

    def rank(self, select: Select) -> tuple[float, float]:
        """Return the rank by which the best is chosen; a tie goes to the lower loss."""
        value = self.value(select)
        larger = select != "loss" and selecting_metrics()[select][0].larger_is_better
        return value if larger else -value, -self.loss

    def row(self) -> dict[str, float]:
        """Return the figures by name, the metrics in alphabetical order."""
        return {"loss": self.loss, "accuracy": self.accuracy, **dict(sorted(self.metrics.items()))}


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch of a fold's history; `train_loss` is the mean cross-entropy per slide.

    `learning_rate` is that of the epoch's last step (0 for a fit without steps).
    """

    epoch: int
    learning_rate: float
    train_loss: float
    tune: TuneFigures

    def row(self) -> dict[str, float]:
        """Return the epoch as a row of `history.parquet`."""
        own = {key: value for key, value in asdict(self).items() if key != "tune"}
        return own | {f"tune_{key}": value for key, value in self.tune.row().items()}


UNDEFINED = TuneFigures(math.nan, math.nan, dict.fromkeys(selecting_metrics(), math.nan))
"""Figures of an empty tuning set."""


def tune_figures(probabilities: NDArray[np.floating], labels: Sequence[int]) -> TuneFigures:
    """Return the figures of class probabilities (s, c) and class indices (s,), s >= 1."""
    scores, truth = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    rows = Classified(truth, scores, np.ones((1, len(truth))))
    return TuneFigures(
        loss=float(np.mean(-np.log(np.maximum(1e-12, scores[range(len(truth)), truth])))),
        accuracy=float(np.mean(rows.predicted == truth)),
        metrics={name: one.compute(rows) for name, (_, one) in selecting_metrics().items()},
    )
