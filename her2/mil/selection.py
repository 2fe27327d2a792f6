"""Stage 2, train: figures of the tune part, and what makes an epoch or a trial the better one."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score, recall_score, roc_auc_score

from her2.config import Select

SELECT_WORDS: dict[Select, str] = {
    "loss": "the least loss",
    "macro_auc": "the highest macro AUC",
    "balanced_accuracy": "the highest balanced accuracy",
    "quadratic_kappa": "the highest quadratic weighted kappa",
}
"""What the report says of the epoch that was kept."""


@dataclass(frozen=True, slots=True)
class TuneFigures:
    """Of the slides of a tune part; NaN where a figure is not defined.

    `loss` is the mean cross-entropy a slide. `balanced_accuracy` is the mean recall of the classes
    that are there; `macro_auc` needs all of them, `quadratic_kappa` two.
    """

    loss: float
    accuracy: float
    balanced_accuracy: float
    macro_auc: float
    quadratic_kappa: float

    def rank(self, select: Select) -> tuple[float, float]:
        """What the best has most of; of equals the lower loss wins."""
        value = -self.loss if select == "loss" else float(getattr(self, select))
        return value, -self.loss


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
        return own | {f"tune_{key}": value for key, value in asdict(self.tune).items()}


UNDEFINED = TuneFigures(*[math.nan] * 5)
"""Of an empty tune part."""


def tune_figures(probabilities: NDArray[np.floating], labels: Sequence[int]) -> TuneFigures:
    """Figures of class probabilities (s, c) and class indices (s,), s >= 1."""
    scores, truth = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    classes = np.arange(scores.shape[1])
    guess, present = scores.argmax(axis=1), np.unique(truth)
    auc = kappa = math.nan
    if len(present) == len(classes):
        auc = float(np.mean([roc_auc_score(truth == c, scores[:, c]) for c in classes]))
    if len(present) > 1:
        kappa = float(cohen_kappa_score(truth, guess, labels=classes, weights="quadratic"))
    return TuneFigures(
        loss=float(np.mean(-np.log(np.maximum(1e-12, scores[range(len(truth)), truth])))),
        accuracy=float(np.mean(guess == truth)),
        balanced_accuracy=float(recall_score(truth, guess, labels=present, average="macro")),
        macro_auc=auc,
        quadratic_kappa=kappa,
    )
