"""What a metric declares of itself, and the predictions it is computed from.

A metric is computed for many bootstrap resamples at once: `weights` (b, n) say how often each of n
rows counts in each of b resamples. A row of ones gives the figure itself.
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

    `up` and `every` are of the positive and of all rows of a group. `hit` and `called` are the same
    of the group and all above it: what a threshold at its score would call positive.
    """

    up: Floats
    every: Floats
    hit: Floats
    called: Floats

    @property
    def positives(self) -> Floats:
        """Weight of all positive rows (b,)."""
        return self.hit[:, -1]

    @property
    def negatives(self) -> Floats:
        """Weight of all negative rows (b,)."""
        return self.called[:, -1] - self.hit[:, -1]


@dataclass(frozen=True)
class Binary:
    """Rows that are `positive` (n,) or not, their `scores` (n,), and `weights` (b, n)."""

    positive: Bools
    scores: Floats
    weights: Floats

    @cached_property
    def ranked(self) -> RankedCounts:
        """Counts by score. Sorting the weights is most of the work of what is made of them."""
        order = np.argsort(-self.scores, kind="stable")
        # Equal scores form one group: within it, pairs count half, and no threshold lies in it.
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
        """How many classes there are, c."""
        return self.probabilities.shape[1]

    @cached_property
    def predicted(self) -> Ints:
        """The most probable class (n,); of equals the first."""
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
        """A class, scored by its probability, against all others."""
        return Binary(self.target == index, self.probabilities[:, index], self.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """How a metric picks the best epoch (and the best trial of a search) on the tuning set.

    Attributes:
        name: the value of `training.select`, and `tune_{name}` in a fold's history.
        words: what the report says of the epoch that was kept: `the highest macro AUC`.
        compute: (rows, with a single resample of ones) -> the figure, NaN where it is not defined.
            It is called after every epoch.
        needs: classes that the tuning set must hold; training stops early where it does not.
    """

    name: str
    words: str
    compute: Callable[[Classified], float]
    needs: Literal["any", "two", "all"] = "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A figure of predictions: what it is called, what it needs and how it is computed.

    It has at least one of `one_vs_rest`, `overall` and `grouping`, each of which returns one value
    per resample, (b,), and NaN where the metric is not defined.

    Attributes:
        name: in the column `metric` of the tables.
        label: on the page.
        phrase: in the methods text: `the Brier score (Brier 1950)`.
        definition: in docs/metrics.md.
        order: of metrics in tables and text; equal ones are sorted by name.
        larger_is_better: whether more of it is better.
        ordinal: it is of ordered classes alone; other tasks do not have it.
        each_class: it counts every class alike, however rare, so that its interval needs patients
            of each.
        one_vs_rest: computes it for each class against the rest.
        means: over the classes, given beside those.
        overall: computes it over all classes at once.
        grouping: computes it for two groups of classes (`evaluation.groupings`).
        tables: that hold it for all classes: `metrics`, and `calibration` where it is given before
            and after the temperature.
        headline: its place among the columns of the report's headline; None: it has none.
        selection: how it picks the best epoch; None: it does not.
        decimals: on the page.
        note: a sentence below the report's table of all figures.
        references: works that `phrase` names, `Brier 1950`, and where they appeared.
    """

    name: str
    label: str
    phrase: str
    definition: str
    order: int = 100
    larger_is_better: bool = True
    ordinal: bool = False
    each_class: bool = False
    one_vs_rest: Callable[[Binary], Floats] | None = None
    means: tuple[Mean, ...] = ()
    overall: Callable[[Classified], Floats] | None = None
    grouping: Callable[[Binary], Floats] | None = None
    tables: tuple[Table, ...] = ("metrics",)
    headline: int | None = None
    selection: Selection | None = None
    decimals: int = 3
    note: str = ""
    references: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a declaration that no table could hold."""
        if not (self.one_vs_rest or self.overall or self.grouping):
            raise ValueError(f"metric {self.name!r} computes nothing")
        if "calibration" in self.tables and self.overall is None:
            raise ValueError(f"metric {self.name!r} is of calibration and has no `overall`")

    def columns(self, class_names: tuple[str, ...]) -> tuple[str, ...]:
        """What stands in the column `class`: class names, means, and nothing for all at once."""
        each = (*class_names, *self.means) if self.one_vs_rest else ()
        return (*each, "") if self.overall else each


def confusion(target: Ints, predicted: Ints, classes: int, weights: Floats) -> Floats:
    """Confusion matrices (b, c, c) of class indices (n,): rows are the true classes."""
    cells = np.zeros((len(target), classes * classes))
    cells[np.arange(len(target)), target * classes + predicted] = 1
    matrices: Floats = (weights @ cells).reshape(-1, classes, classes)
    return matrices


def mean(values: Floats, weights: Floats) -> Floats:
    """Weighted means (b,) of values (n,); NaN where nothing counts."""
    return share(weights @ values, weights.sum(axis=1))


def mean_over_classes(kind: Mean, values: Floats, rows: Classified) -> Floats:
    """Mean (b,) of the classes' values (b, c): plain, or weighted by prevalence in the resample."""
    if kind == "macro":
        plain: Floats = values.mean(axis=1)
        return plain
    weighted: Floats = (values * rows.prevalence).sum(axis=1)
    return weighted


def share(part: Floats, whole: Floats) -> Floats:
    """Part of whole; NaN where the whole is 0."""
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def steps(classes: int) -> Ints:
    """Distance of every pair of ordered classes (c, c)."""
    return np.abs(np.arange(classes)[:, None] - np.arange(classes)[None, :])
