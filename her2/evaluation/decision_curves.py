"""Stage 2, evaluate: decision curves, the net benefit of acting on the groupings' scores.

Source: Vickers and Elkin, Medical Decision Making 26(6), 2006. Patients are treated if their
probability is at least the threshold. A false positive costs threshold / (1 - threshold) times the
gain of a true positive. Treating no one has a net benefit of 0.
"""

import numpy as np
import polars as pl

from her2.config import EvaluationSection, Task
from her2.core.types import Bools, Floats
from her2.evaluation.calibration import States
from her2.evaluation.groupings import groupings_of, side_missing, two_sides
from her2.evaluation.predictions import out_of_fold, rows_of

THRESHOLDS = np.arange(1, 100) / 100
DECISION = {
    "level": pl.String,
    "grouping": pl.String,
    "state": pl.String,
    "threshold": pl.Float64,
    "net_benefit": pl.Float64,
    "treat_all": pl.Float64,
    "n": pl.Int64,
}


def net_benefit(positive: Bools, scores: Floats, thresholds: Floats) -> Floats:
    """Return TP / n - FP / n * t / (1 - t) of rows (n,) at each threshold t (k,)."""
    treated = scores[None] >= thresholds[:, None]
    hits, misses = (treated & positive).sum(axis=1), (treated & ~positive).sum(axis=1)
    result: Floats = (hits - misses * thresholds / (1 - thresholds)) / len(positive)
    return result


def decision_table(
    states: States, task: Task, section: EvaluationSection, *, level: str
) -> pl.DataFrame:
    """Return the net benefit of the model and of treating everyone, per grouping and state.

    Returns:
        `level, grouping, state, threshold, net_benefit, treat_all, n`; no rows for a state without
        predictions or a grouping that lacks a side.
    """
    parts = []
    for state, (predictions, _) in states.items():
        if predictions is None:
            continue
        rows = rows_of(out_of_fold(predictions, task.class_names, by=f"{level}_id"), task)
        for grouping in groupings_of(task, section):
            sides = two_sides(rows.target, rows.probabilities, grouping)
            if side_missing(sides.positive):
                continue
            everyone = np.ones(len(sides))
            parts.append(
                pl.DataFrame(
                    {
                        "level": level,
                        "grouping": grouping.name,
                        "state": state,
                        "threshold": THRESHOLDS,
                        "net_benefit": net_benefit(sides.positive, sides.scores, THRESHOLDS),
                        "treat_all": net_benefit(sides.positive, everyone, THRESHOLDS),
                        "n": len(sides),
                    },
                    schema_overrides=DECISION,
                )
            )
    return pl.concat(parts) if parts else pl.DataFrame(schema=DECISION)
