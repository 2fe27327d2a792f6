"""The models of all folds of an encoder and head as one fixed predictor.

Each fold's probabilities are corrected to the classes' shares in its training set
(`her2.mil.priors`) and scaled by its temperature, both found in development. The predictor's are
their mean. Nothing is fitted here.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from her2.config import Task
from her2.core.types import Floats
from her2.evaluation.temperature import scale
from her2.mil.bags import Bag
from her2.mil.fold import SavedModel
from her2.mil.model import predict
from her2.mil.priors import with_shares


@dataclass(frozen=True, slots=True)
class FrozenFold:
    """A fold's model with what corrects its probabilities.

    `share` and `seen` (c,) are those of `her2.mil.priors`. `temperature` is 1 for a fold without a
    tuning set.
    """

    run: str
    saved: SavedModel
    share: Floats
    seen: Floats
    temperature: float

    def corrected(self, probabilities: NDArray[np.floating]) -> tuple[Floats, Floats]:
        """Return probabilities (n, c) of the model, corrected: before and after the temperature."""
        given = with_shares(np.asarray(probabilities, np.float64), self.share, self.seen)
        return given, scale(given, self.temperature)


@dataclass(frozen=True, slots=True)
class Threshold:
    """A development threshold on the calibrated score of a grouping; scores at or above are called.

    `level` is `patient` or `slide`, and `fixed` what was asked of the tuning sets (`specificity` or
    `sensitivity`, at least `asked`). `value` is the mean of the folds' thresholds, between `lowest`
    and `highest`.
    """

    level: str
    grouping: str
    fixed: str
    asked: float
    value: float
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class FrozenPrediction:
    """What a frozen model says of a slide.

    Attributes:
        probabilities: mean of the folds' calibrated probabilities (c,).
        uncalibrated: mean of their probabilities before the temperature (c,).
        each: calibrated probabilities of each fold (f, c).
        attention: mean of the folds' attention to each tile (n,), for heads with one map per class
            that of the class with the highest probability.
    """

    probabilities: Floats
    uncalibrated: Floats
    each: Floats
    attention: NDArray[np.float32]

    @property
    def spread(self) -> Floats:
        """Return the standard deviation of each class's probability over the folds (c,)."""
        return self.each.std(axis=0)


@dataclass(frozen=True, slots=True)
class FrozenModel:
    """The trained models of a task, encoder and head.

    `thresholds` are those of the groupings of the development's config.
    """

    task_name: str
    encoder: str
    head: str
    task: Task
    folds: tuple[FrozenFold, ...]
    thresholds: tuple[Threshold, ...]

    @property
    def name(self) -> str:
        """Return `task / encoder / head`."""
        return f"{self.task_name} / {self.encoder} / {self.head}"

    @property
    def first(self) -> SavedModel:
        """Return one of the models; what a slide must fit is the same for all."""
        return self.folds[0].saved

    def predict(self, bag: Bag) -> FrozenPrediction:
        """Predict a slide from all of its tiles."""
        before, after, found = [], [], []
        for fold in self.folds:
            own = predict(fold.saved.model, bag)
            given, scaled = fold.corrected(own.probabilities[None])
            before.append(given[0])
            after.append(scaled[0])
            found.append(own)
        each = np.stack(after)
        mean: Floats = each.mean(axis=0)
        top = int(mean.argmax())
        maps = [
            one.attention if one.maps is None else one.maps[:, _map_of(top, self.first.model.loss)]
            for one in found
        ]
        return FrozenPrediction(
            mean, np.mean(before, axis=0), each, np.mean(maps, axis=0, dtype=np.float32)
        )


def _map_of(label: int, loss: str) -> int:
    """Return the map of a class; ordered classes have one per threshold between them."""
    return max(0, label - (loss == "ordinal"))
