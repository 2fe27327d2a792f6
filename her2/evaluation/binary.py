"""Stage 2, evaluate: figures of the groupings, by bootstrap and by DeLong."""

import math

import numpy as np
import polars as pl

from her2.config import EvaluationSection, Task
from her2.core.types import Floats
from her2.evaluation.bootstrap import bootstrapped, interval, unvarying
from her2.evaluation.delong import area_interval
from her2.evaluation.figures import null
from her2.evaluation.groupings import Grouping, Sides, groupings_of, side_missing, two_sides
from her2.evaluation.predictions import Rows, rows_of
from her2.metrics import grouping_metrics
from her2.metrics.base import Binary, Metric

BINARY = {
    "level": pl.String,
    "grouping": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "method": pl.String,
    "n": pl.Int64,
    "n_positive": pl.Int64,
    "prevalence": pl.Float64,
    "note": pl.String,
}


def binary_table(
    table: pl.DataFrame, task: Task, section: EvaluationSection, *, level: str, seed: int
) -> pl.DataFrame:
    """Return the metrics of each grouping; the AUC has a row by bootstrap and one by DeLong.

    The bootstrap resamples patients within their class, as in `figures`. DeLong's method assumes
    independent rows, so there is no such interval where a patient has two slides.

    Returns:
        `level, grouping, metric, value, low, high, method, n, n_positive, prevalence, note`.
    """
    rows = rows_of(table, task)
    groupings, metrics = groupings_of(task, section), grouping_metrics()
    sides = [two_sides(rows, grouping) for grouping in groupings]
    if not sides:
        return pl.DataFrame(schema=BINARY)
    values = bootstrapped(
        lambda weights: np.concatenate([_measure(one, metrics, weights) for one in sides], axis=1),
        rows.patients,
        rows.target,
        resamples=section.bootstrap,
        seed=seed,
    )
    records = []
    for index, (grouping, one) in enumerate(zip(groupings, sides, strict=True)):
        missing, too_few = side_missing(one.positive), _too_few(rows, one)
        for offset, metric in enumerate(metrics):
            column = values[:, len(metrics) * index + offset]
            few = too_few or unvarying(column[1:])
            low, high = (
                (math.nan, math.nan)
                if few
                else interval(column[1:], section.confidence, _sizes(rows, one))
            )
            notes = missing or few, one.note
            records.append(
                _record(
                    level,
                    grouping,
                    one,
                    metric.name,
                    "bootstrap",
                    (column[0], low, high),
                    notes,
                )
            )
        area, low, high, note = _delong(rows, one, section.confidence)
        records.append(
            _record(
                level,
                grouping,
                one,
                "auc",
                "delong",
                (area, low, high),
                (missing or note, one.note),
            )
        )
    return pl.DataFrame(records, schema=BINARY)


def _measure(sides: Sides, metrics: tuple[Metric, ...], weights: Floats) -> Floats:
    """Return one column per metric (b, k); NaN without rows of both sides."""
    if side_missing(sides.positive):
        return np.full((len(weights), len(metrics)), np.nan)
    rows = Binary(sides.positive, sides.scores, weights[:, sides.kept])
    return np.stack([one.grouping(rows) for one in metrics if one.grouping], axis=1)


def _delong(rows: Rows, sides: Sides, confidence: float) -> tuple[float, float, float, str]:
    area, low, high = area_interval(sides.positive, sides.scores, confidence)
    if not rows.single:
        return area, math.nan, math.nan, "no DeLong interval: slides of one patient are dependent"
    note = "no DeLong interval: its variance is 0 or not defined" if math.isnan(low) else ""
    return area, low, high, note


def _sizes(rows: Rows, sides: Sides) -> tuple[int, int]:
    """Return the numbers of patients on the positive and on the negative side."""
    patients = rows.patients[sides.kept]
    positive, negative = (
        len(np.unique(patients[side])) for side in (sides.positive, ~sides.positive)
    )
    return positive, negative


def _too_few(rows: Rows, sides: Sides) -> str:
    counts = zip(("positive", "negative"), _sizes(rows, sides), strict=True)
    few = [name for name, number in counts if number < 2]
    return f"interval not defined: fewer than 2 patients on the {few[0]} side" if few else ""


def _record(
    level: str,
    grouping: Grouping,
    sides: Sides,
    metric: str,
    method: str,
    values: tuple[float, float, float],
    notes: tuple[str, str],
) -> dict[str, object]:
    positive = int(sides.positive.sum())
    return {
        "level": level,
        "grouping": grouping.name,
        "metric": metric,
        **dict(zip(("value", "low", "high"), map(null, values), strict=True)),
        "method": method,
        "n": len(sides),
        "n_positive": positive,
        "prevalence": positive / len(sides) if len(sides) else None,
        "note": "; ".join(note for note in notes if note),
    }
