"""Stage 2, control: a model's AUC compared with that of covariates, on the same patients."""

from collections.abc import Mapping

import numpy as np
import polars as pl

from her2.config import EvaluationSection, Task
from her2.core.tables import null
from her2.evaluation.controls.covariate_models import FOREST, LOGISTIC
from her2.evaluation.intervals import Estimate
from her2.evaluation.paired import Model, pair_models

COVARIATES = {
    "class": pl.String,
    "model": pl.Float64,
    "model_low": pl.Float64,
    "model_high": pl.Float64,
    "covariates": pl.Float64,
    "covariates_low": pl.Float64,
    "covariates_high": pl.Float64,
    "by": pl.String,
    "logistic": pl.Float64,
    "logistic_low": pl.Float64,
    "logistic_high": pl.Float64,
    "forest": pl.Float64,
    "forest_low": pl.Float64,
    "forest_high": pl.Float64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
    "n": pl.Int64,
    "n_positive": pl.Int64,
    "reached": pl.Boolean,
    "note": pl.String,
}
_MODEL: Model = ("model", "")
CHANCE = 0.5
BELOW = "covariates are below 0.5, so the model must be above 0.5 as well"
"""Useless covariates that are balanced over the classes read below 0.5 (docs/controls.md), and such
a figure is easily exceeded."""


def compare_with_covariates(
    predictions: pl.DataFrame,
    by_covariates: Mapping[str, pl.DataFrame],
    task: Task,
    section: EvaluationSection,
) -> pl.DataFrame:
    """Compare AUCs (each class and macro) of a model with those of covariates.

    `covariates` is the larger AUC of the two models of covariates, and `by` names the one that
    reached it. The larger of two is optimistic, which is the safe side for a control. The paired
    difference is the model minus that one.

    `reached` is true where the covariates' AUC is not below the model's, or the interval of the
    difference contains 0, so that covariates alone may explain the figure; where the covariates are
    below 0.5, also where the model's own interval contains 0.5. It is null where the model's AUC is
    higher but an interval is not defined.

    Args:
        predictions: the predictions table of the model.
        by_covariates: predictions tables of `LOGISTIC` and `FOREST`.
        task: the task, for its classes.
        section: the `evaluation` section of the config, for the confidence.
    """
    each: dict[str, Model] = {name: ("covariates", name) for name in (LOGISTIC, FOREST)}
    paired = pair_models(
        {_MODEL: predictions, **{each[by]: table for by, table in by_covariates.items()}},
        task,
        section,
    )
    positives = _positives(predictions, task)
    records = []
    for name in (*task.class_names, "macro"):
        question = name, ""
        found = {by: paired.estimate(model, question) for by, model in each.items()}
        best = max(found, key=lambda by: np.nan_to_num(found[by].value, nan=-1.0))
        gap, own = (
            paired.difference(_MODEL, each[best], question),
            paired.estimate(_MODEL, question),
        )
        below = found[best].value < CHANCE
        records.append(
            {
                "class": name,
                **_three("model", own),
                **_three("covariates", found[best]),
                "by": None if null(found[best].value) is None else best,
                **_three("logistic", found[LOGISTIC]),
                **_three("forest", found[FOREST]),
                "difference": null(gap.value),
                "low": null(gap.low),
                "high": null(gap.high),
                "p": null(gap.p),
                "n": paired.counts[question],
                "n_positive": positives.get(name),
                "reached": _reached(gap, own, below=below),
                "note": "; ".join(note for note in (BELOW if below else "", gap.note) if note),
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


def _reached(gap: Estimate, own: Estimate, *, below: bool) -> bool | None:
    if null(gap.value) is None:
        return None
    if gap.value <= 0:
        return True
    lows = [gap.low, *([own.low - CHANCE] if below else [])]
    return None if np.isnan(lows).any() else min(lows) <= 0


def _three(name: str, found: Estimate) -> dict[str, float | None]:
    return {
        name: null(found.value),
        f"{name}_low": null(found.low),
        f"{name}_high": null(found.high),
    }
