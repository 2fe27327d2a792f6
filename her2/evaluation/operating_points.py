"""Stage 2, evaluate: the groupings' sensitivity at a fixed specificity, and vice versa.

Each fold's threshold is chosen on its tuning set alone and applied to its test set.
"""

from dataclasses import dataclass, field

import numpy as np
import polars as pl

from her2.config import EvaluationSection, Task
from her2.config.names import Run
from her2.core.types import Bools, Floats
from her2.evaluation.groupings import Grouping, Sides, groupings_of, side_missing, two_sides
from her2.evaluation.predictions import averaged, of_run, rows_of, runs
from her2.evaluation.shares import wilson

OPERATING = {
    "level": pl.String,
    "grouping": pl.String,
    "fixed": pl.String,
    "asked": pl.Float64,
    "sensitivity": pl.Float64,
    "sensitivity_low": pl.Float64,
    "sensitivity_high": pl.Float64,
    "specificity": pl.Float64,
    "specificity_low": pl.Float64,
    "specificity_high": pl.Float64,
    "ppv": pl.Float64,
    "npv": pl.Float64,
    "n_positive": pl.Int64,
    "n_negative": pl.Int64,
    "threshold_min": pl.Float64,
    "threshold_max": pl.Float64,
    "note": pl.String,
}


@dataclass(slots=True)
class _Calls:
    """Test rows of all folds: their side, whether they were called positive, and their patient."""

    positive: list[Bools] = field(default_factory=list)
    called: list[Bools] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    patients: list[str] = field(default_factory=list)
    thresholds: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def threshold(positive: Bools, scores: Floats, fixed: str, asked: float) -> float:
    """Return the lowest threshold with a specificity, or the highest with a sensitivity.

    Rows at or above the threshold are called positive. Among the thresholds with the required
    figure on these rows, this one is best for the other side.

    Args:
        positive: (n,), with rows of both sides.
        scores: (n,).
        fixed: `specificity` or `sensitivity`.
        asked: the smallest value required of it, 0 to 1.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # last rows of equal scores
    hits = np.concatenate([[0], np.cumsum(positive[order])[last]])
    called = np.concatenate([[0], last + 1])
    true_rate, false_rate = hits / hits[-1], (called - hits) / (called[-1] - hits[-1])
    # At a threshold above all scores no row is called positive.
    at_scores = scores[order][last]
    thresholds = np.concatenate([[np.nextafter(at_scores[0], np.inf)], at_scores])
    tolerance = 1e-12  # in floats 1 - 0.9 differs from 0.1
    if fixed == "specificity":
        return float(thresholds[np.flatnonzero(false_rate <= 1 - asked + tolerance)[-1]])
    return float(thresholds[np.flatnonzero(true_rate >= asked - tolerance)[0]])


def operating_table(
    predictions: pl.DataFrame, task: Task, section: EvaluationSection, *, level: str
) -> pl.DataFrame:
    """Return figures on the test sets at each grouping's required specificity and sensitivity.

    Counts are pooled over folds. A patient (or slide) tested in several repeats counts by the share
    of repeats that called it positive. Intervals are Wilson's, with one trial per patient.

    Returns:
        `level, grouping, fixed, asked, sensitivity, sensitivity_low, sensitivity_high,
        specificity, specificity_low, specificity_high, ppv, npv, n_positive, n_negative,
        threshold_min, threshold_max, note`.
    """
    asked = {"specificity": section.specificity, "sensitivity": section.sensitivity}
    records = [
        {"level": level, "grouping": grouping.name, "fixed": fixed, "asked": value}
        | _record(_calls(predictions, task, grouping, level, fixed, value), section.confidence)
        for grouping in groupings_of(task, section)
        for fixed, value in asked.items()
    ]
    return pl.DataFrame(records, schema=OPERATING)


def _calls(
    predictions: pl.DataFrame, task: Task, grouping: Grouping, level: str, fixed: str, asked: float
) -> _Calls:
    calls, lacking = _Calls(), []
    for run in runs(predictions):
        tuned, _ = _sides(predictions, (run, "tune"), task, grouping, level)
        tested, table = _sides(predictions, (run, "test"), task, grouping, level)
        if side_missing(tuned.positive):
            lacking.append(run.name)
            continue
        at = threshold(tuned.positive, tuned.scores, fixed, asked)
        calls.thresholds.append(at)
        calls.positive.append(tested.positive)
        calls.called.append(tested.scores >= at)
        kept = table.filter(pl.Series(tested.kept))
        calls.names += kept[f"{level}_id"].to_list()
        calls.patients += kept["patient_id"].to_list()
    if lacking:
        calls.notes.append(
            f"test sets of {', '.join(lacking)} left out: no threshold, because the tuning set "
            "lacks a side"
        )
    return calls


def _sides(
    predictions: pl.DataFrame,
    part: tuple[Run, str],
    task: Task,
    grouping: Grouping,
    level: str,
) -> tuple[Sides, pl.DataFrame]:
    table = averaged(of_run(predictions, *part), task.class_names, by=f"{level}_id")
    rows = rows_of(table, task)
    return two_sides(rows.target, rows.probabilities, grouping), table


def _record(calls: _Calls, confidence: float) -> dict[str, object]:
    if not calls.thresholds:
        note = "; ".join(calls.notes) or "not defined: no one was tested"
        return {"n_positive": 0, "n_negative": 0, "note": note}
    table = pl.DataFrame(
        {
            "name": pl.Series(calls.names, dtype=pl.String),
            "patient": pl.Series(calls.patients, dtype=pl.String),
            "positive": np.concatenate(calls.positive),
            "called": np.concatenate(calls.called).astype(float),
        }
    )
    # One row per patient (or slide), with the share of repeats that called it positive.
    table = table.group_by("name", "patient", "positive").agg(pl.col("called").mean())
    ups, downs = table.filter(pl.col("positive")), table.filter(~pl.col("positive"))
    true_positive, false_positive = float(ups["called"].sum()), float(downs["called"].sum())
    record: dict[str, object] = {
        "n_positive": len(ups),
        "n_negative": len(downs),
        "threshold_min": min(calls.thresholds),
        "threshold_max": max(calls.thresholds),
        "ppv": _ratio(true_positive, true_positive + false_positive),
        "npv": _ratio(
            len(downs) - false_positive, len(downs) - false_positive + len(ups) - true_positive
        ),
    }
    for name, hits, rows in (
        ("sensitivity", true_positive, ups),
        ("specificity", len(downs) - false_positive, downs),
    ):
        share = _ratio(hits, len(rows))
        if share is None:
            side = "positive" if name == "sensitivity" else "negative"
            calls.notes.append(f"{name} not defined: no patient on the {side} side")
            continue
        trials = rows["patient"].n_unique()
        low, high = wilson(share * trials, trials, confidence)
        record |= {name: share, f"{name}_low": low, f"{name}_high": high}
    return record | {"note": "; ".join(calls.notes)}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
