"""Stage 2, report: what covariates alone reach, beside the models."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from her2.evaluation.controls.covariate_models import FOREST, LOGISTIC
from her2.report.format import NA, interval, number, p_value, signed
from her2.report.tables import PageTable, TableCell, TableRow, page_table


def covariates_cell(covariates: pl.DataFrame) -> TableCell:
    """Return the macro AUC of covariates alone, on the same patients as the model's."""
    rows = covariates.filter(pl.col("class") == "macro").to_dicts()
    if not rows:
        return TableCell(NA, note="not evaluated")
    row = rows[0]
    ends = interval(row["covariates_low"], row["covariates_high"])
    notes = (row["by"], row["note"])
    return TableCell(number(row["covariates"]), ends, "; ".join(note for note in notes if note))


def covariate_rows(head: str, covariates: pl.DataFrame, sign: str) -> list[TableRow]:
    """Return the AUCs of a model and of covariates alone, and their paired differences."""
    return [
        (
            head + sign,
            row["class"],
            TableCell(
                number(row["model"], sign=sign), interval(row["model_low"], row["model_high"])
            ),
            _covariates_cell(row, "logistic", LOGISTIC),
            _covariates_cell(row, "forest", FOREST),
            TableCell(
                signed(row["difference"], sign=sign),
                interval(row["low"], row["high"]),
                row["note"] or "",
            ),
            p_value(row["p"]),
            {True: "yes", False: "no", None: "not judged"}[row["reached"]],
        )
        for row in covariates.to_dicts()
    ]


def laid_out(caption: str, rows: Sequence[TableRow], models: str, note: str) -> PageTable:
    """Return the table of `covariate_rows`; `models` heads the column of their names."""
    return page_table(
        caption,
        (models, "Score", "#Model", "#Covariates, logistic regression",
         "#Covariates, random forest", "#Difference", "#p", "Reached by covariates"),
        rows,
        note,
    )  # fmt: skip


def _covariates_cell(row: dict[str, Any], column: str, by: str) -> TableCell:
    ends = interval(row[f"{column}_low"], row[f"{column}_high"])
    return TableCell(number(row[column]), ends, "the larger" if row["by"] == by else "")
