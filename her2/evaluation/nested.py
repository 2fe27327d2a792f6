"""Stage 2, compare: a pipeline that picks encoder and head on the tuning sets alone.

In each run (a repeat, fold and training seed) the model with the highest macro AUC on the tuning
set is picked, and its test predictions are the pipeline's. No test patient takes part in the
choice, so the pipeline's AUC needs no correction. It is that of the way of choosing: different runs
can pick different models.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from her2.config import Task
from her2.config.names import Run
from her2.evaluation.areas import DECIMALS
from her2.evaluation.paired import Model
from her2.evaluation.predictions import MODEL, averaged, rows_of
from her2.metrics.auc import auc
from her2.metrics.probability_scores import log_loss

PICKS = {
    "task": pl.String,
    "run": pl.String,
    "encoder": pl.String,
    "head": pl.String,
    "criterion": pl.String,
    "value": pl.Float64,
    "log_loss": pl.Float64,
    "n": pl.Int64,
    "models": pl.Int64,
    "note": pl.String,
}
"""`value` is the macro AUC of the picked model on the tuning set, `n` the number of patients there,
`models` that of the models to pick from."""
MACRO_AUC, LOG_LOSS = "macro AUC", "log loss"
"""Values of the column `criterion`."""


def pick_models(
    predictions: Mapping[Model, pl.DataFrame], tested: Mapping[Model, pl.DataFrame], task: Task
) -> tuple[list[dict[str, Any]], pl.DataFrame, str]:
    """Pick a model for each run by the patients of its tuning set.

    Models are ranked by their macro AUC, equal ones by their log loss, and then by their order in
    the config. A tuning set that lacks a class has no macro AUC; its models are ranked by log loss.

    Args:
        predictions: the predictions table of each model, with its tuning sets.
        tested: the test rows of each model, of the slides that all of them tested.
        task: the task.

    Returns:
        The rows of `PICKS` without the task, the test rows of the picked models, and the reason why
        they make no pipeline ("" if they do).
    """
    tuned = {model: _by_run(table) for model, table in _tuned_by_all(predictions).items()}
    by_run = {model: _by_run(table) for model, table in tested.items()}
    every = sorted({run for tables in by_run.values() for run in tables})
    picks, parts = [], []
    for run in every:
        models = [model for model in by_run if run in by_run[model]]
        candidates = {model: tuned[model][run] for model in models if run in tuned[model]}
        if len(candidates) < len(models):
            return [], pl.DataFrame(), f"not defined: no tuning set in {run.name}"
        best, figures = _pick(candidates, task)
        few = len(by_run) - len(models)
        verb = "does" if few == 1 else "do"
        note = f"{few} of {len(by_run)} models {verb} not have this run" if few else ""
        picks.append(
            {"run": run.name, "encoder": best[0], "head": best[1], "models": len(models),
             **figures, "note": note}
        )  # fmt: skip
        parts.append(by_run[best][run])
    if not parts:
        return [], pl.DataFrame(), "not defined: no patient was tested"
    return picks, pl.concat(parts), ""


def picked_words(picks: Sequence[Mapping[str, Any]]) -> str:
    """Return how often each model was picked, most often first; "" without picks."""
    counts = Counter(f"{pick['encoder']} / {pick['head']}" for pick in picks)
    parts = [f"{name} in {number}" for name, number in counts.most_common()]
    return f"picked of {len(picks)} runs: {', '.join(parts)}" if picks else ""


def _pick(candidates: Mapping[Model, pl.DataFrame], task: Task) -> tuple[Model, dict[str, Any]]:
    """Return the model to pick, and its figures on the tuning set."""
    found = {model: _figures(table, task) for model, table in candidates.items()}

    def rank(model: Model) -> tuple[float, float]:
        area, loss = found[model][:2]
        return -np.nan_to_num(round(area, DECIMALS)), round(loss, DECIMALS)

    best = min(found, key=rank)
    area, loss, count = found[best]
    lacking = bool(np.isnan(area))
    return best, {
        "criterion": LOG_LOSS if lacking else MACRO_AUC,
        "value": None if lacking else area,
        "log_loss": loss,
        "n": count,
    }


def _figures(table: pl.DataFrame, task: Task) -> tuple[float, float, int]:
    """Return the macro AUC, the log loss and the number of patients of a tuning set."""
    rows = rows_of(averaged(table, task.class_names, by="patient_id"), task)
    whole = rows.weighted(np.ones((1, len(rows))))
    areas = [float(auc(whole.one_vs_rest(index))[0]) for index in range(whole.classes)]
    return float(np.mean(areas)), float(log_loss(whole)[0]), len(rows)


def _tuned_by_all(predictions: Mapping[Model, pl.DataFrame]) -> dict[Model, pl.DataFrame]:
    """Return each model's tuning rows, of the slides that all models with that run have."""
    tuned = {model: table.filter(pl.col("role") == "tune") for model, table in predictions.items()}
    keys = [*MODEL, "slide_id"]
    every = pl.concat([table.select(keys) for table in tuned.values()])
    having = pl.concat([table.select(MODEL).unique() for table in tuned.values()])
    counts = (
        every.group_by(keys)
        .len("models")
        .join(having.group_by(MODEL).len("all"), on=list(MODEL), how="left")
    )
    common = counts.filter(pl.col("models") == pl.col("all"))
    return {
        model: table.join(common, on=keys, how="semi", maintain_order="left")
        for model, table in tuned.items()
    }


def _by_run(table: pl.DataFrame) -> dict[Run, pl.DataFrame]:
    return {
        Run(*key): part
        for key, part in table.partition_by(MODEL, as_dict=True, maintain_order=True).items()
    }
