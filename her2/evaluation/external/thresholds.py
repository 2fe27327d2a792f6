"""Stage 2, external cohorts: the thresholds that were chosen in development.

Each fold's is chosen on its calibrated tuning set, as in `her2.evaluation.operating_points`, whose
thresholds are on the probabilities before the temperature. The frozen model has their mean.
"""

from collections.abc import Mapping

import polars as pl

from her2.config import EvaluationSection, Task
from her2.config.external_jobs import Truth
from her2.evaluation.external.tables import THRESHOLDS
from her2.evaluation.external.truth import in_truth
from her2.evaluation.groupings import groupings_of, side_missing, two_sides
from her2.evaluation.predictions import averaged, of_run, rows_of, runs
from her2.evaluation.temperature import scaled_predictions
from her2.evaluation.thresholds import Choices

LEVELS = ("patient", "slide")


def fold_thresholds(
    predictions: pl.DataFrame,
    temperatures: pl.DataFrame,
    task: Task,
    section: EvaluationSection,
    *,
    truth: Truth | None = None,
) -> pl.DataFrame:
    """Return the threshold of each fold, at each level, grouping and demand.

    Args:
        predictions: the development's predictions table.
        temperatures: the development's table of them; a fold without one is left as predicted.
        task: the development's task.
        section: the `evaluation` section of the config, for groupings and demands.
        truth: if given, the groupings are those of its classes.

    Returns:
        The columns of `her2.evaluation.external.tables.THRESHOLDS`.
    """
    scaled = scaled_predictions(predictions, temperatures, task)[0]
    tuned = predictions if scaled is None else scaled
    if truth is not None:
        tuned, task = in_truth(tuned, truth), truth.truth
    asked = {"specificity": section.specificity, "sensitivity": section.sensitivity}
    records = []
    for level in LEVELS:
        for run in runs(tuned):
            table = averaged(of_run(tuned, run, "tune"), task.class_names, by=f"{level}_id")
            rows = rows_of(table, task)
            for grouping in groupings_of(task, section):
                sides = two_sides(rows.target, rows.probabilities, grouping)
                lacking = side_missing(sides.positive)
                choices = None if lacking else Choices.of(sides.positive, sides.scores)
                records += [
                    {
                        "level": level,
                        "grouping": grouping.name,
                        "fixed": fixed,
                        "asked": value,
                        "run": run.name,
                        "threshold": choices and choices.threshold(fixed, value),
                        "note": lacking and "no threshold: the tuning set lacks a side",
                    }
                    for fixed, value in asked.items()
                ]
    return pl.DataFrame(records, schema=THRESHOLDS)


def mean_threshold(thresholds: pl.DataFrame, **where: object) -> Mapping[str, float] | None:
    """Return `value`, `lowest` and `highest` of the folds' thresholds; None if there are none.

    Args:
        thresholds: the table of `fold_thresholds`.
        where: values of its columns `level`, `grouping` and `fixed`.
    """
    own = thresholds.filter(*(pl.col(name) == value for name, value in where.items()))
    values = own["threshold"].drop_nulls().to_numpy()
    if not len(values):
        return None
    return {
        "value": float(values.mean()),
        "lowest": float(values.min()),
        "highest": float(values.max()),
    }
