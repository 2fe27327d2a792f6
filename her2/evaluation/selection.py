"""Stage 2, compare: what the best of several models is worth.

The highest of several AUCs is too high on average, since it was chosen for being high. Bootstrap
bias-corrected cross-validation (BBC-CV) repeats the choice: patients are drawn with replacement
within their class, the model with the highest macro AUC on the drawn patients is selected, and its
macro AUC on the patients who were not drawn is noted. The mean over the resamples is an estimate
for the way of choosing, not for one model. No model is trained again.

Source: Tsamardinos, Greasidou and Borboudakis, Machine Learning 107, 2018.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from her2.config import EvaluationSection, Task
from her2.core.tables import null
from her2.core.types import Floats, Ints
from her2.evaluation.areas import DECIMALS, HeldOut, class_areas, held_out, macro_area
from her2.evaluation.bootstrap import unvarying, weight_blocks
from her2.evaluation.intervals import Estimate, mean_estimate
from her2.evaluation.nested import pick_models, picked_words
from her2.evaluation.paired import Model, commonly_tested, left_out_words

HIGHEST, CORRECTED, NESTED = "highest of the table", "bias-corrected (BBC-CV)", "nested"
"""Values of the column `method`."""
SELECTION = {
    "task": pl.String,
    "method": pl.String,
    "encoder": pl.String,
    "head": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "models": pl.Int64,
    "note": pl.String,
}
"""`encoder` and `head` are empty where the figure is of a way of choosing; `n` is the number of
patients, `models` that of the models to choose from."""
SINGLE = "not defined: a single model, so none was chosen"


@dataclass(frozen=True, slots=True)
class Resampled:
    """The resamples of BBC-CV.

    Attributes:
        values: macro AUC of the selected model on the patients who were not drawn (b,); NaN if
            they have no pairs of every class.
        chosen: index of the selected model (b,); -1 if no model has a macro AUC.
    """

    values: Floats
    chosen: Ints


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of one class against the rest in one test set, by a model's scores of that class.

    Attributes:
        index: the class.
        round: the round of the test set.
        positive: patients of the class (p,).
        negative: patients of the rest in the order of their scores (q,).
        below: how many of the rest have a lower score than each patient of the class (p,).
        until: how many have a lower or the same score (p,).
    """

    index: int
    round: int
    positive: Ints
    negative: Ints
    below: Ints
    until: Ints


def selection_records(
    predictions: Mapping[Model, pl.DataFrame], task: Task, section: EvaluationSection, *, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of a task in the tables `selection` and `picks`, without the task.

    All figures are macro AUCs of the patients that all models tested.

    Args:
        predictions: the predictions table of each model.
        task: the task that they predict.
        section: the `evaluation` section of the config.
        seed: seed of the resamples.

    Raises:
        UserError: the models disagree on a slide's class or fold.
    """
    tested = commonly_tested(predictions)
    rows = {model: held_out(table, task, level="patient") for model, table in tested.items()}
    patients = len(next(iter(rows.values())).names)
    shared = {"n": patients, "models": len(rows)}
    left_out = left_out_words(predictions, patients)
    best, highest = _highest(rows, section.confidence)
    found = {HIGHEST: highest, CORRECTED: _undefined(SINGLE)}
    if len(rows) > 1:
        resampled = corrected(list(rows.values()), resamples=section.bootstrap, seed=seed)
        found[CORRECTED] = corrected_estimate(resampled, list(rows), section.confidence)
    picks: list[dict[str, Any]] = []
    if section.selection == "nested":
        found[NESTED] = _undefined(SINGLE)
        if len(rows) > 1:
            picks, pipeline, reason = pick_models(predictions, tested, task)
            found[NESTED] = _undefined(reason) if reason else _nested(pipeline, task, section)
    records = []
    for method, estimate in found.items():
        encoder, head = best if method == HIGHEST else ("", "")
        words = (estimate.note, picked_words(picks) if method == NESTED else "", left_out)
        records.append(
            {"method": method, "encoder": encoder, "head": head}
            | {name: null(getattr(estimate, name)) for name in ("value", "low", "high")}
            | shared
            | {"note": "; ".join(part for part in words if part)}
        )
    return records, picks


def corrected(models: Sequence[HeldOut], *, resamples: int, seed: int) -> Resampled:
    """Repeat the selection of the model with the highest macro AUC in resamples of the patients.

    Of equal models the first is selected. Memory does not grow with the number of resamples.

    Args:
        models: held-out predictions of each model, all of the same patients.
        resamples: number of resamples.
        seed: seed of the draws.
    """
    classes = models[0].classes
    if not len(classes):
        return Resampled(np.full(resamples, np.nan), np.full(resamples, -1))
    count = models[0].probabilities.shape[1]
    pairs = [ranked_pairs(rows) for rows in models]
    values, chosen = [], []
    everyone = np.arange(len(classes))
    for block in weight_blocks(everyone, classes, resamples=resamples, seed=seed):
        drawn = np.ascontiguousarray(block.T)
        inside = np.stack([weighted_macro(own, drawn, classes=count) for own in pairs])
        known = ~np.isnan(inside).all(axis=0)
        ranking = np.where(np.isnan(inside), -np.inf, np.round(inside, DECIMALS))
        best = np.where(known, ranking.argmax(axis=0), -1)
        outside = np.full(len(best), np.nan)
        left = (drawn == 0).astype(np.float64)
        for model in np.unique(best[known]):
            at = np.flatnonzero(best == model)
            outside[at] = weighted_macro(pairs[model], left[:, at], classes=count)
        values.append(outside)
        chosen.append(best)
    return Resampled(np.concatenate(values), np.concatenate(chosen))


def ranked_pairs(rows: HeldOut) -> list[Pairs]:
    """Return the pairs of each class and test set."""
    scores = np.round(rows.probabilities, DECIMALS)
    found = []
    for model, round_ in enumerate(rows.rounds):
        own = np.flatnonzero(rows.models == model)
        for index in range(scores.shape[1]):
            up, down = own[rows.target[own] == index], own[rows.target[own] != index]
            down = down[np.argsort(scores[down, index], kind="stable")]
            ordered, wanted = scores[down, index], scores[up, index]
            found.append(
                Pairs(
                    index=index,
                    round=int(round_),
                    positive=rows.patients[up],
                    negative=rows.patients[down],
                    below=np.searchsorted(ordered, wanted, "left"),
                    until=np.searchsorted(ordered, wanted, "right"),
                )
            )
    return found


def weighted_macro(pairs: Sequence[Pairs], weights: Floats, *, classes: int) -> Floats:
    """Return the macro AUC of a model for weights of the patients.

    It is the mean over the rounds that have pairs of every class, as `her2.evaluation.areas` has
    it for weights of 1.

    Args:
        pairs: of the model.
        weights: how often each patient counts in each resample (p, b).
        classes: number of classes.

    Returns:
        (b,), NaN where no round has pairs of every class.
    """
    shape = (
        1 + max((one.round for one in pairs), default=0),
        classes,
        weights.shape[1],
    )
    concordant, total = np.zeros(shape), np.zeros(shape)
    for one in pairs:
        up = weights[one.positive]
        # Total weight of the rest below each rank.
        down = np.zeros((len(one.negative) + 1, shape[2]))
        np.cumsum(weights[one.negative], axis=0, out=down[1:])
        won = down[one.below]
        if (one.below < one.until).any():  # ties count half
            won = (won + down[one.until]) / 2
        concordant[one.round, one.index] += np.einsum("pb,pb->b", up, won)
        total[one.round, one.index] += up.sum(axis=0) * down[-1]
    each = np.divide(concordant, total, out=np.full(shape, np.nan), where=total > 0)
    rounds = each.mean(axis=1)
    known = ~np.isnan(rounds)
    count = known.sum(axis=0)
    summed = np.where(known, rounds, 0).sum(axis=0)
    return np.divide(summed, count, out=np.full(shape[2], np.nan), where=count > 0)


def corrected_estimate(found: Resampled, models: Sequence[Model], confidence: float) -> Estimate:
    """Return the mean of the resamples with the interval of their percentiles.

    The note names the model that was selected most often.
    """
    values = found.values[~np.isnan(found.values)]
    if not len(values):
        return _undefined("not defined: in no resample are patients of every class left out")
    counts = np.bincount(found.chosen[found.chosen >= 0], minlength=len(models))
    most = int(counts.argmax())
    share = 100 * counts[most] / counts.sum()
    notes = [f"selected most often: {' / '.join(models[most])} ({share:.0f} %)"]
    if lost := len(found.values) - len(values):
        notes.append(
            f"{lost} of {len(found.values)} resamples are without patients of every class to "
            "measure on"
        )
    if same := unvarying(values):
        return Estimate(float(values.mean()), note="; ".join([same, *notes]))
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(values.mean()), float(low), float(high), note="; ".join(notes))


def _highest(rows: Mapping[Model, HeldOut], confidence: float) -> tuple[Model, Estimate]:
    """Return the model with the highest macro AUC, the first of equal ones; else the first."""
    found = {model: _macro(own, confidence) for model, own in rows.items()}
    best = max(found, key=lambda model: np.nan_to_num(round(found[model].value, DECIMALS), nan=-1))
    return best, found[best]


def _macro(rows: HeldOut, confidence: float) -> Estimate:
    classes = class_areas(rows)
    return mean_estimate(macro_area(rows, classes), classes, confidence)


def _nested(pipeline: pl.DataFrame, task: Task, section: EvaluationSection) -> Estimate:
    return _macro(held_out(pipeline, task, level="patient"), section.confidence)


def _undefined(note: str) -> Estimate:
    return Estimate(float("nan"), note=note)
