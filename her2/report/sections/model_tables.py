"""Stage 2, report: tables of all models stacked into one, for the CSV files."""

from collections.abc import Callable, Mapping

import polars as pl

from her2.report.results import EvaluatedModel, Results
from her2.report.section import MakeTable
from her2.report.sections.overlap import seen


def stack_models(results: Results, table: Callable[[EvaluatedModel], pl.DataFrame]) -> pl.DataFrame:
    """Stack one table of each model, with the names of task, encoder and head in front.

    Columns may differ. `overlap` is the number of cohort patients the encoder was pre-trained on.
    """
    parts = [
        table(model).select(
            pl.lit(model.task_name).alias("task"),
            pl.lit(model.encoder).alias("encoder"),
            pl.lit(model.head).alias("head"),
            pl.all(),
            pl.lit(seen(results, model.encoder), pl.Int64).alias("overlap"),
        )
        for model in results.models
    ]
    return pl.concat(parts, how="diagonal")


def stack_tasks(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame | None:
    """Stack a table of each task, with the task's name in front; None if there are none."""
    parts = [table.select(pl.lit(task).alias("task"), pl.all()) for task, table in tables.items()]
    return pl.concat(parts) if parts else None


def stacked(table: Callable[[EvaluatedModel], pl.DataFrame]) -> MakeTable:
    """Return a function that stacks such a table for a run."""
    return lambda results: stack_models(results, table)


def stacked_controls(*names: str) -> Mapping[str, MakeTable]:
    """Return functions that stack the models' control tables, by name."""
    return {name: stacked(_entry("controls", name)) for name in names}


def stacked_attention(*names: str) -> Mapping[str, MakeTable]:
    """Return functions that stack the models' attention tables, by name."""
    return {name: stacked(_entry("attention", name)) for name in names}


def _entry(field: str, name: str) -> Callable[[EvaluatedModel], pl.DataFrame]:
    """Return a function that reads one table from a field that holds tables by name."""

    def read(model: EvaluatedModel) -> pl.DataFrame:
        tables: Mapping[str, pl.DataFrame] = getattr(model, field)
        return tables[name]

    return read
