"""Stage 2, evaluate: tables of figures from the out-of-fold predictions of an encoder and head.

Each table is a function of the predictions table, the task and the config. `docs/statistics.md`
describes them.
"""

from collections.abc import Callable
from pathlib import Path

import polars as pl

from her2.config.jobs import EvaluateSpec
from her2.core.tables import write_table
from her2.evaluation.binary import binary_table
from her2.evaluation.calibration import (
    PREDICTED,
    SCALED,
    States,
    calibration_table,
    reliability_table,
)
from her2.evaluation.decision_curves import decision_table
from her2.evaluation.figures import confusion_table, figures, fold_figures
from her2.evaluation.operating_points import operating_table
from her2.evaluation.predictions import gather_predictions, out_of_fold
from her2.evaluation.priors import training_priors, with_training_priors
from her2.evaluation.random_bags import bag_figures
from her2.evaluation.seeds import seeds_table
from her2.evaluation.temperature import fit_temperatures, scaled_predictions
from her2.mil.priors import PRIORS
from her2.storage.cache import Cache


def evaluate(
    spec: EvaluateSpec, cache: Cache, *, folds: Path, models: Path, output: Path
) -> pl.DataFrame:
    """Write all tables of `evaluation_tables` for a model, as Parquet and CSV.

    Args:
        spec: the job's spec.
        cache: holds the trained folds.
        folds: the task's folds table.
        models: folder of the chunks' entries files.
        output: folder of the tables.

    Returns:
        The table `metrics`.

    Raises:
        UserError: a prediction is missing or not finite, or a patient has two classes.
    """
    given = gather_predictions(spec, cache, folds=folds, models=models)
    priors = training_priors(spec, folds=folds, models=models, predicted=set(given["slide_id"]))
    predictions = with_training_priors(given, priors, spec.task)
    tables = evaluation_tables(spec, predictions, priors)
    if spec.protocol == "published":
        bags = bag_figures(spec, cache, models, predictions)
        tables["metrics"] = pl.concat([bags, tables["metrics"]])
    for name, table in tables.items():
        write_table(table, output / name)
    return tables["metrics"]


def evaluation_tables(
    spec: EvaluateSpec, predictions: pl.DataFrame, priors: pl.DataFrame | None = None
) -> dict[str, pl.DataFrame]:
    """Return the tables by name, with the predictions last because they are the rule's output.

    `priors` tells how the probabilities were corrected; None, if they were not.

    Under the published protocol a patient's slides can be on both sides of a fold, so the tables
    have figures at slide level only.
    """
    task, section, seed = spec.task, spec.evaluation, spec.seed
    levels = ("slide",) if spec.protocol == "published" else ("patient", "slide")
    pooled = {
        level: out_of_fold(predictions, task.class_names, by=f"{level}_id") for level in levels
    }
    temperatures = fit_temperatures(predictions, task)
    states: States = {
        PREDICTED: (predictions, ""),
        SCALED: scaled_predictions(predictions, temperatures, task),
    }

    def at_each(make: Callable[[str], pl.DataFrame]) -> pl.DataFrame:
        return pl.concat([make(level) for level in levels])

    return {
        **{f"{level}s": pooled[level] for level in levels},
        "metrics": at_each(lambda at: figures(predictions, task, section, level=at, seed=seed)),
        "fold_metrics": at_each(lambda at: fold_figures(predictions, task, level=at)),
        "confusion": at_each(lambda at: confusion_table(pooled[at], task, level=at)),
        "binary": at_each(lambda at: binary_table(predictions, task, section, level=at, seed=seed)),
        "priors": pl.DataFrame(schema=PRIORS) if priors is None else priors,
        "seeds": at_each(lambda at: seeds_table(predictions, task, section, level=at)),
        "temperatures": temperatures,
        "calibration": at_each(
            lambda at: calibration_table(states, task, section, level=at, seed=seed)
        ),
        "reliability": at_each(lambda at: reliability_table(states, task, section, level=at)),
        "operating": at_each(
            lambda at: operating_table(predictions, task, section, level=at, seed=seed)
        ),
        "decision": at_each(lambda at: decision_table(states, task, section, level=at)),
        "predictions": predictions,
    }
