"""Stage 2, report: what the best of several models is worth, beside its own figure."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from her2.evaluation.selection import CORRECTED, HIGHEST, NESTED
from her2.report.format import interval, number, plural
from her2.report.results import Results
from her2.report.sections.model_tables import stack_tasks
from her2.report.sections.overlap import mark
from her2.report.tables import PageTable, figure_cell, page_table

WAYS = {
    HIGHEST: "The highest in the table (too high by selection)",
    CORRECTED: "Choosing the highest, corrected for the choice (BBC-CV)",
    NESTED: "Picking by the tuning set of each fold",
}
"""Method of the table `selection` -> its words on the page."""


def selection_rows(results: Results, task_name: str) -> list[dict[str, Any]]:
    """Return the rows of `evaluation/selection` for a task with several models, else none."""
    table = results.selections.get(task_name)
    rows = [] if table is None else table.to_dicts()
    return rows if any(row["models"] > 1 for row in rows) else []


def selection_page_table(results: Results, task_name: str) -> PageTable | None:
    """Return a table of what each way of choosing a model is worth; None for a single model."""
    rows = selection_rows(results, task_name)
    if not rows:
        return None
    return page_table(
        f"What the best model is worth, task {task_name}",
        ("Choice", "Encoder / head", "#Macro AUC", "#Models", "#Patients"),
        [
            (
                WAYS[row["method"]],
                " / ".join(part for part in (row["encoder"], row["head"]) if part) or "as chosen",
                figure_cell(row, sign=_sign(results, row)),
                str(row["models"]),
                str(row["n"]),
            )
            for row in rows
        ],
    )


def selection_sentence(results: Results, task_name: str) -> str:
    """Return what choosing the highest model is worth, in a sentence; "" if it is not defined."""
    rows = {row["method"]: row for row in selection_rows(results, task_name)}
    corrected, nested = rows.get(CORRECTED), rows.get(NESTED)
    if corrected is None or corrected["value"] is None:
        return ""
    text = f"Corrected for choosing the highest of {plural(corrected['models'], 'model')}, "
    text += f"the macro AUC is {_figure(results, corrected)}"
    if nested is not None and nested["value"] is not None:
        text += f"; picking by the tuning sets alone gives {_figure(results, nested)}"
    return f"{text}."


def selection_table(results: Results) -> pl.DataFrame | None:
    """Return the table `selection` of all tasks."""
    return stack_tasks(results.selections)


def picks_table(results: Results) -> pl.DataFrame | None:
    """Return the table `picks` of all tasks; None unless models were picked by tuning sets."""
    return stack_tasks(results.picks)


def _figure(results: Results, row: Mapping[str, Any]) -> str:
    figure = number(row["value"], sign=_sign(results, row))
    return f"{figure} {interval(row['low'], row['high'])}".rstrip()


def _sign(results: Results, row: Mapping[str, Any]) -> str:
    """Return the mark of a row's encoder; a way of choosing has it if any encoder does."""
    encoders = [row["encoder"]] if row["encoder"] else list(results.config.encoders)
    return max(mark(results, name) for name in encoders)
