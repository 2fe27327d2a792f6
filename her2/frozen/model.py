"""The models of all folds of an encoder and head as one fixed predictor.

Each fold's probabilities are corrected to the classes' shares in its training set
(`her2.mil.priors`) and scaled by its temperature, both found in development. The predictor's are
their mean. Nothing is fitted here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from her2.config import Task
from her2.core.errors import UserError, check_kind, problem_list
from her2.core.types import Floats
from her2.evaluation.temperature import scale
from her2.mil.apply import mismatches
from her2.mil.bags import Bag
from her2.mil.fold import SavedModel
from her2.mil.model import predict
from her2.mil.priors import with_shares
from her2.mil.room import check_room
from her2.storage.features import FeatureStore


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


@dataclass(frozen=True, slots=True, repr=False)
class FrozenPrediction:
    """What a frozen model says of a slide.

    Attributes:
        class_names: the classes (c), in their order.
        probabilities: mean of the folds' calibrated probabilities (c,).
        uncalibrated: mean of their probabilities before the temperature (c,).
        each: calibrated probabilities of each fold (f, c).
        attention: mean of the folds' attention to each tile (n,), for heads with one map per class
            that of the class with the highest probability.
    """

    class_names: tuple[str, ...]
    probabilities: Floats
    uncalibrated: Floats
    each: Floats
    attention: NDArray[np.float32]

    def __repr__(self) -> str:
        """Return each class with its probability, and by how many models."""
        pairs = zip(self.class_names, self.probabilities, strict=True)
        words = ", ".join(f"{name} {value:.3f}" for name, value in pairs)
        models = f"{len(self.each)} models" if len(self.each) > 1 else "1 model"
        return f"<FrozenPrediction: {words} (by {models}, {len(self.attention):,} tiles)>"

    @property
    def predicted(self) -> str:
        """Return the most probable class."""
        return self.class_names[int(self.probabilities.argmax())]

    @property
    def spread(self) -> Floats:
        """Return the standard deviation of each class's probability over the folds (c,)."""
        return self.each.std(axis=0)


@dataclass(frozen=True, slots=True, repr=False)
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

    def __repr__(self) -> str:
        """Return its name, its models and its classes."""
        models = f"{len(self.folds)} models" if len(self.folds) > 1 else "1 model"
        return f"<FrozenModel {self.name}: {models}, {', '.join(self.task.class_names)}>"

    def predict(self, given: FeatureStore | Bag) -> FrozenPrediction:
        """Predict a slide from all of its tiles.

        A slide that was in training is predicted by models that saw it. For the slides of a run
        use what the run stored (`Results.predictions`, `her2 heatmaps`).

        Args:
            given: the slide's features, or a bag of them that was checked before.

        Raises:
            UserError: the features are those of another encoder or grid, the slide does not fit
                into memory, or a probability is not finite.

        >>> import her2
        >>> model = her2.load_model("results")
        >>> store = her2.open_store("results/features/tiny/demo-004-a.zarr.zip")
        >>> found = model.predict(store)
        >>> found.probabilities.shape, found.attention.shape == (len(store),)
        ((2,), True)
        """
        check_kind("store", given, FeatureStore, Bag, fix="open it with open_store(path)")
        bag = given if isinstance(given, Bag) else self._checked(given)
        found = self._predict(bag)
        if not np.isfinite(found.each).all():
            raise UserError(
                f"{bag.slide_id}: its probabilities are not finite. Find its damaged features with "
                "`her2 cache verify`, remove them and run snakemake again."
            )
        return found

    def check_rooms(self, bags: Sequence[Bag]) -> None:
        """Check that each slide can be predicted as one bag by the heads of all folds.

        Raises:
            UserError: slides do not fit into memory.
        """
        for head in {str(fold.saved.head): fold.saved.head for fold in self.folds}.values():
            check_room(bags, head, self.first.model.mean.device)

    def _checked(self, store: FeatureStore) -> Bag:
        """Return features as a bag, after checking that these models can predict them."""
        if problems := mismatches(store, self.first):
            raise problem_list(
                f"{store.path}: does not fit the models of {self.name}; embed the slide on the "
                "same grid with the same encoder",
                problems,
            )
        bag = Bag(store.path.name, "", "", store, None)
        self.check_rooms([bag])
        return bag

    def _predict(self, bag: Bag) -> FrozenPrediction:
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
            self.task.class_names,
            mean,
            np.mean(before, axis=0),
            each,
            np.mean(maps, axis=0, dtype=np.float32),
        )


def _map_of(label: int, loss: str) -> int:
    """Return the map of a class; ordered classes have one per threshold between them."""
    return max(0, label - (loss == "ordinal"))
