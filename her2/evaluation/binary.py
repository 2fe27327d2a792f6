"""Stage 2, evaluate: figures of the groupings."""

import math

import numpy as np
import polars as pl

from her2.config import EvaluationSection, Task
from her2.core.tables import null
from her2.core.types import Floats
from her2.evaluation.areas import grouping_area, held_out
from her2.evaluation.bootstrap import bootstrapped, interval, unvarying
from her2.evaluation.figures import FIGURES, POOLED, estimate_columns
from her2.evaluation.groupings import Sides, groupings_of, side_missing, two_sides
from her2.evaluation.intervals import area_estimate
from her2.evaluation.predictions import Rows, out_of_fold, rows_of
from her2.metrics import grouping_metrics
from her2.metrics.base import Binary, Metric

BINARY = {("grouping" if name == "class" else name): kind for name, kind in FIGURES.items()}


def binary_table(
    predictions: pl.DataFrame, task: Task, section: EvaluationSection, *, level: str, seed: int
) -> pl.DataFrame:
    """Return the metrics of each grouping at a level, with intervals as in `figures`.

    Returns:
        The columns of `BINARY`.
    """
    rows = rows_of(out_of_fold(predictions, task.class_names, by=f"{level}_id"), task)
    tested = held_out(predictions, task, level=level)
    groupings, metrics = groupings_of(task, section), grouping_metrics()
    sides = [two_sides(rows.target, rows.probabilities, grouping) for grouping in groupings]
    if not sides:
        return pl.DataFrame(schema=BINARY)
    resampled = tuple(metric for metric in metrics if not metric.within_folds)
    values = bootstrapped(
        lambda weights: np.concatenate(
            [_measure(one, resampled, weights) for one in sides], axis=1
        ),
        rows.patients,
        rows.target,
        resamples=section.bootstrap,
        seed=seed,
    )
    records = []
    for index, (grouping, one) in enumerate(zip(groupings, sides, strict=True)):
        positive = int(one.positive.sum())
        shared = {
            "level": level,
            "grouping": grouping.name,
            "n": len(one),
            "n_positive": positive,
            "prevalence": positive / len(one) if len(one) else None,
        }
        columns = iter(values.T[len(resampled) * index : len(resampled) * (index + 1)])
        for metric in metrics:
            if metric.within_folds:
                found = area_estimate(grouping_area(tested, grouping), section.confidence)
                record = estimate_columns(found)
            else:
                record = _bootstrapped(next(columns), rows, one, section.confidence)
            notes = side_missing(one.positive) or record["note"], one.note
            record["note"] = "; ".join(note for note in notes if note)
            records.append(shared | {"metric": metric.name} | record)
    return pl.DataFrame(records, schema=BINARY)


def _measure(sides: Sides, metrics: tuple[Metric, ...], weights: Floats) -> Floats:
    """Return one column per metric (b, k); NaN without rows of both sides."""
    if side_missing(sides.positive):
        return np.full((len(weights), len(metrics)), np.nan)
    rows = Binary(sides.positive, sides.scores, weights[:, sides.kept])
    return np.stack([one.grouping(rows) for one in metrics if one.grouping], axis=1)


def _bootstrapped(
    column: Floats, rows: Rows, sides: Sides, confidence: float
) -> dict[str, float | str | None]:
    patients = rows.patients[sides.kept]
    sizes = [len(np.unique(patients[side])) for side in (sides.positive, ~sides.positive)]
    few = next(
        (
            f"interval not defined: fewer than 2 patients on the {name} side"
            for name, size in zip(("positive", "negative"), sizes, strict=True)
            if size < 2
        ),
        unvarying(column[1:]),
    )
    low, high = (math.nan, math.nan) if few else interval(column[1:], confidence, sizes)
    numbers = zip(("value", "low", "high"), (column[0], low, high), strict=True)
    return {name: null(value) for name, value in numbers} | {"method": POOLED, "note": few}
