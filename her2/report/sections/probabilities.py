"""Stage 2, report: tables and figures of one model's probabilities and of acting on them."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from her2.evaluation.recalibration import OBSERVED_EXPECTED, SLOPE
from her2.metrics import metric_named, metrics_in
from her2.report.figures.base import Figure
from her2.report.figures.curves import Benefit, Reliability, benefit_figure, reliability_figure
from her2.report.format import NA, interval, number, percent
from her2.report.results import EvaluatedModel, Results
from her2.report.tables import PageTable, TableCell, TableRow, figure_cell, page_table

STATES = {"as predicted": "as predicted", "temperature": "with temperature scaling"}
PATIENT = pl.col("level") == "patient"


def calibration_page_table(model: EvaluatedModel) -> PageTable:
    """Return the calibration metrics of all scores before and after temperature scaling."""
    table = model.calibration.filter(PATIENT & (pl.col("class") == ""))
    rows: list[TableRow] = []
    for metric in table["metric"].unique(maintain_order=True):
        own = {row["state"]: row for row in table.filter(pl.col("metric") == metric).to_dicts()}
        declared = metric_named(metric)
        cells = (
            figure_cell(_quiet(own.get(state), declared.no_interval), digits=declared.decimals)
            for state in STATES
        )
        rows.append((declared.label, *cells))
    return page_table(
        "Calibration, patients",
        ("Metric", *(f"#{words}" for words in STATES.values())),
        rows,
        " ".join((_prior_words(model), _temperature_words(model))),
    )


def class_calibration_page_table(model: EvaluatedModel) -> PageTable:
    """Return observed over expected and the slope of each score, before and after scaling."""
    table = model.calibration.filter(PATIENT)
    found = {(row["class"], row["metric"], row["state"]): row for row in table.to_dicts()}
    rows: list[TableRow] = [
        (
            name,
            *(
                figure_cell(found.get((name, metric, state)), digits=2)
                for metric in (OBSERVED_EXPECTED, SLOPE)
                for state in STATES
            ),
        )
        for name in model.task.class_names
    ]
    return page_table(
        "Calibration of each score against the rest, patients",
        ("Score", "#Observed / expected", "#Observed / expected, with temperature", "#Slope",
         "#Slope, with temperature"),
        rows,
        "1 is perfect. Observed / expected: share of patients with the score over the mean "
        "probability; above 1 the probabilities are too low. Slope of a logistic recalibration: "
        "below 1 the probabilities are too extreme (Van Calster et al. 2019). Intercepts are in "
        "tables/calibration.csv.",
    )  # fmt: skip


def operating_page_table(model: EvaluatedModel) -> PageTable | None:
    """Return sensitivity, specificity, PPV and NPV at thresholds set on the tuning sets."""
    table = model.operating.filter(PATIENT)
    if not len(table):
        return None
    stated = table["stated_prevalence"].drop_nulls().len() > 0
    rows: list[TableRow] = [
        (
            row["grouping"],
            f"{row['fixed']} {percent(row['asked'])}",
            *(_ends(row, name) for name in ("sensitivity", "specificity", "ppv", "npv")),
            *((_stated(row, name) for name in ("ppv", "npv")) if stated else ()),
            f"{row['n_positive']} / {row['n_negative']}",
            TableCell(_span(row["threshold_min"], row["threshold_max"]), note=row["note"] or ""),
        )
        for row in table.to_dicts()
    ]
    titles = ("#PPV, stated prevalence", "#NPV, stated prevalence") if stated else ()
    return page_table(
        "Operating points, patients",
        ("Grouping", "Target on the tuning set", "#Sensitivity", "#Specificity", "#PPV", "#NPV",
         *titles, "#Positive / negative", "#Thresholds of the folds"),
        rows,
        "Each fold's threshold is set on its tuning set alone and applied to its test set, where "
        "the target need not be reached. Wilson's intervals, widened by how much the figures vary "
        "when thresholds are chosen again on resampled tuning sets. PPV and NPV are those of the "
        "tested patients, whose prevalence need not be that of a clinic"
        + ("; at a stated prevalence they follow from sensitivity and specificity." if stated
           else " (`evaluation.prevalence` states another)."),
    )  # fmt: skip


def reliability(results: Results, model: EvaluatedModel) -> Figure | None:
    """Return reliability before and after temperature scaling; None without predictions."""
    states = {
        words: lines
        for state, words in STATES.items()
        if (lines := reliability_lines(model.reliability, state, model.task.class_names))
    }
    if not states:
        return None
    return reliability_figure(states, model.name, results.figure_context)


def reliability_lines(
    reliability: pl.DataFrame, state: str, classes: Sequence[str]
) -> list[Reliability]:
    """Return the reliability of each class in a state; empty without predictions."""
    own = reliability.filter(PATIENT & (pl.col("n") > 0) & (pl.col("state") == state))
    if not len(own):
        return []
    return [
        Reliability(
            name,
            *(
                own.filter(pl.col("class") == name)[column].to_list()
                for column in ("mean_probability", "observed_share", "low", "high")
            ),
        )
        for name in classes
    ]


def benefit(results: Results, model: EvaluatedModel) -> Figure | None:
    """Return the decision curves of the groupings; None where no grouping has both groups."""
    found = benefit_lines(model.decision, "as predicted")
    return benefit_figure(found, model.name, results.figure_context) if found else None


def benefit_lines(decision: pl.DataFrame, state: str) -> list[Benefit]:
    """Return the decision curves of the groupings that have both groups, in a state."""
    table = decision.filter(PATIENT & (pl.col("state") == state))
    return [
        Benefit(
            name,
            *(
                table.filter(pl.col("grouping") == name)[column].to_list()
                for column in ("threshold", "net_benefit", "treat_all")
            ),
        )
        for name in table["grouping"].unique(maintain_order=True)
    ]


def _ends(row: dict[str, Any], name: str) -> TableCell:
    return TableCell(number(row[name], 2), interval(row[f"{name}_low"], row[f"{name}_high"], 2))


def _stated(row: dict[str, Any], name: str) -> TableCell:
    share = row["stated_prevalence"]
    if share is None:
        return TableCell(NA)
    cell = _ends(row, f"stated_{name}")
    return TableCell(cell.value, cell.interval, f"at {percent(share)}")


def _quiet(row: dict[str, Any] | None, words: str) -> dict[str, Any] | None:
    """Return a record without a note that is below the table already."""
    if row is None or not words:
        return row
    rest = [part for part in row["note"].split("; ") if part != f"no interval: {words}"]
    return row | {"note": "; ".join(rest)}


def _span(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return NA
    return f"{low:.3f}" if low == high else f"{low:.3f}\N{EN DASH}{high:.3f}"


def _prior_words(model: EvaluatedModel) -> str:
    """Return how frequent the scores are that the probabilities are given for."""
    table = model.priors
    if not len(table):
        return ""
    each = table.group_by("class", maintain_order=True).agg(
        low=pl.col("share").min(), high=pl.col("share").max(), seen=pl.col("seen").mean()
    )
    shares = "; ".join(
        f"{name}: {percent(low)}"
        + (f" to {percent(high)}" if percent(low) != percent(high) else "")
        + f", in training {percent(seen)}"
        for name, low, high, seen in each.iter_rows()
    )
    notes = [note for note in table["note"].unique().sort() if note]
    return " ".join(
        [
            "Probabilities are for scores as frequent as among the patients of the training sets, "
            f"not as training drew and weighed them ({shares}).",
            *(f"{note[:1].upper()}{note[1:]}." for note in notes),
        ]
    )


def _temperature_words(model: EvaluatedModel) -> str:
    """Return the note on the temperatures of a model's folds, and on metrics without intervals."""
    found: list[float] = model.temperatures["temperature"].drop_nulls().to_list()
    notes = [note for note in model.temperatures["note"].unique().sort() if note]
    text = (
        "Temperature: one number per fold, fitted on its tuning set, divides the log-probabilities"
    )
    if found:
        text += f" (here {_span(min(found), max(found))})"
    text += "."
    bare = [
        f"No interval of the {one.label[:1].lower()}{one.label[1:]}: {one.no_interval}."
        for one in metrics_in("calibration", ordinal=model.task.ordinal)
        if one.no_interval
    ]
    return " ".join([text, *bare, *(f"{note[:1].upper()}{note[1:]}." for note in notes)])
