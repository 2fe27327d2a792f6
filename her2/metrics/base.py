"""The declaration of a metric, and the predictions it is computed from.

A metric is computed for many bootstrap resamples at once: `weights` (b, n) tell how often each of n
rows counts in each of b resamples. A row of ones gives the figure of the sample itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from her2.core.types import Bools, Floats, Ints

Table = Literal["metrics", "calibration"]
Mean = Literal["macro", "weighted"]


@dataclass(frozen=True)
class RankedCounts:
    """Weights summed over the rows of equal score, highest score first, each (b, groups).

    `up` and `every` sum the positive rows and all rows of a group. `hit` and `called` are their
    cumulative sums over the group and all groups above it, which are the rows that a threshold at
    the group's score calls positive.
    """

    up: Floats
    every: Floats
    hit: Floats
    called: Floats

    @property
    def positives(self) -> Floats:
        """Total weight of the positive rows (b,)."""
        return self.hit[:, -1]

    @property
    def negatives(self) -> Floats:
        """Total weight of the negative rows (b,)."""
        return self.called[:, -1] - self.hit[:, -1]


@dataclass(frozen=True)
class Binary:
    """Rows that are `positive` (n,) or not, their `scores` (n,), and `weights` (b, n)."""

    positive: Bools
    scores: Floats
    weights: Floats

    @cached_property
    def ranked(self) -> RankedCounts:
        """Counts by score; cached, because sorting takes most of the time of every metric."""
        order = np.argsort(-self.scores, kind="stable")
        # Rows of equal score form one group: their pairs count half, and no threshold parts them.
        starts = np.flatnonzero(np.diff(self.scores[order], prepend=np.inf))
        every = self.weights[:, order]
        up = every * self.positive[order]
        if len(starts) < len(self.scores):
            up = np.add.reduceat(up, starts, axis=1)
            every = np.add.reduceat(every, starts, axis=1)
        return RankedCounts(up, every, np.cumsum(up, axis=1), np.cumsum(every, axis=1))


@dataclass(frozen=True)
class Classified:
    """Class indices `target` (n,), `probabilities` (n, c) and `weights` (b, n)."""

    target: Ints
    probabilities: Floats
    weights: Floats

    @property
    def classes(self) -> int:
        """Number of classes, c."""
        return self.probabilities.shape[1]

    @cached_property
    def predicted(self) -> Ints:
        """The most probable class (n,); the first of equally probable ones."""
        return self.probabilities.argmax(axis=1).astype(np.int64)

    @cached_property
    def matrices(self) -> Floats:
        """Confusion matrices (b, c, c): rows are the true classes."""
        return confusion(self.target, self.predicted, self.classes, self.weights)

    @cached_property
    def prevalence(self) -> Floats:
        """Share of each class in each resample (b, c)."""
        counts: Floats = self.weights @ np.eye(self.classes)[self.target]
        return counts / self.weights.sum(axis=1, keepdims=True)

    def one_vs_rest(self, index: int) -> Binary:
        """Return the rows as one class, scored by its probability, against all others."""
        return Binary(self.target == index, self.probabilities[:, index], self.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A metric's choice of the best epoch (and the best trial of a search) on the tuning set.

    Attributes:
        name: the value of `training.select`, and `tune_{name}` in a fold's history.
        words: the criterion in the report's words: `the highest macro AUC`.
        compute: function of rows with a single resample of ones that returns the figure, NaN where
            it is not defined. It is called after every epoch.
        needs: the classes that the tuning set must contain; a run without them is refused before
            training.
    """

    name: str
    words: str
    compute: Callable[[Classified], float]
    needs: Literal["any", "two", "all"] = "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A figure computed from predictions, with its names, requirements and functions.

    It has at least one of `one_vs_rest`, `overall` and `grouping`, each of which returns one value
    per resample, (b,), and NaN where the metric is not defined.

    Attributes:
        name: its name in the column `metric` of the tables.
        label: its name on the report's page.
        phrase: its name in the methods text: `the Brier score (Brier 1950)`.
        definition: its definition in docs/metrics.md.
        order: sort key in tables and text; metrics with equal keys are sorted by name.
        larger_is_better: whether a larger value is better.
        ordinal: whether it is defined for ordered classes only; other tasks omit it.
        each_class: whether it weighs every class alike, however rare, so that its interval needs
            patients of each class.
        within_folds: whether only rows of the same test set are compared. For the AUC alone:
            `her2.evaluation.areas` computes it, and `one_vs_rest` is for a single test set.
        one_vs_rest: computes it for each class against the rest.
        means: the means over the classes that are given beside those.
        overall: computes it over all classes at once.
        grouping: computes it for two groups of classes (`evaluation.groupings`).
        tables: tables with its figures over all classes: `metrics`, and `calibration` for figures
            before and after temperature scaling.
        headline: its place among the columns of the report's headline; None: not in it.
        selection: its choice of the best epoch; None: it cannot choose.
        no_interval: why it has no interval; "" if it has one.
        decimals: number of decimals on the page.
        note: a sentence below the report's table of all figures.
        references: works that `phrase` cites, such as `Brier 1950` -> where they appeared.
    """

    name: str
    label: str
    phrase: str
    definition: str
    order: int = 100
    larger_is_better: bool = True
    ordinal: bool = False
    each_class: bool = False
    within_folds: bool = False
    one_vs_rest: Callable[[Binary], Floats] | None = None
    means: tuple[Mean, ...] = ()
    overall: Callable[[Classified], Floats] | None = None
    grouping: Callable[[Binary], Floats] | None = None
    tables: tuple[Table, ...] = ("metrics",)
    headline: int | None = None
    selection: Selection | None = None
    no_interval: str = ""
    decimals: int = 3
    note: str = ""
    references: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a declaration that fits no table."""
        if not (self.one_vs_rest or self.overall or self.grouping):
            raise ValueError(f"metric {self.name!r} computes nothing")
        if "calibration" in self.tables and self.overall is None:
            raise ValueError(f"metric {self.name!r} is in `calibration` but has no `overall`")

    def columns(self, class_names: tuple[str, ...]) -> tuple[str, ...]:
        """Return its values of the column `class`: class names, means, and "" for all classes."""
        each = (*class_names, *self.means) if self.one_vs_rest else ()
        return (*each, "") if self.overall else each


def confusion(target: Ints, predicted: Ints, classes: int, weights: Floats) -> Floats:
    """Return the confusion matrices (b, c, c) of class indices (n,); rows are the true classes."""
    cells = np.zeros((len(target), classes * classes))
    cells[np.arange(len(target)), target * classes + predicted] = 1
    matrices: Floats = (weights @ cells).reshape(-1, classes, classes)
    return matrices


def mean(values: Floats, weights: Floats) -> Floats:
    """Return the weighted means (b,) of values (n,); NaN where all weights are 0."""
    return share(weights @ values, weights.sum(axis=1))


def mean_over_classes(kind: Mean, values: Floats, rows: Classified) -> Floats:
    """Return the mean (b,) of the classes' values (b, c).

    A `weighted` mean is weighted by the classes' prevalence in each resample.
    """
    if kind == "macro":
        plain: Floats = values.mean(axis=1)
        return plain
    weighted: Floats = (values * rows.prevalence).sum(axis=1)
    return weighted


def share(part: Floats, whole: Floats) -> Floats:
    """Divide a part by its whole; NaN where the whole is 0."""
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def steps(classes: int) -> Ints:
    """Return the distance between every two ordered classes (c, c)."""
    return np.abs(np.arange(classes)[:, None] - np.arange(classes)[None, :])
