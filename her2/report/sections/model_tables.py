"""Stage 2, report: tables of all models as one, for the CSV files beside the page."""

from collections.abc import Callable, Mapping

import polars as pl

from her2.report.results import EvaluatedModel, Results
from her2.report.section import MakeTable
from her2.report.sections.overlap import seen


def stack_models(results: Results, table: Callable[[EvaluatedModel], pl.DataFrame]) -> pl.DataFrame:
    """Put a table of each model under each other, with the model's names in front.

    Columns may differ. `overlap` is how many patients of the cohort the encoder was pre-trained on.
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


def stacked(table: Callable[[EvaluatedModel], pl.DataFrame]) -> MakeTable:
    """Return what makes such a table of a run."""
    return lambda results: stack_models(results, table)


def stacked_controls(*names: str) -> Mapping[str, MakeTable]:
    """Return what makes tables of the models' controls, by name."""
    return {name: stacked(_entry("controls", name)) for name in names}


def stacked_attention(*names: str) -> Mapping[str, MakeTable]:
    """Return what makes tables of the models' attention, by name."""
    return {name: stacked(_entry("attention", name)) for name in names}


def _entry(field: str, name: str) -> Callable[[EvaluatedModel], pl.DataFrame]:
    """Return what reads one table of a field that holds tables by name."""

    def read(model: EvaluatedModel) -> pl.DataFrame:
        tables: Mapping[str, pl.DataFrame] = getattr(model, field)
        return tables[name]

    return read
