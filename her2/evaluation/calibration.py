"""Stage 2, evaluate: whether probabilities mean what they say, before and after a temperature.

Source: Guo, Pleiss, Sun and Weinberger, ICML 2017 (ECE).
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import polars as pl
from statsmodels.stats.proportion import proportion_confint

from her2.config import EvaluationSection, Task
from her2.evaluation.figures import null
from her2.evaluation.metrics import (
    Floats,
    Ints,
    bootstrapped,
    interval,
    log_losses,
    mean,
    squared_errors,
)
from her2.evaluation.predictions import Rows, out_of_fold, rows_of

PREDICTED, SCALED = "as predicted", "temperature"
BINS = 10
METRICS = ("ece", "brier", "log_loss")

CALIBRATION = {
    "level": pl.String,
    "state": pl.String,
    "metric": pl.String,
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
"""State -> its predictions (None: there are none) and what has to be said of them."""


def calibration_table(
    states: States,
    task: Task,
    section: EvaluationSection,
    *,
    level: str,
    seed: int,
) -> pl.DataFrame:
    """ECE, Brier score and log loss of the predictions in each state, with bootstrap intervals.

    An ECE adds up absolute values, so resamples lie above it: its interval tends to be too high.

    Returns:
        `level, state, metric, value, low, high, n, note`.
    """
    records = []
    for state, (predictions, reason) in states.items():
        if predictions is None:
            records += [
                {"level": level, "state": state, "metric": metric, "n": 0, "note": reason}
                for metric in METRICS
            ]
            continue
        rows = rows_of(out_of_fold(predictions, task.class_names, by=f"{level}_id"), task)
        values = bootstrapped(
            partial(_measure, rows),
            rows.patients,
            rows.target,
            resamples=section.bootstrap,
            seed=seed,
        )
        single = not (rows.class_patients() > 1).any()
        notes = [
            reason,
            "" if len(rows) else f"not defined: no {level} was tested",
            "interval not defined: no class has 2 patients" if single and len(rows) else "",
        ]
        for metric, column in zip(METRICS, values.T, strict=True):
            low, high = interval(column[1:], section.confidence, (rows.count_patients,))
            records.append(
                {
                    "level": level,
                    "state": state,
                    "metric": metric,
                    "value": null(column[0]),
                    "low": None if single else null(low),
                    "high": None if single else null(high),
                    "n": len(rows),
                    "note": "; ".join(note for note in notes if note),
                }
            )
    return pl.DataFrame(records, schema=CALIBRATION)


def _measure(rows: Rows, weights: Floats) -> Floats:
    """ECE, Brier score and log loss (b, 3)."""
    total = weights.sum(axis=1)
    ece = np.abs(weights @ confidence_gaps(rows)).sum(axis=1) / np.maximum(total, 1)
    brier = mean(squared_errors(rows.target, rows.probabilities), weights)
    return np.stack(
        [ece, brier, mean(log_losses(rows.target, rows.probabilities), weights)], axis=1
    )


def confidence_gaps(rows: Rows) -> Floats:
    """(n, bins): correct minus confidence of each row, in the column of its confidence's bin.

    The ECE is the sum over bins of |column sum| / n: bins are 10 of equal width, of the most
    probable class.
    """
    confidences = rows.probabilities.max(axis=1)
    gaps = np.zeros((len(rows), BINS))
    correct = rows.predicted == rows.target
    gaps[np.arange(len(rows)), bins_of(confidences)] = correct - confidences
    return gaps


def bins_of(probabilities: Floats) -> Ints:
    """Bin of each probability (n,): (0, 0.1] is 0, with 0 itself in it, (0.9, 1] is 9."""
    edges = np.arange(1, BINS) / BINS
    return np.digitize(probabilities, edges, right=True).astype(np.int64)


def reliability_table(
    states: States,
    task: Task,
    section: EvaluationSection,
    *,
    level: str,
) -> pl.DataFrame:
    """For each class: the share that is of it among rows to which it was given with like
    probability, with Wilson's interval (Wilson, JASA 22, 1927).

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
                    low, high = proportion_confint(
                        count, record["n"], alpha=1 - section.confidence, method="wilson"
                    )
                    record |= {
                        "mean_probability": float(probabilities[inside].mean()),
                        "observed_share": count / int(inside.sum()),
                        "low": float(low),
                        "high": float(high),
                    }
                records.append(record)
    return pl.DataFrame(records, schema=RELIABILITY)
