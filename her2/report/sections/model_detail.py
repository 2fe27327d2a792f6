"""Stage 2, report: tables and figures of one model beyond the headline."""

from typing import Any

import numpy as np
import polars as pl

from her2.metrics import all_metrics, grouping_metrics, headline_metrics, metric_named
from her2.report.figures.base import Figure
from her2.report.figures.curves import (
    Curve,
    precision_figure,
)
from her2.report.format import number
from her2.report.results import EvaluatedModel, Results
from her2.report.sections.overlap import mark
from her2.report.sections.seeds import ONE_SEED
from her2.report.tables import PageTable, TableCell, TableRow, figure_cell, page_table

PATIENT = pl.col("level") == "patient"


def figures_page_table(results: Results, model: EvaluatedModel) -> PageTable:
    """Return every metric at both levels."""
    sign = mark(results, model.encoder)
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in model.metrics.filter(pl.col("level").is_in(["patient", "slide"])).to_dicts():
        found.setdefault((row["metric"], row["class"]), {})[row["level"]] = row
    rows: list[TableRow] = []
    for (metric, name), levels in found.items():
        any_row, declared = next(iter(levels.values())), metric_named(metric)
        share = any_row["prevalence"]
        beside = f"prevalence {share:.3f}" if metric == "auprc" and share is not None else ""
        rows.append(
            (
                TableCell(f"{declared.label} {name}".rstrip(), note=beside),
                *(
                    figure_cell(levels.get(level), digits=declared.decimals, sign=sign)
                    for level in ("patient", "slide")
                ),
                _counted(any_row),
            )
        )
    return page_table(
        f"All metrics{sign}, out-of-fold",
        ("Metric", "#Patients", "#Slides", "#Positive patients"),
        rows,
        " ".join(
            [
                *(metric.note for metric in all_metrics() if metric.note),
                *([ONE_SEED] if results.config.training.seeds == 1 else []),
            ]
        ),
    )


def folds_page_table(model: EvaluatedModel) -> PageTable:
    """Return the metrics of each fold's own test set (once per seed), at patient level."""
    wanted = [
        (metric, name)
        for metric in sorted(headline_metrics(), key=lambda metric: metric.order)
        for name in metric.columns(model.task.class_names)
        if name != "weighted"
    ]
    table = model.fold_metrics.filter(PATIENT)
    by_run: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    for row in table.to_dicts():
        by_run.setdefault(row["run"], {})[row["metric"], row["class"]] = row
    wanted = [
        (metric, name)
        for metric, name in wanted
        if any((metric.name, name) in rows for rows in by_run.values())
    ]
    rows: list[TableRow] = [
        (
            run,
            str(next(iter(found.values()))["n"]),
            *(_plain(found.get((metric.name, name)), metric.decimals) for metric, name in wanted),
        )
        for run, found in by_run.items()
    ]
    titles = [f"#{metric.label} {name}".rstrip() for metric, name in wanted]
    return page_table(
        "Each fold separately, patients",
        ("Fold", "#Patients", *titles),
        rows,
        "A fold is too small for an interval, and the spread between folds is not an interval.",
    )


def binary_page_table(results: Results, model: EvaluatedModel) -> PageTable | None:
    """Return the metrics of regrouped scores."""
    table = model.binary.filter(PATIENT)
    if not len(table):
        return None
    sign = mark(results, model.encoder)
    metrics = grouping_metrics()
    rows: list[TableRow] = []
    for name in table["grouping"].unique(maintain_order=True):
        own = {row["metric"]: row for row in table.filter(pl.col("grouping") == name).to_dicts()}
        first = own[metrics[0].name]
        rows.append(
            (
                name,
                f"{first['n_positive']} of {first['n']}",
                *(
                    figure_cell(own.get(metric.name), digits=metric.decimals, sign=sign)
                    for metric in metrics
                ),
            )
        )
    return page_table(
        f"Scores in two groups{sign}, patients (negative vs positive)",
        ("Grouping", "#Positive", *(f"#{metric.label}" for metric in metrics)),
        rows,
        "Patients are ranked by the probability of the positive group as a share of both groups. "
        "Patients in neither group are left out.",
    )


def precision(results: Results, model: EvaluatedModel) -> Figure:
    """Return precision over recall at patient level, one curve per class."""
    curves = precision_curves(model, sign=mark(results, model.encoder))
    return precision_figure(curves, model.name, results.figure_context)


def precision_curves(model: EvaluatedModel, *, sign: str = "") -> list[Curve]:
    """Return the curve of each class against the rest; a class that is absent has no points.

    `sign` marks every area.
    """
    from sklearn.metrics import precision_recall_curve

    target = model.patients["target"].to_numpy()
    curves = []
    for index, name in enumerate(model.task.class_names):
        positive = target == index
        rows = model.metrics.filter(
            PATIENT & (pl.col("metric") == "auprc") & (pl.col("class") == name)
        ).to_dicts()
        recall = rates = np.empty(0)
        if positive.any() and not positive.all():
            rates, recall, _ = precision_recall_curve(positive, model.patients[f"prob_{name}"])
            # The library adds a last point, precision 1 at recall 0, that no threshold gives.
            rates, recall = rates[:-1], recall[:-1]
        curves.append(
            Curve(
                name=name,
                x=recall.tolist(),
                y=rates.tolist(),
                area=number(rows[0]["value"] if rows else None, sign=sign),
                positive=int(positive.sum()),
                level=float(positive.mean()) if len(positive) else 0.0,
            )
        )
    return curves


def _counted(row: dict[str, Any]) -> str:
    return "" if row["n_positive"] is None else f"{row['n_positive']} of {row['n']}"


def _plain(row: dict[str, Any] | None, digits: int) -> TableCell:
    """Return a fold's metric; the CSV file gives the reason where it is not defined."""
    return TableCell(number(row["value"] if row else None, digits))
