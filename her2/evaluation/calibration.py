"""Stage 2, evaluate: calibration of the probabilities, before and after temperature scaling."""

import math
from collections.abc import Mapping
from functools import partial

import numpy as np
import polars as pl

from her2.config import EvaluationSection, Task
from her2.core.tables import null
from her2.core.types import Floats
from her2.evaluation.bootstrap import bootstrapped, interval
from her2.evaluation.intervals import Estimate
from her2.evaluation.predictions import Rows, out_of_fold, rows_of
from her2.evaluation.recalibration import PER_CLASS, recalibration
from her2.evaluation.shares import wilson
from her2.metrics import metrics_in
from her2.metrics.base import Metric
from her2.metrics.calibration_error import BINS, bins_of

PREDICTED, SCALED = "as predicted", "temperature"

CALIBRATION = {
    "level": pl.String,
    "state": pl.String,
    "metric": pl.String,
    "class": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "note": pl.String,
}
RELIABILITY = {
    "level": pl.String,
    "state": pl.String,
    "class": pl.String,
    "bin": pl.Int64,
    "mean_probability": pl.Float64,
    "observed_share": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
}


States = Mapping[str, tuple[pl.DataFrame | None, str]]
"""State -> its predictions (None if it has none) and a note on them."""


def calibration_table(
    states: States,
    task: Task,
    section: EvaluationSection,
    *,
    level: str,
    seed: int,
) -> pl.DataFrame:
    """Return the calibration metrics in each state of the predictions, with intervals.

    Those of all classes together (`class` is "") have bootstrap intervals, those of a class against
    the rest the ones of `her2.evaluation.recalibration`.

    Returns:
        `level, state, metric, class, value, low, high, n, note`.
    """
    metrics = metrics_in("calibration", ordinal=task.ordinal)
    columns = [(metric.name, "") for metric in metrics]
    columns += [(name, of) for of in task.class_names for name in PER_CLASS]
    records: list[dict[str, object]] = []
    for state, (predictions, reason) in states.items():
        shared: dict[str, object] = {"level": level, "state": state}
        if predictions is None:
            records += [
                shared | {"metric": name, "class": of, "n": 0, "note": reason}
                for name, of in columns
            ]
            continue
        rows = rows_of(out_of_fold(predictions, task.class_names, by=f"{level}_id"), task)
        shared["n"] = len(rows)
        absent = "" if len(rows) else f"not defined: no {level} was tested"
        found = [
            *_overall(rows, metrics, section, seed),
            *(
                estimate
                for index in range(len(task.class_names))
                for estimate in recalibration(
                    rows.target == index,
                    rows.probabilities[:, index],
                    rows.patients,
                    section.confidence,
                ).values()
            ),
        ]
        for (name, of), estimate in zip(columns, found, strict=True):
            note = "; ".join(filter(None, (reason, absent or estimate.note)))
            record = shared | {"metric": name, "class": of, "note": note}
            numbers = ("value", "low", "high")
            records.append(record | {key: null(getattr(estimate, key)) for key in numbers})
    return pl.DataFrame(records, schema=CALIBRATION)


def _overall(
    rows: Rows, metrics: tuple[Metric, ...], section: EvaluationSection, seed: int
) -> list[Estimate]:
    """Return each metric of all classes with its bootstrap interval."""
    values = bootstrapped(
        partial(_measure, rows, metrics),
        rows.patients,
        rows.target,
        resamples=section.bootstrap,
        seed=seed,
    )
    few = (
        "" if (rows.class_patients() > 1).any() else "interval not defined: no class has 2 patients"
    )
    found = []
    for metric, column in zip(metrics, values.T, strict=True):
        note = f"no interval: {metric.no_interval}" if metric.no_interval else few
        low, high = (math.nan, math.nan)
        if not note:
            low, high = interval(column[1:], section.confidence, (rows.count_patients,))
        found.append(Estimate(float(column[0]), low, high, note=note))
    return found


def _measure(rows: Rows, metrics: tuple[Metric, ...], weights: Floats) -> Floats:
    """Return one column per metric (b, k)."""
    classified = rows.weighted(weights)
    return np.stack([one.overall(classified) for one in metrics if one.overall], axis=1)


def reliability_table(
    states: States,
    task: Task,
    section: EvaluationSection,
    *,
    level: str,
) -> pl.DataFrame:
    """Return the observed share of each class among rows with similar predicted probability.

    The interval is Wilson's (Wilson, JASA 22, 1927).

    Returns:
        `level, state, class, bin, mean_probability, observed_share, low, high, n`; a bin without
        rows has nulls.
    """
    records = []
    for state, (predictions, _) in states.items():
        if predictions is None:
            continue
        rows = rows_of(out_of_fold(predictions, task.class_names, by=f"{level}_id"), task)
        for index, name in enumerate(task.class_names):
            probabilities = rows.probabilities[:, index]
            found, hits = bins_of(probabilities), rows.target == index
            for number in range(BINS):
                inside = found == number
                record = {
                    "level": level,
                    "state": state,
                    "class": name,
                    "bin": number,
                    "n": int(inside.sum()),
                }
                if inside.any():
                    count = int(hits[inside].sum())
                    low, high = wilson(count, int(inside.sum()), section.confidence)
                    record |= {
                        "mean_probability": float(probabilities[inside].mean()),
                        "observed_share": count / int(inside.sum()),
                        "low": low,
                        "high": high,
                    }
                records.append(record)
    return pl.DataFrame(records, schema=RELIABILITY)
