"""Stage 2, external cohorts: the figures of development beside the external ones.

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
    development: pl.DataFrame, external: pl.DataFrame, task: Task, section: EvaluationSection
) -> pl.DataFrame:
    """Return the AUCs of patients of both cohorts and their difference, external minus internal.

    The internal ones are out-of-fold, as in the development's tables `metrics` and `binary`.

    Args:
        development: the development's predictions table, in the classes of `task`.
        external: the external predictions table.
        task: the truth, for its classes.
        section: the `evaluation` section of the config, for groupings and confidence.

    Returns:
        The columns of `her2.evaluation.external.tables.INTERNAL`.
    """
    groupings = groupings_of(task, section)
    inside, outside = (
        areas_of(held_out(table, task, level="patient"), task, groupings)
        for table in (development, external)
    )
    records = []
    for question in inside:
        name, grouping = question
        own, other = (areas[question] for areas in (inside, outside))
        first, second = (partial(_estimate, areas, question) for areas in (inside, outside))
        found = first(section.confidence), second(section.confidence)
        few = _too_few(own, other)
        gap = (
            Estimate(found[1].value - found[0].value, note=few)
            if few
            else independent_difference(first, second, section.confidence)
        )
        notes = (
            *(f"{cohort}: {one.note}" for cohort, one in
              zip(("internal", "external"), found, strict=True) if one.note),
            gap.note,
        )  # fmt: skip
        records.append(
            {
                "metric": "auc",
                "class": name,
                "grouping": grouping,
                **_limits("internal", found[0]),
                **_limits("external", found[1]),
                "difference": null(gap.value),
                "low": null(gap.low),
                "high": null(gap.high),
                "p": null(gap.p),
                "n_internal": int(own.sizes.sum()),
                "n_external": int(other.sizes.sum()),
                "note": "; ".join(note for note in notes if note),
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

    def limits(level: float) -> tuple[float, float]:
        one, other = first(level), second(level)
        gap = other.value - one.value
        below = math.hypot(other.value - other.low, one.high - one.value)
        above = math.hypot(other.high - other.value, one.value - one.low)
        return gap - below, gap + above

    value = second(confidence).value - first(confidence).value
    low, high = limits(confidence)
    if math.isnan(low) or math.isnan(high):
        note = "" if math.isnan(value) else "no interval or p value: one of the figures has none"
        return Estimate(value, note=note)
    return Estimate(value, low, high, _p_value(limits, value))


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
