"""Stage 2, evaluate: the AUC over pairs of patients of the same test set.

Scores of two folds come from two models and are not on one scale, so a pair of patients of
different folds is not compared. Pooling them is biased, most where a class is scarce: a fold with
few patients of a class is predicted by a model that saw more of them.

Each AUC comes with the influence of every patient on it (the derivative of the AUC with respect to
the patient's weight). Influences add up: over the classes to that on the macro AUC, over models to
that on a difference. `her2.evaluation.intervals` makes variances of them. With one fold, one row
per patient and two groups the variance is DeLong's (DeLong, DeLong and Clarke-Pearson, Biometrics
44(3), 1988).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from her2.config import Task
from her2.core.types import Bools, Floats, Ints
from her2.evaluation.groupings import Grouping, two_sides
from her2.evaluation.predictions import KEYS, MODEL

DECIMALS = 10
"""Scores are compared to so many decimals: averages of equal numbers can differ in the last bit."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Test predictions of patients or slides, a row for each time that one was tested.

    Attributes:
        target: class index of each row (n,).
        probabilities: (n, c).
        patients: index of each row's patient (n,), into `names` and `classes`.
        models: index of the model that predicted each row (n,), into `rounds`. Rows are compared
            within a model; `within` divides the rows of a model further.
        rounds: index of each model's round (m,); a round is one repeat of the cross-validation
            with one training seed, and tests every patient at most once.
        folds: number of test sets per round.
        names: ids of the patients (p,), sorted.
        classes: class index of each patient (p,).
    """

    target: Ints
    probabilities: Floats
    patients: Ints
    models: Ints
    rounds: Ints
    folds: int
    names: tuple[str, ...]
    classes: Ints

    @property
    def class_patients(self) -> Ints:
        """Number of patients in each class (c,)."""
        return np.bincount(self.classes, minlength=self.probabilities.shape[1])


@dataclass(frozen=True, slots=True)
class Area:
    """An AUC, or a linear combination of AUCs.

    Attributes:
        rounds: the AUC of each round (r,), NaN where no fold has a pair.
        influence: of each patient on each round's AUC (r, p).
        folds: number of test sets per round.
        groups: the group in which each patient is exchangeable (p,), -1 for one who is not in
            the figure: class against rest, the two sides of a grouping, or the classes.
        reason: why it is not defined; "" if it is.
        levels: how useful the models are: the mean of the AUCs of which it is made, in each
            round (r,).
    """

    rounds: Floats
    influence: Floats
    groups: Ints
    levels: Floats
    folds: int
    reason: str = ""

    @property
    def value(self) -> float:
        """Mean over the rounds, NaN if it is not defined."""
        return float("nan") if self.reason else float(self.rounds[self.defined].mean())

    @property
    def defined(self) -> Bools:
        """Whether each round has pairs (r,)."""
        return ~np.isnan(self.rounds)

    @property
    def level(self) -> float:
        """How useful the models are, as the mean over the rounds."""
        return float(self.levels[self.defined].mean())

    @property
    def sizes(self) -> Ints:
        """Number of patients in each group."""
        return np.unique(self.groups[self.groups >= 0], return_counts=True)[1]


def held_out(predictions: pl.DataFrame, task: Task, *, level: str) -> HeldOut:
    """Return the test rows of a predictions table, averaged over a patient's slides per model.

    Args:
        predictions: the table of `her2.evaluation.predictions.gather_predictions`.
        task: the task, for its classes.
        level: `patient` or `slide`.
    """
    columns = [f"prob_{name}" for name in task.class_names]
    table = (
        predictions.filter(pl.col("role") == "test")
        .group_by([*MODEL, *KEYS[level]])
        .agg(pl.col("target").first(), *(pl.col(name).mean() for name in columns))
        .sort([*MODEL, *KEYS[level]])
    )
    models = table.select(MODEL).unique().sort(MODEL)
    models = models.with_columns(
        model=pl.int_range(pl.len()), round=pl.struct("repeat", "seed").rank("dense") - 1
    )
    patients = table.group_by("patient_id").agg(pl.col("target").first()).sort("patient_id")
    patients = patients.with_columns(patient=pl.int_range(pl.len()))
    rows = table.join(models, on=list(MODEL), how="left", maintain_order="left").join(
        patients.select("patient_id", "patient"),
        on="patient_id",
        how="left",
        maintain_order="left",
    )
    return HeldOut(
        target=_whole(rows["target"]),
        probabilities=rows.select(columns).cast(pl.Float64).to_numpy(),
        patients=_whole(rows["patient"]),
        models=_whole(rows["model"]),
        rounds=_whole(models["round"]),
        folds=int(np.bincount(_whole(models["round"])).max(initial=1)),
        names=tuple(patients["patient_id"]),
        classes=_whole(patients["target"]),
    )


def within(rows: HeldOut, groups: Ints) -> HeldOut:
    """Return the rows divided so that only patients of the same test set and group are compared.

    Args:
        rows: the rows.
        groups: group of each patient (p,), such as their site; patients of -1 are left out.
    """
    kept = groups[rows.patients] >= 0
    patients, place = np.unique(rows.patients[kept], return_inverse=True)
    pairs = np.stack([rows.models[kept], groups[rows.patients[kept]]])
    parts, models = np.unique(pairs, axis=1, return_inverse=True)
    return HeldOut(
        target=rows.target[kept],
        probabilities=rows.probabilities[kept],
        patients=place,
        models=models.ravel(),
        rounds=rows.rounds[parts[0]],
        folds=rows.folds,
        names=tuple(rows.names[index] for index in patients),
        classes=rows.classes[patients],
    )


def opponents(rows: HeldOut, positive: Bools) -> Ints:
    """Return how many rows of the other side each row is compared with (n,)."""
    up, down = (np.bincount(rows.models[side], minlength=len(rows.rounds))
                for side in (positive, ~positive))  # fmt: skip
    return np.where(positive, down[rows.models], up[rows.models])


def class_area(rows: HeldOut, index: int) -> Area:
    """Return the AUC of a class against the rest."""
    scores = rows.probabilities[:, index]
    groups = (rows.classes == index).astype(np.int64)
    return area(rows, rows.target == index, scores, np.full(len(scores), True), groups)


def class_areas(rows: HeldOut) -> list[Area]:
    """Return the AUC of each class against the rest."""
    return [class_area(rows, index) for index in range(rows.probabilities.shape[1])]


def grouping_area(rows: HeldOut, grouping: Grouping) -> Area:
    """Return the AUC of the positive side of a grouping against its negative side."""
    sides = two_sides(rows.target, rows.probabilities, grouping)
    positive, scores = np.zeros(len(rows.target), bool), np.zeros(len(rows.target))
    positive[sides.kept], scores[sides.kept] = sides.positive, sides.scores
    groups = np.full(len(rows.classes), -1)
    groups[np.isin(rows.classes, grouping.negative)] = 0
    groups[np.isin(rows.classes, grouping.positive)] = 1
    return area(rows, positive, scores, sides.kept, groups)


def macro_area(rows: HeldOut, classes: Sequence[Area]) -> Area:
    """Return the mean of the AUCs of all classes, in the rounds that have all of them."""
    found = combined(classes, [1 / len(classes)] * len(classes), groups=rows.classes)
    if not rows.class_patients.all():
        return replace(found, reason="not defined: a class is absent")
    return found


def combined(areas: Sequence[Area], weights: Sequence[float] | Floats, *, groups: Ints) -> Area:
    """Return a linear combination of AUCs of the same patients, such as a mean or a difference.

    A round in which one of them is not defined does not count.
    """
    reason = next((one.reason for one in areas if one.reason), "")
    rounds = np.tensordot(weights, [one.rounds for one in areas], axes=1)
    if not reason and np.isnan(rounds).all():
        reason = "not defined: no round has pairs of patients for every part of it"
    influence = np.tensordot(weights, [one.influence for one in areas], axes=1)
    total = float(np.abs(weights).sum())
    parts = np.abs(weights) / (total or 1.0)
    levels = np.tensordot(parts, [one.levels for one in areas], axes=1)
    return Area(rounds, influence, groups, levels, areas[0].folds, reason)


def area(rows: HeldOut, positive: Bools, scores: Floats, kept: Bools, groups: Ints) -> Area:
    """Return the AUC over pairs of one positive and one negative row of the same model.

    Args:
        rows: the rows.
        positive: side of each row (n,).
        scores: of each row (n,); higher for positive.
        kept: the rows that count (n,).
        groups: of the patients (p,), see `Area`.
    """
    models = np.where(kept, rows.models, -1)
    scores = np.round(scores, DECIMALS)
    count = int(rows.rounds.max(initial=-1)) + 1
    concordant, pairs = np.zeros(count), np.zeros(count)
    # Per row: concordance with the rows of the other side, and their number.
    won, met = np.zeros(len(scores)), np.zeros(len(scores))
    for model, round_ in enumerate(rows.rounds):
        own = np.flatnonzero(models == model)
        up, down = own[positive[own]], own[~positive[own]]
        won[up] = _below(scores[up], scores[down])
        won[down] = len(up) - _below(scores[down], scores[up])
        met[up], met[down] = len(down), len(up)
        concordant[round_] += won[up].sum()
        pairs[round_] += len(up) * len(down)
    rounds = np.divide(concordant, pairs, out=np.full(count, np.nan), where=pairs > 0)
    influence = np.zeros((count, len(rows.names)))
    counted = np.flatnonzero(models >= 0)
    at = rows.rounds[models[counted]]
    counted, at = counted[pairs[at] > 0], at[pairs[at] > 0]
    change = (won[counted] - rounds[at] * met[counted]) / pairs[at]
    np.add.at(influence, (at, rows.patients[counted]), change)
    return Area(rounds, influence, groups, rounds, rows.folds, _reason(groups, pairs))


def _below(scores: Floats, others: Floats) -> Floats:
    """Return how many of the others are below each score, with ties counting half."""
    ordered = np.sort(others)
    before, until = (np.searchsorted(ordered, scores, side) for side in ("left", "right"))
    found: Floats = (before + until) / 2
    return found


def _reason(groups: Ints, pairs: Floats) -> str:
    if pairs.any():
        return ""
    for side, words in ((1, "positive"), (0, "negative")):
        if not (groups == side).any():
            return f"not defined: no patient on the {words} side"
    return "not defined: no test set has patients of both sides"


def _whole(column: pl.Series) -> Ints:
    return column.cast(pl.Int64).to_numpy()
