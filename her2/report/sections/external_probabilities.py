"""Stage 2, report: calibration and operating points on an external cohort, beside development."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from her2.evaluation.calibration import SCALED
from her2.evaluation.recalibration import INTERCEPT, OBSERVED_EXPECTED, SLOPE
from her2.metrics import metrics_in
from her2.metrics.base import Metric
from her2.report.external_results import ExternalCohort, ExternalModel
from her2.report.format import NA, interval, number, percent
from her2.report.results import Results
from her2.report.sections.external_cells import development_of, model_head, where
from her2.report.tables import PageTable, TableCell, TableRow, figure_cell, page_table

PATIENT = pl.col("level") == "patient"
INTERNAL, EXTERNAL = "out-of-fold", "external"
MEASURES = {
    OBSERVED_EXPECTED: "Observed / expected",
    INTERCEPT: "In the large",
    SLOPE: "Slope",
}
RATES = ("sensitivity", "specificity")
Calibrated = Mapping[tuple[str, str], dict[str, Any]]


def calibration_page_table(results: Results, cohort: ExternalCohort, truth: str) -> PageTable:
    """Return the calibration of each score, external beside out-of-fold."""
    models = cohort.of_truth(truth)
    sides = _sides(models)
    rows: list[TableRow] = []
    for model in models:
        both = _both(results, model)
        rows += [
            (
                model_head(results, model),
                name,
                *(
                    figure_cell(both[side].get((metric, name)), digits=2)
                    for metric in MEASURES
                    for side in sides
                ),
            )
            for name in model.task.class_names
        ]
    return page_table(
        f"Calibration of each score on {where(cohort, truth)}, patients",
        ("Encoder / head", "Score",
         *(f"#{title}, {side}" for title in MEASURES.values() for side in sides)),
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
    models = cohort.of_truth(truth)
    sides, metrics = _sides(models), metrics_in("calibration", ordinal=True)
    rows: list[TableRow] = [
        (
            model_head(results, model),
            *(_quiet(both[side].get((one.name, "")), one) for one in metrics for side in sides),
        )
        for model in models
        for both in (_both(results, model),)
    ]
    return page_table(
        f"Errors of the probabilities on {where(cohort, truth)}, patients",
        ("Encoder / head", *(f"#{one.label}, {side}" for one in metrics for side in sides)),
        rows,
        "With the temperatures of development. Lower is better.",
    )


def operating_page_table(results: Results, model: ExternalModel) -> PageTable | None:
    """Return sensitivity and specificity at the thresholds of development; None without any."""
    table = model.tables["operating"].filter(PATIENT)
    if not len(table):
        return None
    sides, inside = _sides([model]), development_of(results, model)
    other = [] if inside is None else inside.operating.filter(PATIENT).to_dicts()
    known = {(row["grouping"], row["fixed"]): row for row in other}
    rows: list[TableRow] = []
    for row in table.to_dicts():
        both = {INTERNAL: known.get((row["grouping"], row["fixed"])), EXTERNAL: row}
        rows.append(
            (
                row["grouping"],
                f"{row['fixed']} {percent(row['asked'])}",
                TableCell(
                    number(row["threshold"]),
                    interval(row["threshold_min"], row["threshold_max"]),
                    row["note"] or "",
                ),
                *(_rate(both[side], rate) for rate in RATES for side in sides),
                *(_rate(row, rate) for rate in ("ppv", "npv")),
                f"{row['n_positive']} / {row['n_negative']}",
            )
        )
    return page_table(
        "At the thresholds of development, patients",
        ("Grouping", "Target in development", "#Threshold",
         *(f"#{rate.capitalize()}, {side}" for rate in RATES for side in sides),
         "#PPV", "#NPV", "#Positive / negative"),
        rows,
        "The threshold is the mean of those that the folds chose on their tuning sets, in brackets "
        "their range. External intervals are Wilson's. PPV and NPV are those of the external "
        "patients, whose prevalence need not be that of a clinic.",
    )  # fmt: skip


def _sides(models: Sequence[ExternalModel]) -> tuple[str, ...]:
    """Return whose figures are shown: those of development only where its classes are the same."""
    return (EXTERNAL,) if any(one.truth.positive for one in models) else (INTERNAL, EXTERNAL)


def _both(results: Results, model: ExternalModel) -> dict[str, Calibrated]:
    """Return metric and class -> figure of the patients with temperature scaling, by side."""
    inside = development_of(results, model)
    return {
        INTERNAL: {} if inside is None else _calibrated(inside.calibration),
        EXTERNAL: _calibrated(model.tables["calibration"]),
    }


def _calibrated(table: pl.DataFrame) -> Calibrated:
    rows = table.filter(PATIENT & (pl.col("state") == SCALED)).to_dicts()
    return {(row["metric"], row["class"]): row for row in rows}


def _quiet(row: dict[str, Any] | None, metric: Metric) -> TableCell:
    """Return the cell of a figure, without the reason that none of its kind has an interval."""
    cell = figure_cell(row, digits=metric.decimals)
    known = f"no interval: {metric.no_interval}"
    rest = [part for part in cell.note.split("; ") if part != known]
    return TableCell(cell.value, cell.interval, "; ".join(rest))


def _rate(row: Mapping[str, Any] | None, name: str) -> TableCell:
    if row is None:
        return TableCell(NA, note="not evaluated")
    return TableCell(number(row[name], 2), interval(row[f"{name}_low"], row[f"{name}_high"], 2))
