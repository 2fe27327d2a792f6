"""Stage 2, report: other explanations of the results: chance, covariates, sites, tissue."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from her2.evaluation.controls.subgroups import subgroup_labels
from her2.report.figures.base import Figure
from her2.report.figures.controls import shuffled_figure
from her2.report.format import NA, interval, number, p_value, signed
from her2.report.results import EvaluatedModel, Results
from her2.report.section import Section
from her2.report.sections.model_tables import stacked_controls
from her2.report.sections.overlap import mark
from her2.report.tables import PageTable, TableCell, TableRow, figure_cell, page_table

SUBGROUPS = subgroup_labels()
MACRO = pl.col("class") == "macro"


@dataclass(frozen=True, slots=True)
class CovariateWarning:
    """A headline AUC that covariates alone reach; `title` says whether fully or nearly."""

    name: str
    anchor: str
    title: str
    text: str


def covariates_cell(model: EvaluatedModel) -> TableCell:
    """Return the macro AUC of covariates alone, on the same patients and folds."""
    row = covariates_row(model)
    if row is None:
        return TableCell(NA, note="not evaluated")
    ends = interval(row["covariates_low"], row["covariates_high"])
    return TableCell(number(row["covariates"]), ends, row["note"] or "")


def covariate_warnings(results: Results) -> list[CovariateWarning]:
    """Return warnings for models whose macro AUC is not clearly above that of covariates."""
    found = []
    for model in results.models:
        row = _macro(model.controls["covariates"])
        if row is None or not row["reached"]:
            continue
        text = (
            f"{model.name}: macro AUC {number(row['model'])} "
            f"{interval(row['model_low'], row['model_high'])}, and {number(row['covariates'])} "
            f"{interval(row['covariates_low'], row['covariates_high'])} from covariates alone "
            f"({', '.join(_used(model))}); difference {signed(row['difference'])} "
            f"{interval(row['low'], row['high'])}."
        )
        title = (
            "Covariates alone reach this headline."
            if row["difference"] <= 0
            else "This headline is not shown to be above covariates alone."
        )
        found.append(CovariateWarning(model.name, model.anchor, title, text))
    return found


def covariates_page_table(results: Results) -> PageTable:
    """Return the AUCs of each model and of covariates alone, and their paired differences."""
    rows: list[TableRow] = []
    for model in results.models:
        sign = mark(results, model.encoder)
        for row in model.controls["covariates"].to_dicts():
            verdict = {True: "yes", False: "no", None: "not judged"}[row["reached"]]
            rows.append(
                (
                    model.name + sign,
                    row["class"],
                    TableCell(
                        number(row["model"], sign=sign),
                        interval(row["model_low"], row["model_high"]),
                    ),
                    TableCell(
                        number(row["covariates"]),
                        interval(row["covariates_low"], row["covariates_high"]),
                    ),
                    TableCell(
                        signed(row["difference"], sign=sign),
                        interval(row["low"], row["high"]),
                        row["note"] or "",
                    ),
                    p_value(row["p"]),
                    verdict,
                )
            )
    return page_table(
        "AUC of the models and of covariates alone, patients",
        ("Task / encoder / head", "Score", "#Model", "#Covariates alone", "#Difference", "#p",
         "Reached by covariates"),
        rows,
        "Covariates alone: logistic regression on what is known apart from how the tissue looks, "
        "in the same folds. Reached: its AUC is not below the model's, or the interval of the "
        "difference contains 0. Not judged: one of the two is not defined, for the reason given.",
    )  # fmt: skip


def inputs_page_table(results: Results) -> PageTable | None:
    """Return the covariates of the first model; those of other grids differ little."""
    if not results.models:
        return None
    rows: list[TableRow] = [
        (
            row["covariate"],
            row["kind"],
            "used" if row["used"] else "not used",
            "" if row["levels"] is None else str(row["levels"]),
            "" if row["missing"] is None else str(row["missing"]),
            row["note"] or "",
        )
        for row in results.models[0].controls["inputs"].to_dicts()
    ]
    return page_table(
        f"Covariates ({results.models[0].name})",
        ("Covariate", "Kind", "Used", "#Levels", "#Missing", "Note"),
        rows,
    )


def shuffled_page_table(results: Results) -> PageTable:
    """Return the macro AUC of each model under shuffled labels."""
    rows: list[TableRow] = []
    for model in results.models:
        row = _macro(model.controls["shuffled"])
        if row is not None:
            rows.append(
                (
                    model.name + mark(results, model.encoder),
                    number(row["value"], sign=mark(results, model.encoder)),
                    TableCell(number(row["mean"]), interval(row["low"], row["high"])),
                    TableCell(p_value(row["p"]), note=row["note"] or ""),
                    f"{row['permutations']:,}",
                )
            )
    return page_table(
        "Macro AUC with the labels of held-out patients shuffled within their folds",
        ("Task / encoder / head", "#Observed", "#Shuffled", "#p", "#Permutations"),
        rows,
        "This tests whether predictions and labels are associated at all. The other controls ask "
        "what explains the association.",
    )


def shuffled(results: Results, model: EvaluatedModel) -> Figure | None:
    """Return the histogram of one model; None where it is not defined."""
    row = _macro(model.controls["shuffled"])
    draws = model.controls["shuffled_draws"].filter(MACRO)["auc"].drop_nulls().to_list()
    if row is None or row["value"] is None or not draws:
        return None
    return shuffled_figure(
        draws, row["value"], p_value(row["p"]), model.name, results.figure_context
    )


def subgroups_page_table(results: Results, model: EvaluatedModel) -> PageTable | None:
    """Return AUC by site, scanner and other manifest columns, and by amount of tissue."""
    table = model.controls["subgroups"]
    if not len(table):
        return None
    sign = mark(results, model.encoder)
    groups: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in table.to_dicts():
        groups.setdefault((row["by"], row["group"]), {})[row["class"]] = row
    names = ("macro", *model.task.class_names)
    rows: list[TableRow] = [
        (
            SUBGROUPS.get(by, by),
            group,
            str(next(iter(own.values()))["n"]),
            *(figure_cell(own.get(name), sign=sign) for name in names),
        )
        for (by, group), own in groups.items()
    ]
    return page_table(
        f"AUC in subgroups of the cohort{sign}, patients",
        ("By", "Subgroup", "#Patients", *(f"#AUC {name}" for name in names)),
        rows,
    )


def covariates_row(model: EvaluatedModel) -> dict[str, Any] | None:
    """Return the macro AUC of covariates alone beside a model's, a row of `covariates`."""
    return _macro(model.controls["covariates"])


def shuffled_row(model: EvaluatedModel) -> dict[str, Any] | None:
    """Return the macro AUC of a model with shuffled labels, a row of the table `shuffled`."""
    return _macro(model.controls["shuffled"])


def _macro(table: pl.DataFrame) -> dict[str, Any] | None:
    rows = table.filter(MACRO).to_dicts()
    return rows[0] if rows else None


def _used(model: EvaluatedModel) -> list[str]:
    inputs = model.controls["inputs"]
    return [str(name) for name in inputs.filter(pl.col("used"))["covariate"]]


@dataclass(frozen=True, slots=True)
class ControlsData:
    """Data of the section: the tables of the controls."""

    covariates: PageTable
    inputs: PageTable | None
    shuffled: PageTable


def _collect(results: Results) -> ControlsData:
    return ControlsData(
        covariates=covariates_page_table(results),
        inputs=inputs_page_table(results),
        shuffled=shuffled_page_table(results),
    )


SECTION = Section(
    anchor="controls",
    title="Controls",
    order=70,
    collect=_collect,
    tables=stacked_controls("covariates", "inputs", "shuffled"),
)
