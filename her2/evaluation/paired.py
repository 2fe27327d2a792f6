"""Stage 2, compare: predictions of several models for the same patients, slides and folds.

Each bootstrap resample draws the same patients for all models, so that patients who are hard for
all of them cancel out in the differences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from her2.config import EvaluationSection, Task
from her2.core.errors import UserError
from her2.core.types import Floats
from her2.evaluation.bootstrap import bootstrapped, interval, two_sided
from her2.evaluation.groupings import Grouping, groupings_of, side_missing, two_sides
from her2.evaluation.predictions import Rows, averaged, rows_of
from her2.metrics.auc import auc
from her2.metrics.base import Binary

Model = tuple[str, str]
"""Encoder, head."""
Question = tuple[str, str]
"""(class or `macro`, "") or ("", grouping): names one AUC of a model."""
MACRO: Question = ("macro", "")


@dataclass(frozen=True, slots=True)
class Paired:
    """Predictions of several models for their common patients, in the same order.

    `rows` holds the patients of each model. `areas` holds each model's AUC for each question,
    (1 + b,): of all patients and of b resamples. For each question, `problems` tells why its AUC or
    interval is not defined, `counts` its number of patients, `sizes` those in each group that it
    contrasts. `left_out` is the number of patients not tested by all models.
    """

    task: Task
    groupings: Mapping[str, Grouping]
    confidence: float
    rows: Mapping[Model, Rows]
    areas: Mapping[Model, Mapping[Question, Floats]]
    problems: Mapping[Question, str]
    counts: Mapping[Question, int]
    sizes: Mapping[Question, tuple[int, ...]]
    left_out: int


def pair_models(
    predictions: Mapping[Model, pl.DataFrame], task: Task, section: EvaluationSection, *, seed: int
) -> Paired:
    """Restrict models to the slides (of every repeat) that all of them tested.

    Args:
        predictions: the predictions table of each model.
        task: the task that they predict.
        section: the `evaluation` section of the config, for groupings and resamples.
        seed: seed of the resamples.

    Raises:
        UserError: the models disagree on a slide's class or fold, or have no patient in common.
    """
    tested = {model: table.filter(pl.col("role") == "test") for model, table in predictions.items()}
    common = _common(tested)
    every = pl.concat([table.select("patient_id") for table in tested.values()])
    rows = {}
    for model, table in tested.items():
        shared = table.join(common, on=["slide_id", "repeat"], how="semi")
        rows[model] = rows_of(averaged(shared, task.class_names, by="patient_id"), task)
    one = next(iter(rows.values()))
    if not len(one):
        raise UserError(
            f"the models to compare ({', '.join('/'.join(model) for model in rows)}) have no "
            "patient in common; see the report's list of excluded slides."
        )
    groupings = {grouping.name: grouping for grouping in groupings_of(task, section)}
    questions: list[Question] = [(name, "") for name in task.class_names]
    questions += [MACRO, *(("", name) for name in groupings)]

    def measure(weights: Floats) -> Floats:
        each = [_areas(own, task, tuple(groupings.values()), weights) for own in rows.values()]
        return np.concatenate(each, axis=1)

    values = bootstrapped(
        measure, one.patients, one.target, resamples=section.bootstrap, seed=seed
    ).reshape(-1, len(rows), len(questions))
    found = {question: _problem(one, task, groupings, question) for question in questions}
    return Paired(
        task=task,
        groupings=groupings,
        confidence=section.confidence,
        rows=rows,
        areas={
            model: dict(zip(questions, values[:, index].T, strict=True))
            for index, model in enumerate(rows)
        },
        problems={question: problem for question, (problem, _) in found.items()},
        counts={question: count for question, (_, count) in found.items()},
        sizes={question: _sizes(one, task, groupings, question) for question in questions},
        left_out=every["patient_id"].n_unique() - len(one),
    )


def difference(draws: Floats, confidence: float, sizes: Sequence[int]) -> dict[str, float]:
    """Return `difference, low, high, p` of values (1 + b,), the point first; see `interval`."""
    low, high = interval(draws[1:], confidence, sizes)
    p = two_sided(draws[1:], sizes)
    return {"difference": float(draws[0]), "low": low, "high": high, "p": p}


def _common(tested: Mapping[Model, pl.DataFrame]) -> pl.DataFrame:
    """Return the `slide_id, repeat` pairs that all models tested, in the same fold."""
    keys = ["slide_id", "repeat"]
    merged = (
        pl.concat([table.select(*keys, "fold", "target") for table in tested.values()])
        .group_by(keys)
        .agg(pl.len().alias("models"), pl.col("fold", "target").n_unique())
        .sort(keys)
    )
    for column, words in (("target", "different labels"), ("fold", "different folds")):
        torn = merged.filter(pl.col(column) > 1)
        if len(torn):
            raise UserError(
                f"{torn['slide_id'][0]}: the models to compare were evaluated on {words}; run "
                "snakemake again."
            )
    return merged.filter(pl.col("models") == len(tested)).select(keys)


def _areas(rows: Rows, task: Task, groupings: tuple[Grouping, ...], weights: Floats) -> Floats:
    """Return the AUC of each class, the macro AUC and that of each grouping (b, k)."""
    classified = rows.weighted(weights)
    found = [auc(classified.one_vs_rest(index)) for index in range(len(task.class_names))]
    found.append(np.mean(found, axis=0))
    for grouping in groupings:
        sides = two_sides(rows, grouping)
        missing = side_missing(sides.positive)
        found.append(
            np.full(len(weights), np.nan)
            if missing
            else auc(Binary(sides.positive, sides.scores, weights[:, sides.kept]))
        )
    return np.stack(found, axis=1)


def _sizes(
    rows: Rows, task: Task, groupings: Mapping[str, Grouping], question: Question
) -> tuple[int, ...]:
    """Return the numbers of patients in the groups of a question.

    The groups are a class and the rest, both sides of a grouping, or all classes.
    """
    name, grouping = question
    if grouping:
        positive = two_sides(rows, groupings[grouping]).positive
        return int(positive.sum()), int((~positive).sum())
    if question == MACRO:
        return tuple(int(n) for n in rows.class_patients())
    return rows.sides(task.class_names.index(name))


def _problem(
    rows: Rows, task: Task, groupings: Mapping[str, Grouping], question: Question
) -> tuple[str, int]:
    """Return why an AUC or its interval is not defined ("" if both are), and its patient count.

    A side with a single patient has no interval, because it cannot be resampled.
    """
    name, grouping = question
    counts = rows.class_patients()
    if grouping:
        sides = two_sides(rows, groupings[grouping])
        fewest = min(int(sides.positive.sum()), int((~sides.positive).sum()))
        few = "interval not defined: a side has 1 patient" if fewest == 1 else ""
        return side_missing(sides.positive) or few, len(sides)
    of_class = (
        counts if question == MACRO
        else np.array([own := counts[task.class_names.index(name)], counts.sum() - own])
    )  # fmt: skip
    if not of_class.all():
        return "not defined: a class is absent", len(rows)
    few = "interval not defined: a class has 1 patient" if (of_class < 2).any() else ""
    return few, len(rows)
