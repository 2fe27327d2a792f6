"""The thresholds of a frozen model: the mean of those that its folds chose in development.

Each fold chose its own on the calibrated probabilities of its tuning set. A frozen model has one
score, the mean over the folds, so it needs one threshold. With scores s_f and thresholds t_f,

    mean(s_f) >= mean(t_f)    if and only if    mean(s_f - t_f) >= 0

so a case is called when the folds' margins are positive on average. No external case, and no case
of a test set, is needed for it.
"""

import logging

import polars as pl

from her2.evaluation.external.thresholds import fold_thresholds, mean_threshold
from her2.frozen.model import Threshold

log = logging.getLogger(__name__)

__all__ = ["fold_thresholds", "frozen_thresholds"]


def frozen_thresholds(table: pl.DataFrame) -> tuple[Threshold, ...]:
    """Return the mean of the folds' thresholds, for each level, grouping and demand.

    A fold whose tuning set lacks a side has none and is left out; the log names it. Where no fold
    has a threshold there is none.

    Args:
        table: the table of `fold_thresholds`.
    """
    keys = ["level", "grouping", "fixed", "asked"]
    found = []
    for level, grouping, fixed, asked in table.select(keys).unique(maintain_order=True).iter_rows():
        where = {"level": level, "grouping": grouping, "fixed": fixed}
        lacking = table.filter(pl.col("threshold").is_null(), **where)["run"].to_list()
        if lacking and fixed == "specificity":  # once, as both demands need both sides
            log.warning(
                "%s, by %s: no threshold of %s, whose tuning sets lack a side",
                *(grouping, level, ", ".join(lacking)),
            )
        mean = mean_threshold(table, **where)
        if mean is not None:
            found.append(Threshold(level, grouping, fixed, asked, **mean))
    return tuple(found)
