"""Stage 2, train: figures of the tuning set, and what makes an epoch or a trial the better one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from her2.config import Select
from her2.metrics import selecting_metrics
from her2.metrics.base import Classified

SELECT_WORDS: dict[Select, str] = {
    "loss": "the least loss",
    **{name: selection.words for name, (_, selection) in selecting_metrics().items()},
}
"""What the report says of the epoch that was kept."""


@dataclass(frozen=True, slots=True)
class TuneFigures:
    """Figures of the slides of a tuning set; NaN where one is not defined.

    `loss` is the mean cross-entropy of a slide. `metrics` are those that can select, by the name
    that they have in `training.select`.
    """

    loss: float
    accuracy: float
    metrics: Mapping[str, float]

    def value(self, select: Select) -> float:
        """The figure that `training.select` names."""
        return self.loss if select == "loss" else self.metrics[select]

    def rank(self, select: Select) -> tuple[float, float]:
        """What the best has most of; of equals the lower loss wins."""
        value = self.value(select)
        larger = select != "loss" and selecting_metrics()[select][0].larger_is_better
        return value if larger else -value, -self.loss

    def row(self) -> dict[str, float]:
        """Name -> figure; the metrics by the alphabet."""
        return {"loss": self.loss, "accuracy": self.accuracy, **dict(sorted(self.metrics.items()))}


@dataclass(frozen=True, slots=True)
class Epoch:
    """One line of a fold's history; `train_loss` is the mean cross-entropy per slide.

    `learning_rate` is that of the epoch's last step (0 for a fit that has none).
    """

    epoch: int
    learning_rate: float
    train_loss: float
    tune: TuneFigures

    def row(self) -> dict[str, float]:
        """Return it as a row of `history.parquet`."""
        own = {key: value for key, value in asdict(self).items() if key != "tune"}
        return own | {f"tune_{key}": value for key, value in self.tune.row().items()}


UNDEFINED = TuneFigures(math.nan, math.nan, dict.fromkeys(selecting_metrics(), math.nan))
"""Figures of an empty tuning set."""


def tune_figures(probabilities: NDArray[np.floating], labels: Sequence[int]) -> TuneFigures:
    """Figures of class probabilities (s, c) and class indices (s,), s >= 1."""
    scores, truth = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    rows = Classified(truth, scores, np.ones((1, len(truth))))
    return TuneFigures(
        loss=float(np.mean(-np.log(np.maximum(1e-12, scores[range(len(truth)), truth])))),
        accuracy=float(np.mean(rows.predicted == truth)),
        metrics={name: one.compute(rows) for name, (_, one) in selecting_metrics().items()},
    )
