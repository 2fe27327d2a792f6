"""Stage 2, report: calibration and operating points on an external cohort, beside development."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from her2.evaluation.calibration import SCALED
from her2.evaluation.recalibration import INTERCEPT, OBSERVED_EXPECTED, SLOPE
from her2.metrics import metrics_in
from her2.report.external_results import ExternalCohort, ExternalModel
from her2.report.format import NA, interval, number, percent
from her2.report.results import EvaluatedModel, Results
from her2.report.sections.external_cells import development_of, model_head, where
from her2.report.tables import PageTable, TableCell, TableRow, figure_cell, page_table

PATIENT = pl.col("level") == "patient"
INTERNAL, EXTERNAL = "out-of-fold", "external"


def calibration_page_table(
    results: Results, cohort: ExternalCohort, truth: str
) -> PageTable | None:
    """Return the calibration of each score, external beside out-of-fold; None without any."""
    rows: list[TableRow] = []
    for model in cohort.of_truth(truth):
        inside = development_of(results, model)
        own, other = _calibrated(model.tables["calibration"]), {}
        if inside is not None:
            other = _calibrated(inside.calibration)
        rows += [
            (
                model_head(results, model),
                name,
                *(
                    cell
                    for metric in (OBSERVED_EXPECTED, INTERCEPT, SLOPE)
                    for cell in (
                        _beside(other, (metric, name), inside),
                        figure_cell(own.get((metric, name)), digits=2),
                    )
                ),
            )
            for name in model.task.class_names
        ]
    if not rows:
        return None
    titles = ("Observed / expected", "In the large", "Slope")
    return page_table(
        f"Calibration of each score on {where(cohort, truth)}, patients",
        ("Encoder / head", "Score",
         *(f"#{title}, {where}" for title in titles for where in (INTERNAL, EXTERNAL))),
        rows,
        "With the temperatures of development; nothing was fitted on external patients. Observed / "
        "expected and slope: 1 is perfect; above 1 the probabilities are too low, and a slope "
        "below 1 means that they are too extreme. In the large: the intercept of a logistic "
        "recalibration of slope 1; 0 is perfect, above 0 the probabilities are too low. A cohort "
        "with other shares of the scores shifts it even if the model is as good.",
    )  # fmt: skip


def calibration_errors_page_table(
    results: Results, cohort: ExternalCohort, truth: str
) -> PageTable:
    """Return the calibration metrics of all scores together, external beside out-of-fold."""
    metrics = metrics_in("calibration", ordinal=True)
    rows: list[TableRow] = []
    for model in cohort.of_truth(truth):
        inside = development_of(results, model)
        own = _calibrated(model.tables["calibration"])
        other = {} if inside is None else _calibrated(inside.calibration)
        rows.append(
            (
                model_head(results, model),
                *(
                    cell
                    for one in metrics
                    for cell in (
                        _beside(other, (one.name, ""), inside, digits=one.decimals),
                        _quiet(own.get((one.name, "")), one.no_interval, one.decimals),
                    )
                ),
            )
        )
    return page_table(
        f"Errors of the probabilities on {where(cohort, truth)}, patients",
        ("Encoder / head",
         *(f"#{one.label}, {where}" for one in metrics for where in (INTERNAL, EXTERNAL))),
        rows,
        "With the temperatures of development. Lower is better.",
    )  # fmt: skip


def operating_page_table(results: Results, model: ExternalModel) -> PageTable | None:
    """Return sensitivity and specificity at the thresholds of development; None without any."""
    table = model.tables["operating"].filter(PATIENT)
    if not len(table):
        return None
    inside = development_of(results, model)
    other = {}
    if inside is not None:
        other = {
            (row["grouping"], row["fixed"]): row
            for row in inside.operating.filter(PATIENT).to_dicts()
        }
    rows: list[TableRow] = []
    for row in table.to_dicts():
        own = other.get((row["grouping"], row["fixed"]))
        rows.append(
            (
                row["grouping"],
                f"{row['fixed']} {percent(row['asked'])}",
                TableCell(
                    number(row["threshold"]),
                    interval(row["threshold_min"], row["threshold_max"]),
                    row["note"] or "",
                ),
                *(
                    _rate(one, rate) if one is not None else TableCell(NA, note="other classes")
                    for rate in ("sensitivity", "specificity")
                    for one in (own, row)
                ),
                *(_rate(row, rate) for rate in ("ppv", "npv")),
                f"{row['n_positive']} / {row['n_negative']}",
            )
        )
    return page_table(
        "At the thresholds of development, patients",
        ("Grouping", "Target in development", "#Threshold", f"#Sensitivity, {INTERNAL}",
         f"#Sensitivity, {EXTERNAL}", f"#Specificity, {INTERNAL}", f"#Specificity, {EXTERNAL}",
         "#PPV", "#NPV", "#Positive / negative"),
        rows,
        "The threshold is the mean of those that the folds chose on their tuning sets, in brackets "
        "their range. External intervals are Wilson's. PPV and NPV are those of the external "
        "patients, whose prevalence need not be that of a clinic.",
    )  # fmt: skip


def _calibrated(table: pl.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """Return metric and class -> row of the patients, with temperature scaling."""
    rows = table.filter(PATIENT & (pl.col("state") == SCALED)).to_dicts()
    return {(row["metric"], row["class"]): row for row in rows}


def _beside(
    table: Mapping[tuple[str, str], dict[str, Any]],
    key: tuple[str, str],
    inside: EvaluatedModel | None,
    digits: int = 2,
) -> TableCell:
    """Return an out-of-fold figure beside an external one."""
    if inside is None:
        return TableCell(NA, note="other classes")
    return _quiet(table.get(key), _metric_note(key[0]), digits)


def _metric_note(name: str) -> str:
    """Return why a calibration metric has no interval; "" if it has one."""
    known = {one.name: one.no_interval for one in metrics_in("calibration", ordinal=True)}
    return known.get(name, "")


def _quiet(row: dict[str, Any] | None, words: str, digits: int) -> TableCell:
    """Return the cell of a figure, without the reason that none of its kind has an interval."""
    cell = figure_cell(row, digits=digits)
    rest = [part for part in cell.note.split("; ") if part != f"no interval: {words}"]
    return TableCell(cell.value, cell.interval, "; ".join(rest))


def _rate(row: Mapping[str, Any], name: str) -> TableCell:
    return TableCell(number(row[name], 2), interval(row[f"{name}_low"], row[f"{name}_high"], 2))
