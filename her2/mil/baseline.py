r"""Stage 2, train: mean embedding and logistic regression, the baseline nobody should lose to.

    logits = W (mean_k x_k - m) / s + b

m and s are the mean and standard deviation of the train slides' mean embeddings; W minimises the
multinomial cross-entropy + ||W||^2 / (2 C), solved to convergence by scikit-learn. C is the one of
`strengths` that is best on the tune part. Because standardising and averaging commute, the fit is a
`MeanPooling` head without projection behind the standardisation (m, s): it is stored, loaded and
asked for predictions like any other.

Source: scikit-learn, LogisticRegression (Pedregosa et al., JMLR 12, 2011).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from her2.config import Select
from her2.mil.heads.mean import MeanPooling
from her2.mil.selection import TuneFigures, tune_figures

Floats = NDArray[np.floating]
Labels = NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A fit with one strength C; losses are mean cross-entropies a slide."""

    strength: float
    train_loss: float
    tune: TuneFigures


@dataclass(frozen=True, slots=True)
class Baseline:
    """The chosen fit: `head` reads (features - mean) / std. `best` indexes `candidates`."""

    head: MeanPooling
    mean: Tensor
    std: Tensor
    candidates: tuple[Candidate, ...]
    best: int


def fit_baseline(
    train: tuple[Floats, Labels],
    tune: tuple[Floats, Labels],
    *,
    classes: int,
    strengths: Sequence[float],
    balanced: bool,
    select: Select = "loss",
) -> Baseline:
    """Fit one model a strength and keep the best on the tune part.

    Args:
        train: mean embeddings (s, d) and class indices (s,); every class is present.
        tune: the same of the tune part.
        classes: number of classes.
        strengths: values of C, the inverse of the penalty.
        balanced: each class weighs the same in the fit, else each slide.
        select: what the best model has on the tune part.

    Raises:
        ValueError: a class is absent from the train part.
    """
    (x, y), (x_tune, y_tune) = train, tune
    absent = sorted(set(range(classes)) - set(np.unique(y).tolist()))
    if absent:
        raise ValueError(f"no slide of class {absent} in the train part")
    # float64: a mean over thousands of tiles varies little from slide to slide.
    scaler = StandardScaler().fit(np.asarray(x, np.float64))
    x, x_tune = (scaler.transform(np.asarray(part, np.float64)) for part in (x, x_tune))
    models, candidates = [], []
    for strength in strengths:
        model = LogisticRegression(
            C=strength, class_weight="balanced" if balanced else None, max_iter=1000
        ).fit(x, y)
        candidates.append(
            Candidate(
                strength=float(strength),
                train_loss=float(log_loss(y, model.predict_proba(x), labels=range(classes))),
                tune=tune_figures(model.predict_proba(x_tune), y_tune.tolist()),
            )
        )
        models.append(model)
    best = max(range(len(models)), key=lambda index: candidates[index].tune.rank(select))
    return Baseline(
        head=_as_head(models[best], classes),
        mean=torch.tensor(scaler.mean_, dtype=torch.float32),
        std=torch.tensor(scaler.scale_, dtype=torch.float32),
        candidates=tuple(candidates),
        best=best,
    )


def _as_head(model: LogisticRegression, classes: int) -> MeanPooling:
    """Two classes have one row of coefficients, which is the second's logit beside zero."""
    weight, bias = model.coef_, model.intercept_
    if classes == 2:
        weight, bias = np.vstack([0 * weight, weight]), np.append(0.0, bias)
    head = MeanPooling(weight.shape[1], classes, hidden=0, dropout=0.0)
    with torch.no_grad():
        head.classifier.weight.copy_(torch.from_numpy(weight))
        head.classifier.bias.copy_(torch.from_numpy(bias))
    return head.eval()
