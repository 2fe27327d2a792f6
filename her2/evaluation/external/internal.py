"""Stage 2, external cohorts: the figures of development beside the external ones.

An internal figure is that of single models, the mean over the folds. The external one is that of
the mean of all models' probabilities, which is better than a single model wherever these differ (by
up to 0.05 in simulation, docs/coverage.md). So a drop looks smaller than it is, and there is a
second difference like for like, of the mean external figure of the single models.

No patient is in both cohorts, so the two figures are independent. The interval of their difference
comes from the intervals of both (MOVER, the square-and-add method: Newcombe, Statistics in Medicine
17(8), 1998; Zou and Donner, Statistics in Medicine 27(10), 2008): each limit of the difference is
as far away as the distances of the limits that it is made of add up to in squares. It thus takes
over that the intervals are not symmetric, and exists at an AUC of 1. The p value is that of the
same interval: 1 minus the confidence at which a limit is 0.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import polars as pl

from her2.config import EvaluationSection, Task
from her2.core.tables import null
from her2.evaluation.areas import Area, held_out
from her2.evaluation.external.tables import INTERNAL
from her2.evaluation.groupings import groupings_of
from her2.evaluation.intervals import LEAST_COMPARED, Estimate
from her2.evaluation.paired import Question, areas_of, estimate_of

SMALLEST_P, LARGEST_P = 1e-12, 0.99
"""Between these the p value is searched; beyond them it is said to be the smallest, or 1."""
At = Callable[[float], Estimate]
"""Confidence -> a figure with its interval."""


def internal_table(
    development: pl.DataFrame,
    external: pl.DataFrame,
    single: pl.DataFrame,
    task: Task,
    section: EvaluationSection,
) -> pl.DataFrame:
    """Return the AUCs of patients of both cohorts and their difference, external minus internal.

    The internal ones are out-of-fold, as in the development's tables `metrics` and `binary`.

    Args:
        development: the development's predictions table, in the classes of `task`.
        external: the external predictions table, of the mean of the models.
        single: that of the single models, each of which is a round.
        task: the truth, for its classes.
        section: the `evaluation` section of the config, for groupings and confidence.

    Returns:
        The columns of `her2.evaluation.external.tables.INTERNAL`.
    """
    groupings, confidence = groupings_of(task, section), section.confidence
    inside, outside, alone = (
        areas_of(held_out(table, task, level="patient"), task, groupings)
        for table in (development, external, single)
    )
    records = []
    for question in inside:
        name, grouping = question
        first, second, third = (
            partial(_estimate, areas, question) for areas in (inside, outside, alone)
        )
        few = _too_few(inside[question], outside[question])
        gap, like = (
            Estimate(other(confidence).value - first(confidence).value, note=few)
            if few
            else independent_difference(first, other, confidence)
            for other in (second, third)
        )
        found = {"internal": first(confidence), "external": second(confidence)}
        notes = [f"{cohort}: {one.note}" for cohort, one in found.items() if one.note]
        records.append(
            {
                "metric": "auc",
                "class": name,
                "grouping": grouping,
                **_limits("internal", found["internal"]),
                **_limits("external", found["external"]),
                "difference": null(gap.value),
                "low": null(gap.low),
                "high": null(gap.high),
                "p": null(gap.p),
                "single": null(third(confidence).value),
                "single_difference": null(like.value),
                "single_low": null(like.low),
                "single_high": null(like.high),
                "single_p": null(like.p),
                "n_internal": int(inside[question].sizes.sum()),
                "n_external": int(outside[question].sizes.sum()),
                "note": "; ".join([*notes, *([gap.note] if gap.note else [])]),
            }
        )
    return pl.DataFrame(records, schema=INTERNAL)


def independent_difference(first: At, second: At, confidence: float) -> Estimate:
    """Return the second of two independent figures minus the first, with interval and p value.

    Args:
        first: the figure with its interval at any confidence.
        second: likewise.
        confidence: confidence level of the interval.
    """
    value = second(confidence).value - first(confidence).value

    def limits(level: float) -> tuple[float, float]:
        return difference_limits(first(level), second(level))

    low, high = limits(confidence)
    if math.isnan(low) or math.isnan(high):
        note = "" if math.isnan(value) else "no interval or p value: one of the figures has none"
        return Estimate(value, note=note)
    return Estimate(value, low, high, _p_value(limits, value))


def difference_limits(first: Estimate, second: Estimate) -> tuple[float, float]:
    """Return the interval of the second of two independent figures minus the first (MOVER)."""
    gap = second.value - first.value
    below = math.hypot(second.value - second.low, first.high - first.value)
    above = math.hypot(second.high - second.value, first.value - first.low)
    return gap - below, gap + above


def _p_value(limits: Callable[[float], tuple[float, float]], value: float) -> float:
    """Return 1 minus the confidence at which the limit towards 0 is 0."""
    from scipy.optimize import brentq

    end = 0 if value > 0 else 1

    def beyond(log_p: float) -> float:
        """Return how far 0 is outside of the interval."""
        return math.copysign(1.0, value) * limits(-math.expm1(log_p))[end]

    smallest, largest = math.log(SMALLEST_P), math.log(LARGEST_P)
    if value == 0 or beyond(largest) <= 0:
        return 1.0
    if beyond(smallest) > 0:
        return SMALLEST_P
    return math.exp(brentq(beyond, smallest, largest, xtol=1e-6))


def _estimate(areas: Mapping[Question, Area], question: Question, confidence: float) -> Estimate:
    return estimate_of(areas, question, confidence)


def _too_few(*areas: Area) -> str:
    if any(one.reason for one in areas):
        return ""
    if min(int(one.sizes.min()) for one in areas) >= LEAST_COMPARED:
        return ""
    return f"no interval or p value: fewer than {LEAST_COMPARED} patients of a class or side"


def _limits(name: str, found: Estimate) -> dict[str, float | None]:
    return {
        name: null(found.value),
        f"{name}_low": null(found.low),
        f"{name}_high": null(found.high),
    }
