"""Stage 2, report: the spread of AUCs over training seeds, as a table and as a caution."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from her2.report.format import number
from her2.report.results import EvaluatedModel, Results
from her2.report.sections.overlap import mark
from her2.report.tables import PageTable, page_table

ONE_SEED = (
    "Each fold was trained with one seed, so it is not known how much another training would "
    "change these figures (training.seeds)."
)


def seeds_page_table(results: Results, model: EvaluatedModel) -> PageTable | None:
    """Return the spread of a model's AUCs over training seeds; None with one seed."""
    seeds = results.config.training.seeds
    if seeds == 1:
        return None
    rows = [
        (
            f"AUC {row['class'] or row['grouping']}",
            number(row["sd"]),
            number(row["lowest"]),
            number(row["highest"]),
        )
        for row in model.seeds.filter(pl.col("level") == "patient").to_dicts()
    ]
    return page_table(
        f"Spread over {seeds} training seeds{mark(results, model.encoder)}, patients",
        ("Metric", "#Standard deviation", "#Lowest seed", "#Highest seed"),
        rows,
        "AUC of each seed, averaged over the repeats. Seeds share folds and patients and differ in "
        "initial weights, draws and dropout. All other AUCs are means over the seeds.",
    )


def seeds_note(results: Results, task_name: str, row: Mapping[str, Any]) -> str:
    """Return a caution where a difference is smaller than what another training may change.

    Args:
        results: the run.
        task_name: the task.
        row: a row of its comparison, with `kind, within, first, second, class, grouping,
            difference`.

    Returns:
        The caution, or "" where the difference is at least as large as the spread (standard
        deviation over seeds) of both models, or either is not known.
    """
    if row["difference"] is None:
        return ""
    heads = row["kind"] == "heads"
    pair = [
        (row["within"], name) if heads else (name, row["within"])
        for name in (row["first"], row["second"])
    ]
    spreads = [
        found
        for model in results.task_models(task_name)
        if (model.encoder, model.head) in pair
        for found in _spreads(model, row["class"], row["grouping"])
    ]
    widest = max(spreads, default=0.0)
    if abs(row["difference"]) >= widest:
        return ""
    return f"smaller than the spread over training seeds ({number(widest)})"


def _spreads(model: EvaluatedModel, name: str, grouping: str) -> list[float]:
    """Return the standard deviation over seeds of a patients' AUC; empty if it is not known."""
    rows = model.seeds.filter(
        (pl.col("level") == "patient")
        & (pl.col("class") == name)
        & (pl.col("grouping") == grouping)
    )
    found: list[float] = rows["sd"].drop_nulls().to_list()
    return found
