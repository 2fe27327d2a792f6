"""Stage 2, control: run the controls of one encoder and head on a task, from tables alone."""

import logging
from pathlib import Path

import polars as pl

from her2.cohort.folds import check_disjoint
from her2.config import Task
from her2.config.jobs import ControlSpec
from her2.core.errors import UserError
from her2.core.tables import read_result, write_table
from her2.evaluation.areas import held_out
from her2.evaluation.controls.against_model import compare_with_covariates, no_covariates
from her2.evaluation.controls.covariate_models import FOREST, LOGISTIC, predict_by_covariates
from her2.evaluation.controls.covariates import Covariates, covariates_of
from her2.evaluation.controls.patient_groups import patient_groups
from her2.evaluation.controls.permutation import shuffle_labels
from her2.evaluation.controls.subgroups import interactions, subgroup_figures
from her2.evaluation.controls.within_groups import within_figures

log = logging.getLogger(__name__)


def control(
    spec: ControlSpec, *, predictions: Path, folds: Path, cohort: Path, output: Path
) -> dict[str, pl.DataFrame]:
    """Write the tables of the controls, `covariates` last.

    Args:
        spec: the job's spec.
        predictions: the model's predictions table.
        folds: the task's folds table.
        cohort: the table of all slides on all grids.
        output: folder of the tables.

    Returns:
        The tables by name.

    Raises:
        UserError: a predicted slide is not in the cohort's table or not in its fold's test set,
            patients cross folds, or the cohort's table lacks a column that the config names.
    """
    tables = control_tables(
        spec,
        read_result(predictions).select(pl.exclude(r"^raw_.*$")),  # what covariates lack
        read_result(folds),
        read_result(cohort),
    )
    for name, table in tables.items():
        write_table(table, output / name)
    return tables


def control_tables(
    spec: ControlSpec, predictions: pl.DataFrame, folds: pl.DataFrame, cohort: pl.DataFrame
) -> dict[str, pl.DataFrame]:
    """Return all tables by name."""
    check_disjoint(folds)
    section, task = spec.evaluation, spec.task
    usable = cohort.filter((pl.col("grid") == spec.grid) & (pl.col("status") == "ok"))
    tested = predictions.filter(pl.col("role") == "test")
    absent = sorted(set(tested["slide_id"]) - set(usable["slide_id"]))
    if absent:
        raise UserError(
            f"{absent[0]}: was predicted but is not usable according to the cohort's table; run "
            "snakemake again."
        )
    _check_held_out(tested, folds)
    found = covariates_of(
        usable,
        slides_of_model(folds, predictions),
        columns=section.covariates,
        label=task.label,
    )
    groups = patient_groups(tested, usable, section.subgroups)
    rows = held_out(predictions, task, level="patient")
    shuffled, draws = shuffle_labels(
        predictions,
        task,
        permutations=section.permutations,
        confidence=section.confidence,
        seed=spec.seed,
    )
    by_covariates, compared = _covariates(spec, found, predictions, folds, tested, task)
    return {
        "inputs": found.inputs,
        "shuffled": shuffled,
        "shuffled_draws": draws,
        "subgroups": subgroup_figures(rows, groups, task, section),
        "interactions": interactions(rows, groups, task),
        "within": within_figures(rows, groups, task, section),
        "covariates_predictions": by_covariates,
        "covariates": compared,
    }


def slides_of_model(folds: pl.DataFrame, predictions: pl.DataFrame) -> list[str]:
    """Return the labelled slides on which the model can have been trained or tested.

    Slides without features are left out: they are held out in the folds table but have no
    prediction. A slide without features that is in every training set (under a fixed split) cannot
    be recognised in this way and is included.
    """
    labelled = folds.filter(pl.col("role") != "predict")
    held_out = set(labelled.filter(pl.col("role") != "train")["slide_id"])
    lost = held_out - set(predictions["slide_id"])
    if lost:
        log.info("%d slides have no prediction by this encoder and are left out", len(lost))
    return sorted(set(labelled["slide_id"]) - lost)


def _check_held_out(tested: pl.DataFrame, folds: pl.DataFrame) -> None:
    """Check that no tested slide is one on which covariates would be fitted."""
    keys = ["slide_id", "repeat", "fold"]
    parts = folds.filter(pl.col("role") == "test").select(keys)
    moved = tested.join(parts, on=keys, how="anti").sort("repeat", "fold", "slide_id")
    if len(moved):
        first = moved.row(0, named=True)
        raise UserError(
            f"{first['slide_id']}: was tested in r{first['repeat']}f{first['fold']} but is not in "
            "its test set according to the folds table; run snakemake again."
        )


def _covariates(
    spec: ControlSpec,
    found: Covariates,
    predictions: pl.DataFrame,
    folds: pl.DataFrame,
    tested: pl.DataFrame,
    task: Task,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the predictions by both models of covariates, and their comparison with the model."""
    reason = ""
    if not len(tested):
        reason = "not defined: no slide was tested"
    elif not found.any_used:
        reason = "not defined: no covariate differs between the slides of the task"
    if reason:
        log.warning("comparison with covariates: %s", reason)
        empty = predictions.clear().select(pl.lit("", pl.String).alias("by"), pl.all())
        return empty, no_covariates(task, reason)
    made = {
        by: predict_by_covariates(found, folds, tested, task, by=by, seed=spec.seed)
        for by in (LOGISTIC, FOREST)
    }
    compared = compare_with_covariates(predictions, made, task, spec.evaluation)
    named = [
        table.select(pl.lit(by).alias("by"), *predictions.columns) for by, table in made.items()
    ]
    return pl.concat(named), compared
