"""Stage 2, validate: tables of figures of a frozen model on an external cohort.

Nothing is fitted on external patients. Headline figures are of the mean of the folds' calibrated
probabilities. There is one test set, so intervals are for given models. `docs/statistics.md`
describes the tables.
"""

from collections.abc import Callable
from pathlib import Path

import polars as pl

from her2.config.external_jobs import ValidateSpec
from her2.core.tables import read_result, write_table
from her2.evaluation.binary import binary_table
from her2.evaluation.calibration import (
    PREDICTED,
    SCALED,
    States,
    calibration_table,
    reliability_table,
)
from her2.evaluation.decision_curves import decision_table
from her2.evaluation.external.cohort import Evaluated, with_truth
from her2.evaluation.external.covariates import Cohorts, external_covariates
from her2.evaluation.external.internal import internal_table
from her2.evaluation.external.operating import operating_at
from her2.evaluation.external.sites import site_table
from her2.evaluation.external.thresholds import LEVELS, fold_thresholds
from her2.evaluation.external.truth import in_truth
from her2.evaluation.figures import confusion_table, figures, of_one_test_set
from her2.evaluation.predictions import out_of_fold
from her2.evaluation.stage import with_note
from her2.evaluation.temperature import scaled_predictions
from her2.metrics import metrics_in

WITH_REASON = ("metrics", "binary", "calibration", "operating", "internal")
"""Tables whose notes say why no one is evaluated."""


def validate(
    spec: ValidateSpec,
    *,
    predictions: Path,
    each: Path,
    cohort: Path,
    development: Path,
    folds: Path,
    development_cohort: Path,
    output: Path,
) -> dict[str, pl.DataFrame]:
    """Write all tables of `validation_tables` for a model and cohort, as Parquet and CSV.

    Args:
        spec: the job's spec.
        predictions: the frozen model's predictions of the external slides.
        each: those of its single models.
        cohort: the external cohort's table of all slides on all grids.
        development: folder of the model's evaluation in development.
        folds: the folds table of the development's task.
        development_cohort: the development cohort's table of all slides on all grids.
        output: folder of the tables.

    Returns:
        The tables by name.

    Raises:
        UserError: a predicted slide is not usable in the cohort's table, a prediction is not
            finite, the models predicted other slides, or patients have labels of different classes
            that the rule does not settle.
    """
    outside = read_result(cohort)
    evaluated = with_truth(spec, read_result(predictions), read_result(each), outside)
    tables = validation_tables(
        spec,
        evaluated,
        read_result(development / "temperatures.parquet"),
        Cohorts(
            development=_usable(read_result(development_cohort), spec.grid),
            folds=read_result(folds),
            trained=read_result(development / "predictions.parquet"),
            external=_usable(outside, spec.grid),
            predictions=evaluated.predictions,
        ),
    )
    for name, table in tables.items():
        write_table(table, output / name)
    return tables


def validation_tables(
    spec: ValidateSpec, evaluated: Evaluated, temperatures: pl.DataFrame, cohorts: Cohorts
) -> dict[str, pl.DataFrame]:
    """Return the tables by name, with the predictions last because they are the rule's output.

    Args:
        spec: the job's spec.
        evaluated: the external predictions with what is known of the slides.
        temperatures: the development's table of them.
        cohorts: the tables of both cohorts.
    """
    section, seed, task = spec.evaluation, spec.seed, spec.truth.truth
    predictions = evaluated.predictions
    scaled, note = scaled_predictions(cohorts.trained, temperatures, spec.truth.task)
    states: States = {
        PREDICTED: (evaluated.uncalibrated, ""),
        SCALED: (None if scaled is None else predictions, note),
    }
    thresholds = fold_thresholds(
        cohorts.trained, temperatures, spec.truth.task, section, truth=spec.truth
    )
    pooled = {level: out_of_fold(predictions, task.class_names, by=f"{level}_id")
              for level in LEVELS}  # fmt: skip
    inputs, by_covariates = external_covariates(spec, cohorts, evaluated.reason)

    def at_each(make: Callable[[str], pl.DataFrame]) -> pl.DataFrame:
        return pl.concat([make(level) for level in LEVELS])

    tables = {
        **{f"{level}s": pooled[level] for level in LEVELS},
        "counts": evaluated.counts,
        "metrics": at_each(lambda at: figures(predictions, task, section, level=at, seed=seed)),
        "confusion": at_each(lambda at: confusion_table(pooled[at], task, level=at)),
        "binary": at_each(lambda at: binary_table(predictions, task, section, level=at, seed=seed)),
        "calibration": at_each(
            lambda at: calibration_table(states, task, section, level=at, seed=seed)
        ),
        "reliability": at_each(lambda at: reliability_table(states, task, section, level=at)),
        "thresholds": thresholds,
        "operating": at_each(
            lambda at: operating_at(predictions, thresholds, spec.truth, section, level=at)
        ),
        "decision": at_each(lambda at: decision_table(states, task, section, level=at)),
        "sites": at_each(
            lambda at: site_table(predictions, cohorts.external, task, section, level=at)
        ),
        "internal": internal_table(
            in_truth(cohorts.trained, spec.truth), predictions, evaluated.single, task, section
        ),
        "inputs": inputs,
        "covariates": by_covariates,
        "predictions": predictions,
    }
    every = metrics_in("metrics", ordinal=task.ordinal)
    twins = {one.name for one in every} - {one.name for one in of_one_test_set(every)}
    tables |= {name: tables[name].filter(~pl.col("metric").is_in(list(twins)))
               for name in ("metrics", "binary")}  # fmt: skip
    if evaluated.reason:
        tables |= {name: with_note(tables[name], evaluated.reason) for name in WITH_REASON}
    return tables


def _usable(cohort: pl.DataFrame, grid: str) -> pl.DataFrame:
    return cohort.filter((pl.col("grid") == grid) & (pl.col("status") == "ok"))
