"""Stage 2, control: a model's AUC compared with that of covariates, on the same patients."""

import polars as pl

from her2.config import EvaluationSection, Task
from her2.evaluation.figures import null
from her2.evaluation.intervals import Estimate
from her2.evaluation.paired import pair_models

COVARIATES = {
    "class": pl.String,
    "model": pl.Float64,
    "model_low": pl.Float64,
    "model_high": pl.Float64,
    "covariates": pl.Float64,
    "covariates_low": pl.Float64,
    "covariates_high": pl.Float64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
    "n": pl.Int64,
    "n_positive": pl.Int64,
    "reached": pl.Boolean,
    "note": pl.String,
}


def compare_with_covariates(
    predictions: pl.DataFrame,
    by_covariates: pl.DataFrame,
    task: Task,
    section: EvaluationSection,
) -> pl.DataFrame:
    """Compare AUCs (each class and macro); the paired difference is model minus covariates.

    `reached` is true where the covariates' AUC is not below the model's, or the interval of the
    difference contains 0, so that covariates alone may explain the figure. It is null where the
    model's AUC is higher but the difference has no interval.
    """
    models = {("model", ""): predictions, ("covariates", ""): by_covariates}
    paired = pair_models(models, task, section)
    positives = _positives(predictions, task)
    records = []
    for name in (*task.class_names, "macro"):
        question = name, ""
        gap = paired.difference(("model", ""), ("covariates", ""), question)
        records.append(
            {
                "class": name,
                **_three("model", paired.estimate(("model", ""), question)),
                **_three("covariates", paired.estimate(("covariates", ""), question)),
                "difference": null(gap.value),
                "low": null(gap.low),
                "high": null(gap.high),
                "p": null(gap.p),
                "n": paired.counts[question],
                "n_positive": positives.get(name),
                "reached": _reached(gap),
                "note": gap.note,
            }
        )
    return pl.DataFrame(records, schema=COVARIATES)


def no_covariates(task: Task, reason: str) -> pl.DataFrame:
    """Return the same table with nulls and the reason why there is no comparison."""
    rows = [{"class": name, "note": reason} for name in (*task.class_names, "macro")]
    return pl.DataFrame(rows, schema=COVARIATES)


def _positives(predictions: pl.DataFrame, task: Task) -> dict[str, int]:
    tested = predictions.filter(pl.col("role") == "test")
    counts = dict(tested.group_by("target").agg(pl.col("patient_id").n_unique()).iter_rows())
    return {name: counts.get(index, 0) for index, name in enumerate(task.class_names)}


def _reached(gap: Estimate) -> bool | None:
    if null(gap.value) is None:
        return None
    if gap.value <= 0:
        return True
    return None if null(gap.low) is None else gap.low <= 0


def _three(name: str, found: Estimate) -> dict[str, float | None]:
    return {
        name: null(found.value),
        f"{name}_low": null(found.low),
        f"{name}_high": null(found.high),
    }
