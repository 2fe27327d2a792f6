"""Stage 2, explanation: means over patients of measurements on slides, with intervals.

An interval is that of a stratified mean: patients' classes are given, so the spread within a
class counts and the difference between classes does not. One variance is pooled over the strata,
with n - C degrees of freedom for n patients in C strata. Classes with a single patient form one
stratum, which is cautious if they differ (collapsed strata: Cochran, Sampling Techniques, 1977,
5A.12). The interval is symmetric on a scale without bounds (logit, or logarithm of a ratio), where
the mean of skewed values is closer to Student's t; so no limit is out of range.
`tests/unit/test_averages.py` simulates the coverage.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.special import expit, logit, stdtrit

from her2.core.types import Floats, Ints

SHARE = (0.0, 1.0)
SIGNED = (-1.0, 1.0)
RATIO = (0.0, math.inf)
"""Lowest and highest value that a measure can have."""
INTERVAL = dict.fromkeys(("value", "low", "high"), pl.Float64)
"""Columns of a mean, in the schemas of its tables."""


@dataclass(frozen=True, slots=True)
class Average:
    """A mean over `patients`, None with the reason in `note` where it is not defined."""

    value: float | None
    low: float | None
    high: float | None
    patients: int
    note: str = ""


def over_patients(
    table: pl.DataFrame, columns: Mapping[str, tuple[float, float]], confidence: float
) -> list[Average]:
    """Return the mean of each column over patients, where a patient is the mean of its slides.

    Args:
        table: `patient_id`, `label` and the columns (finite), one row per slide. Patients without
            a label are one more class.
        columns: columns to average, with their lowest and highest possible value.
        confidence: confidence level of the intervals.
    """
    if not len(table):
        return [Average(None, None, None, 0)] * len(columns)
    patients = (
        table.group_by("patient_id")
        .agg(
            pl.col("label").drop_nulls().first().fill_null(""),
            *(pl.col(name).mean() for name in columns),
        )
        .sort("patient_id")
    )
    classes = np.unique(patients["label"].to_numpy(), return_inverse=True)[1].astype(np.int64)
    return [
        _average(patients[name].cast(pl.Float64).to_numpy(), classes, bounds, confidence)
        for name, bounds in columns.items()
    ]


def _average(
    values: Floats, classes: Ints, bounds: tuple[float, float], confidence: float
) -> Average:
    """Return the mean of patients' values (n,), of `classes` (n,) from 0 on, with its interval."""
    count, mean = len(values), float(values.mean())
    if count == 1:
        return Average(mean, None, None, count, "interval not defined: 1 patient")
    alone = np.bincount(classes)[classes] == 1
    strata = np.unique(np.where(alone, -1, classes), return_inverse=True)[1]
    sizes = np.bincount(strata)
    freedom = count - len(sizes)
    within = values - (np.bincount(strata, values) / sizes)[strata]
    error = math.sqrt(float(within @ within) / freedom / count)
    if error <= 1e-12:
        note = "interval not defined: patients of a class do not differ"
        return Average(mean, None, None, count, note)
    reach = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    return Average(mean, *_limits(mean, reach, bounds), count)


def _limits(mean: float, reach: float, bounds: tuple[float, float]) -> tuple[float, float]:
    """Return the limits whose distance, on the scale without bounds, is `reach` times its slope."""
    lowest, highest = bounds
    if math.isinf(highest):
        factor = math.exp(reach / (mean - lowest))
        return lowest + (mean - lowest) / factor, lowest + (mean - lowest) * factor
    width = highest - lowest
    place = (mean - lowest) / width
    step = reach / width / (place * (1 - place))
    low, high = expit([logit(place) - step, logit(place) + step])
    return lowest + width * float(low), lowest + width * float(high)
