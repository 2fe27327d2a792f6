r"""Stage 2, train: linear classifiers of the mean embedding, fitted by scikit-learn.

    logits = W (mean_k x_k - m) / s + b

m and s are the mean and standard deviation of the training slides' mean embeddings. A head's
estimators (`her2.heads.Fitted`) each fit W and b, and the tuning set picks one of them. Because
standardising and averaging commute, the fit equals mean pooling without a projection after the
standardisation (m, s), and is stored, loaded and used for predictions like any other network.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from her2.config import Select
from her2.heads import Fitted
from her2.heads.layers import Head
from her2.mil.selection import UNDEFINED, TuneFigures, tune_figures

Floats = NDArray[np.floating]
Labels = NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One fitted estimator; losses are mean cross-entropies per slide."""

    train_loss: float
    tune: TuneFigures


@dataclass(frozen=True, slots=True)
class Baseline:
    """The chosen fit; `head` reads (features - mean) / std, and `best` indexes `candidates`."""

    head: Head
    mean: Tensor
    std: Tensor
    candidates: tuple[Candidate, ...]
    best: int


def fit_baseline(
    train: tuple[Floats, Labels],
    tune: tuple[Floats, Labels],
    *,
    head: Fitted,
    classes: int,
    balanced: bool,
    select: Select = "loss",
    kept: int | None = None,
) -> Baseline:
    """Fit each of a head's estimators and keep the best on the tuning set.

    Args:
        train: mean embeddings (s, d) and class indices (s,) of the training set, with every class.
        tune: the same for the tuning set.
        head: the head whose estimators are fitted.
        classes: number of classes.
        balanced: whether each class weighs the same in the fit; otherwise each slide does.
        select: criterion by which the best model is picked on the tuning set.
        kept: the estimator that is kept whatever the tuning set says, which may then be empty.

    Raises:
        ValueError: a class is absent from the training set.
    """
    from sklearn.metrics import log_loss
    from sklearn.preprocessing import StandardScaler

    (x, y), (x_tune, y_tune) = train, tune
    absent = sorted(set(range(classes)) - set(np.unique(y).tolist()))
    if absent:
        raise ValueError(f"no slide of class {absent} in the training set")
    # float64, because a mean over thousands of tiles varies little from slide to slide.
    scaler = StandardScaler().fit(np.asarray(x, np.float64))
    x = scaler.transform(np.asarray(x, np.float64))

    def tuned(model: Any) -> TuneFigures:
        if len(y_tune) == 0:
            return UNDEFINED
        given = model.predict_proba(scaler.transform(np.asarray(x_tune, np.float64)))
        return tune_figures(given, y_tune.tolist())

    models, candidates = head.estimators(balanced=balanced), []
    for model in models:
        model.fit(x, y)
        candidates.append(
            Candidate(
                train_loss=float(log_loss(y, model.predict_proba(x), labels=range(classes))),
                tune=tuned(model),
            )
        )
    best = (
        max(range(len(models)), key=lambda index: candidates[index].tune.rank(select))
        if kept is None
        else kept
    )
    return Baseline(
        head=_network(head, models[best], classes),
        mean=torch.tensor(scaler.mean_, dtype=torch.float32),
        std=torch.tensor(scaler.scale_, dtype=torch.float32),
        candidates=tuple(candidates),
        best=best,
    )


def _network(head: Fitted, model: Any, classes: int) -> Head:
    """Return the network with a fitted estimator's coefficients, in evaluation mode.

    For two classes there is one row of coefficients: the logit of the second, with 0 for the first.
    """
    weight, bias = model.coef_, model.intercept_
    if classes == 2:
        weight, bias = np.vstack([0 * weight, weight]), np.append(0.0, bias)
    network = head.build(weight.shape[1], classes)
    network.load_state_dict(
        {"classifier.weight": torch.from_numpy(weight), "classifier.bias": torch.from_numpy(bias)}
    )
    return network.eval()
