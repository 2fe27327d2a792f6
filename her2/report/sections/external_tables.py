"""Stage 2, report: tables of frozen models on an external cohort, beside the out-of-fold ones."""

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from her2.metrics import metric_named
from her2.report.external_results import ExternalCohort, ExternalModel
from her2.report.format import interval, number, p_value, signed
from her2.report.results import EvaluatedModel, Results
from her2.report.sections.controls import SUBGROUPS
from her2.report.sections.covariate_tables import covariate_rows, laid_out
from her2.report.sections.external_cells import model_head, where
from her2.report.sections.overlap import external_mark
from her2.report.tables import PageTable, TableCell, TableRow, figure_cell, page_table

PATIENT = pl.col("level") == "patient"
MACRO = pl.col("class") == "macro"
INTERNAL, EXTERNAL = "out-of-fold", "external"


def counts_page_table(cohort: ExternalCohort, truth: str) -> PageTable:
    """Return how many slides and patients are left at each step, for encoders that lost alike."""
    alike: dict[tuple[tuple[Any, ...], ...], list[str]] = {}
    for model in cohort.of_truth(truth):
        encoders = alike.setdefault(tuple(model.tables["counts"].iter_rows()), [])
        encoders += [model.encoder] if model.encoder not in encoders else []
    steps = next(iter(alike))
    titles = ["Slides (patients)"] if len(alike) == 1 else [", ".join(e) for e in alike.values()]
    rows: list[TableRow] = [
        (
            what,
            *(
                TableCell(f"{steps_[at][1]:,} ({steps_[at][2]:,})", note=steps_[at][3] or "")
                for steps_ in alike
            ),
        )
        for at, (what, *_) in enumerate(steps)
    ]
    return page_table(
        f"Slides and patients of {where(cohort, truth)}",
        ("Step", *(f"#{title}" for title in titles)),
        rows,
        "Predicted are the slides with no label, with a label of no class, left out and evaluated. "
        "Nothing is imputed.",
    )


def internal_page_table(results: Results, cohort: ExternalCohort, truth: str) -> PageTable:
    """Return the macro AUC and those of groupings out-of-fold beside the external ones."""
    wanted = MACRO
    if len(cohort.of_truth(truth)[0].task.class_names) > 2:  # two classes have one AUC
        wanted |= pl.col("grouping") != ""
    rows: list[TableRow] = [
        (
            model_head(results, model),
            row["grouping"] or "macro",
            *_internal_cells(results, model, row),
        )
        for model in cohort.of_truth(truth)
        for row in model.tables["internal"].filter((pl.col("metric") == "auc") & wanted).to_dicts()
    ]
    return page_table(
        f"AUC out-of-fold and on {where(cohort, truth)}, patients",
        ("Encoder / head", "Score", "#Out-of-fold", "#External", "#External minus out-of-fold",
         "#p", "#Like for like", "#p, like for like", "#Patients"),
        rows,
        "No patient is in both cohorts, so that the interval of the difference adds up those of "
        "both figures. The p values are not corrected for their number. An out-of-fold figure is "
        "that of single models, the mean over the folds; the external one is of the mean of all "
        "models, which exceeds it where they differ. Like for like: the mean external figure of "
        "the single models minus the one out-of-fold.",
    )  # fmt: skip


def classes_page_table(results: Results, model: ExternalModel) -> PageTable | None:
    """Return the AUC of each class out-of-fold beside the external one; None for two classes."""
    if len(model.task.class_names) == 2:
        return None
    table = model.tables["internal"].filter(pl.col("class").is_in(model.task.class_names))
    rows: list[TableRow] = [
        (f"{metric_named(row['metric']).label} {row['class']}",
         *_internal_cells(results, model, row))
        for row in table.to_dicts()
    ]  # fmt: skip
    return page_table(
        "Each score, out-of-fold and external, patients",
        (
            "Metric",
            "#Out-of-fold",
            "#External",
            "#External minus out-of-fold",
            "#p",
            "#Like for like",
            "#p, like for like",
            "#Patients",
        ),
        rows,
    )


def metrics_page_table(model: ExternalModel, development: EvaluatedModel | None) -> PageTable:
    """Return every external metric at both levels, and that of patients out-of-fold.

    `development` is None where the classes are not those of the development.
    """
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in model.metrics.to_dicts():
        found.setdefault((row["metric"], row["class"]), {})[row["level"]] = row
    internal = {}
    if development is not None:
        internal = {
            (row["metric"], row["class"]): row for row in development.level("patient").to_dicts()
        }
    rows: list[TableRow] = []
    for (metric, name), levels in found.items():
        declared = metric_named(metric)
        cells = (
            *([internal.get((metric, name))] if development is not None else []),
            levels.get("patient"),
            levels.get("slide"),
        )
        rows.append(
            (
                f"{declared.label} {name}".rstrip(),
                *(figure_cell(row, digits=declared.decimals) for row in cells),
                _positives(levels.get("patient")),
            )
        )
    return page_table(
        "All metrics",
        ("Metric", *(["#Out-of-fold, patients"] if development is not None else []),
         "#External, patients", "#External, slides", "#Positive external patients"),
        rows,
        "Metrics other than AUCs depend on how frequent the classes are; compare them with those "
        "out-of-fold only together with the case mix. Brier score and log loss are with "
        "temperature scaling on external patients, and without it out-of-fold.",
    )  # fmt: skip


def sites_page_table(results: Results, cohort: ExternalCohort, truth: str) -> PageTable | None:
    """Return the macro AUC by site, scanner and subgroup; None where nothing tells them apart."""
    rows: list[TableRow] = [
        (
            model_head(results, model),
            SUBGROUPS.get(row["by"], row["by"]),
            row["site"],
            figure_cell(row),
            str(row["n"]),
        )
        for model in cohort.of_truth(truth)
        for row in model.tables["sites"].filter(PATIENT & MACRO).to_dicts()
    ]
    if not rows:
        return None
    return page_table(
        f"Macro AUC by site of {where(cohort, truth)}, patients",
        ("Encoder / head", "By", "Group", "#Macro AUC", "#Patients"),
        rows,
        "Each figure is of the patients of one group alone. The AUC of every score and grouping is "
        "in tables/external_sites.csv.",
    )


def external_covariates_page_table(
    results: Results, cohort: ExternalCohort, truth: str
) -> PageTable:
    """Return the AUCs of the models and of covariates that were learned in development."""
    rows = [
        row
        for model in cohort.of_truth(truth)
        for row in covariate_rows(
            f"{model.encoder} / {model.head}",
            model.tables["covariates"].filter(MACRO),
            external_mark(results, cohort.name, model.encoder),
        )
    ]
    return laid_out(
        f"Macro AUC of models and of covariates alone on {where(cohort, truth)}, patients",
        rows,
        "Encoder / head",
        "Covariates alone: what is known apart from how the tissue looks, learned on all patients "
        "of the development and read on the external ones. The larger of the two AUCs counts.",
    )


def _internal_cells(
    results: Results, model: ExternalModel, row: Mapping[str, Any]
) -> Iterable[TableCell | str]:
    sign = external_mark(results, model.cohort, model.encoder)
    counts = f"{row['n_internal'] or 0:,} / {row['n_external'] or 0:,}"
    return (
        _named(row, "internal", ""),
        _named(row, "external", sign),
        TableCell(
            signed(row["difference"], sign=sign),
            interval(row["low"], row["high"]),
            row["note"] or "",
        ),
        p_value(row["p"]),
        TableCell(
            signed(row["single_difference"], sign=sign),
            interval(row["single_low"], row["single_high"]),
        ),
        p_value(row["single_p"]),
        counts,
    )


def _named(row: Mapping[str, Any], name: str, sign: str) -> TableCell:
    ends = interval(row[f"{name}_low"], row[f"{name}_high"])
    return TableCell(number(row[name], sign=sign), ends)


def _positives(row: Mapping[str, Any] | None) -> str:
    return "" if row is None or row["n_positive"] is None else f"{row['n_positive']} of {row['n']}"
