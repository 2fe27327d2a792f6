"""Stage 2, explanation: means over patients of measurements on slides, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from her2.evaluation.bootstrap import bootstrapped, interval, unvarying

INTERVAL = dict.fromkeys(("value", "low", "high"), pl.Float64)
"""Columns of a mean, in the schemas of its tables."""


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """The number of resamples of patients, the confidence level of intervals, and the seed."""

    resamples: int
    confidence: float
    seed: int


@dataclass(frozen=True, slots=True)
class Average:
    """A mean over `patients`, None with the reason in `note` where it is not defined."""

    value: float | None
    low: float | None
    high: float | None
    patients: int
    note: str = ""


def over_patients(
    table: pl.DataFrame, columns: Sequence[str], bootstrap: Bootstrap
) -> list[Average]:
    """Return the mean of each column over patients, where a patient is the mean of its slides.

    `table` has one row per slide: `patient_id`, `label` and the columns (finite). Intervals are
    expanded percentiles of resamples of patients within their class.
    """
    if not len(table):
        return [Average(None, None, None, 0)] * len(columns)
    patients = (
        table.group_by("patient_id")
        .agg(pl.col("label").first(), *(pl.col(name).mean() for name in columns))
        .sort("patient_id")
    )
    values = patients.select(columns).cast(pl.Float64).to_numpy()  # (p, k)
    target = np.unique(patients["label"].to_numpy(), return_inverse=True)[1].astype(np.int64)
    found = bootstrapped(
        lambda weights: weights @ values / weights.sum(axis=1, keepdims=True),
        np.arange(len(patients)),
        target,
        resamples=bootstrap.resamples,
        seed=bootstrap.seed,
    )
    if (np.bincount(target) < 2).all():
        note = "interval not defined: no class has 2 patients"
        return [Average(float(value), None, None, len(patients), note) for value in found[0]]
    averages = []
    for column in found.T:
        note = unvarying(column[1:])
        ends = interval(column[1:], bootstrap.confidence, (len(patients),))
        low, high = (None, None) if note else ends
        averages.append(Average(float(column[0]), low, high, len(patients), note))
    return averages
