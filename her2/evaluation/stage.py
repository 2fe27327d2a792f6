"""Stage 2, evaluate: tables of figures from the out-of-fold predictions of an encoder and head.

Each table is a function of the predictions table, the task and the config. `docs/statistics.md`
describes them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl

from her2.config.jobs import EvaluateSpec
from her2.config.names import parse_run
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
from her2.evaluation.figures import confusion_table, figures, fold_figures
from her2.evaluation.operating_points import operating_table
from her2.evaluation.predictions import gather_predictions, out_of_fold, runs
from her2.evaluation.priors import training_priors, with_training_priors
from her2.evaluation.random_bags import bag_figures
from her2.evaluation.seeds import seeds_table
from her2.evaluation.temperature import fit_temperatures, scaled_predictions
from her2.mil.priors import PRIORS
from her2.storage.cache import Cache
from her2.storage.entries import untrained_folds

OVER_FOLDS = ("metrics", "binary", "seeds", "calibration", "operating")
"""Tables of figures over all folds, with a note."""


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
    untrained = untrained_folds(models, spec.chunks)
    predicted = set(given["slide_id"]) | _slides_of(untrained, folds)
    priors = training_priors(spec, folds=folds, models=models, predicted=predicted)
    predictions = with_training_priors(given, priors, spec.task)
    tables = evaluation_tables(spec, predictions, priors, untrained)
    if spec.protocol == "published":
        bags = bag_figures(spec, cache, models, predictions)
        if untrained:
            bags = with_note(bags, _of_how_many(untrained, len(runs(predictions))))
        tables["metrics"] = pl.concat([bags, tables["metrics"]])
    for name, table in tables.items():
        write_table(table, output / name)
    return tables["metrics"]


def evaluation_tables(
    spec: EvaluateSpec,
    predictions: pl.DataFrame,
    priors: pl.DataFrame | None = None,
    untrained: Mapping[str, str] | None = None,
) -> dict[str, pl.DataFrame]:
    """Return the tables by name, with the predictions last because they are the rule's output.

    `priors` tells how the probabilities were corrected; None, if they were not. `untrained` names
    the folds without a model, and why: their figures are null, and figures over all folds say how
    many these are.

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

    tables = {
        **{f"{level}s": pooled[level] for level in levels},
        "metrics": at_each(lambda at: figures(predictions, task, section, level=at, seed=seed)),
        "fold_metrics": at_each(
            lambda at: fold_figures(predictions, task, level=at, untrained=untrained)
        ),
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
    if untrained:
        words = _of_how_many(untrained, len(runs(predictions)))
        tables |= {name: with_note(tables[name], words) for name in OVER_FOLDS}
    return tables


def _slides_of(untrained: Mapping[str, str], folds: Path) -> set[str]:
    """Return the test slides of folds without a model, which no model may have predicted."""
    table = read_result(folds).filter(pl.col("role") == "test")
    lost = {parse_run(name)[:2] for name in untrained}
    rows = table.select("repeat", "fold", "slide_id").iter_rows()
    return {slide for repeat, fold, slide in rows if (repeat, fold) in lost}


def _of_how_many(untrained: Mapping[str, str], trained: int) -> str:
    return (
        f"over {trained} of {trained + len(untrained)} folds, without {', '.join(untrained)}, "
        "which could not be trained"
    )


def with_note(table: pl.DataFrame, words: str) -> pl.DataFrame:
    """Return a table with words after the note of every figure."""
    note = pl.concat_str(pl.col("note").fill_null(""), pl.lit(words), separator="; ")
    return table.with_columns(note=note.str.strip_chars_start("; "))
