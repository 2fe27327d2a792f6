"""Stage 2, report: other explanations of the results: covariates, sites, subgroups, chance."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from her2.cohort.columns import subgroups
from her2.report.figures.base import Figure
from her2.report.figures.controls import shuffled_figure
from her2.report.format import interval, number, p_value, signed
from her2.report.results import EvaluatedModel, Results
from her2.report.section import Section
from her2.report.sections.covariate_tables import covariate_rows, laid_out
from her2.report.sections.model_tables import stacked_controls
from her2.report.sections.overlap import mark
from her2.report.tables import PageTable, TableCell, TableRow, figure_cell, page_table

SUBGROUPS = subgroups()
"""Property of patients -> its name in the report, where that is not its own."""
MACRO = pl.col("class") == "macro"


@dataclass(frozen=True, slots=True)
class CovariateWarning:
    """A headline AUC that covariates alone reach; `title` says whether fully or nearly."""

    name: str
    anchor: str
    title: str
    text: str


def within_cells(model: EvaluatedModel) -> list[tuple[str, TableCell]]:
    """Return the macro AUC over pairs of patients of the same site, scanner and so on, by title.

    These are the declared columns of the manifest that differ between the patients of the model.
    """
    rows = {row["by"]: row for row in model.controls["within"].filter(MACRO).to_dicts()}
    return [
        (f"Within {words}", figure_cell(rows[by])) for by, words in SUBGROUPS.items() if by in rows
    ]


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
            f"({', '.join(_used(model))}; {row['by']}); difference {signed(row['difference'])} "
            f"{interval(row['low'], row['high'])}"
        )
        text += f"; {row['note']}." if row["note"] else "."
        title = (
            "Covariates alone reach this headline."
            if row["difference"] <= 0
            else "This headline is not shown to be above covariates alone and above chance."
            if row["covariates"] < 0.5
            else "This headline is not shown to be above covariates alone."
        )
        found.append(CovariateWarning(model.name, model.anchor, title, text))
    return found


def covariates_page_table(results: Results) -> PageTable:
    """Return the AUCs of each model and of covariates alone, out-of-fold."""
    rows = [
        row
        for model in results.models
        for row in covariate_rows(
            model.name, model.controls["covariates"], mark(results, model.encoder)
        )
    ]
    return laid_out(
        "AUC of the models and of covariates alone, patients",
        rows,
        "Task / encoder / head",
        "Covariates alone: what is known apart from how the tissue looks, in the same folds. A "
        "regression adds up what each covariate tells; a forest also sees combinations. The larger "
        "of the two AUCs counts, and the difference is the model's minus that one. The larger of "
        "two is optimistic, by about 0.02 where covariates tell nothing. Reached: it is not below "
        "the model's, or the interval of the difference contains 0. Not judged: one of the two is "
        "not defined, for the reason given.",
    )


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
                    TableCell(p_value(row["p_better"]), note=row["note"] or ""),
                    p_value(row["p_worse"]),
                    f"{row['permutations']:,}",
                )
            )
    return page_table(
        "Macro AUC with the labels of held-out patients shuffled within their test sets",
        ("Task / encoder / head", "#Observed", "#Chance: mean of shuffled", "#p, better",
         "#p, worse", "#Permutations"),
        rows,
        "This tests whether predictions and labels are associated at all: better, or worse, than "
        "chance. The other controls ask what explains the association.",
    )  # fmt: skip


def within_page_table(results: Results) -> PageTable | None:
    """Return the macro AUC of each model overall and over pairs of patients of the same group."""
    rows: list[TableRow] = [
        (
            model.name + sign,
            SUBGROUPS.get(row["by"], row["by"]),
            number(row["overall"], sign=sign),
            figure_cell(row, sign=sign),
            "" if row["pairs"] is None else f"{row['pairs']:.0%}",
            str(row["n"]),
        )
        for model in results.models
        for sign in (mark(results, model.encoder),)
        for row in model.controls["within"].filter(MACRO).to_dicts()
    ]
    if not rows:
        return None
    return page_table(
        "Macro AUC between patients of the same site, scanner and other groups",
        ("Task / encoder / head", "Same", "#All pairs", "#Same group", "#Pairs left", "#Patients"),
        rows,
        "Only patients of the same test set and the same group are compared. A model that "
        "recognises the site instead of the disease is at chance here, whatever its overall AUC.",
    )


def interactions_page_table(results: Results) -> PageTable | None:
    """Return the tests of each model for a difference between groups of patients."""
    rows: list[TableRow] = [
        (
            model.name + sign,
            TableCell(SUBGROUPS.get(row["by"], row["by"]), note=row["note"] or ""),
            str(row["groups"]),
            *(
                TableCell(number(row[end], sign=sign), note=row[f"{end}_group"] or "")
                for end in ("lowest", "highest")
            ),
            p_value(row["p"]),
            p_value(row["p_holm"]),
        )
        for model in results.models
        for sign in (mark(results, model.encoder),)
        for row in model.controls["interactions"].to_dicts()
    ]
    if not rows:
        return None
    return page_table(
        "Does the macro AUC differ between subgroups?",
        ("Task / encoder / head", "By", "#Groups tested", "#Lowest", "#Highest", "#p", "#p, Holm"),
        rows,
        "Wald's test that the groups have one macro AUC, corrected for the number of properties of "
        "the model. Groups with fewer than 5 patients of a class are left out. A small p says that "
        "the AUC differs, not why: groups also differ in how hard their patients are.",
    )


def shuffled(results: Results, model: EvaluatedModel) -> Figure | None:
    """Return the histogram of one model; None where it is not defined."""
    row = _macro(model.controls["shuffled"])
    draws = model.controls["shuffled_draws"].filter(MACRO)["auc"].drop_nulls().to_list()
    if row is None or row["value"] is None or not draws:
        return None
    return shuffled_figure(
        draws,
        row["value"],
        (p_value(row["p_better"]), p_value(row["p_worse"])),
        model.name,
        results.figure_context,
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
    within: PageTable | None
    interactions: PageTable | None
    shuffled: PageTable


def _collect(results: Results) -> ControlsData:
    return ControlsData(
        covariates=covariates_page_table(results),
        inputs=inputs_page_table(results),
        within=within_page_table(results),
        interactions=interactions_page_table(results),
        shuffled=shuffled_page_table(results),
    )


SECTION = Section(
    anchor="controls",
    title="Controls",
    order=70,
    collect=_collect,
    tables=stacked_controls("covariates", "inputs", "within", "interactions", "shuffled"),
)
