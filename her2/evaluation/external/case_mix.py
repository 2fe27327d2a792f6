"""Stage 2, external cohorts: the cases of both cohorts, development beside external.

The standardised difference does not depend on the number of cases, as a p value would: the
difference of two means, or shares, over the square root of the mean of both variances (Austin,
Statistics in Medicine 28(25), 2009). That of measures of slides is of their logarithms, as for the
controls.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from her2.cohort.columns import covariates, place_in_table
from her2.config.external_jobs import ExternalSpec, Truth
from her2.core.tables import null
from her2.core.types import Floats
from her2.evaluation.controls.covariates import NUMBERS
from her2.evaluation.controls.patient_groups import as_numbers
from her2.evaluation.external.tables import CASE_MIX
from her2.evaluation.external.truth import class_in_truth

CATEGORY, NUMBER = "category", "number"
UNKNOWN = "(not known)"
MEASURES = {
    "um/px": (NUMBERS["mpp"], True),
    "tissue area (mm2)": (NUMBERS["tissue"], True),
    "slide size (px)": (NUMBERS["size"], True),
}
"""Measures of slides in words: the expression, and whether the difference is of logarithms."""
TILES = "tiles"


@dataclass(frozen=True, slots=True)
class Cases:
    """A property of the cases of both cohorts.

    `values` are those of the development's and of the external patients or slides, null where one
    is not known.
    """

    what: str
    unit: str
    values: Sequence[pl.Series]
    task: str = ""
    grid: str = ""


def case_mix(
    spec: ExternalSpec,
    development: pl.DataFrame,
    external: pl.DataFrame,
    classes: Mapping[str, tuple[pl.DataFrame, pl.DataFrame]],
) -> pl.DataFrame:
    """Return counts, shares, quartiles and standardised differences of both cohorts.

    Classes are those of evaluated patients, everything else is of usable slides.

    Args:
        spec: the job's spec.
        development: the development cohort's table of all slides on all grids.
        external: likewise.
        classes: name of a truth -> the `patient_id, target` of both cohorts, in its classes.

    Returns:
        The columns of `her2.evaluation.external.tables.CASE_MIX`.
    """
    usable = [_usable(table) for table in (development, external)]
    records: list[dict[str, object]] = []
    for name, both in classes.items():
        names = spec.truths[name].truth.class_names
        values = [pl.Series([names[index] for index in one["target"]], dtype=pl.String)
                  for one in both]  # fmt: skip
        records += category(Cases("class", "patients", values, task=name), levels=names)
    slides = [table.unique("slide_id", keep="first", maintain_order=True) for table in usable]
    categories = {name: name for name in covariates("category")} | {"vendor": "vendor"}
    numbers = {name: name for name in covariates("number")}
    for name in spec.evaluation.covariates:
        values = _columns(slides, name)
        kinds = [as_numbers(one) is not None for one in values]
        (numbers if all(kinds) else categories).setdefault(name, name)
    for what in categories:
        records += category(Cases(what, "slides", _columns(slides, what)))
    for what, (measure, on_logs) in MEASURES.items():
        values = [table.select(measure.cast(pl.Float64).alias(what))[what] for table in slides]
        records.append(number(Cases(what, "slides", values), on_logs=on_logs))
    for grid in dict.fromkeys(spec.grids.values()):
        values = [table.filter(pl.col("grid") == grid)[TILES].cast(pl.Float64) for table in usable]
        records.append(number(Cases(TILES, "slides", values, grid=grid), on_logs=True))
    for what in numbers:
        values = [one.cast(pl.Float64, strict=False) for one in _columns(slides, what)]
        records.append(number(Cases(what, "slides", values), on_logs=False))
    return pl.DataFrame(records, schema=CASE_MIX)


def development_classes(
    folds: pl.DataFrame, development: pl.DataFrame, truth: Truth
) -> pl.DataFrame:
    """Return `patient_id, target` of the development's patients with a usable labelled slide."""
    usable = _usable(development)["slide_id"].unique().to_list()
    own = folds.filter(pl.col("role") != "predict", pl.col("slide_id").is_in(usable))
    own = own.select("patient_id", "label").unique("patient_id").sort("patient_id")
    return own.select("patient_id", class_in_truth(own["label"], truth).alias("target"))


def category(cases: Cases, *, levels: Sequence[str] = ()) -> list[dict[str, object]]:
    """Return a row per level: those given, or all that occur, the most frequent first."""
    both = [one.cast(pl.String).fill_null(UNKNOWN) for one in cases.values]
    counts = [dict(one.value_counts(name="count").iter_rows()) for one in both]
    totals = [len(one) for one in both]
    if not levels:
        found = {name: sum(own.get(name, 0) for own in counts) for own in counts for name in own}
        levels = sorted(found, key=lambda name: (name == UNKNOWN, -found[name], name))
        if set(levels) <= {UNKNOWN}:
            return []
    records = []
    for level in levels:
        inside, outside = (own.get(level, 0) for own in counts)
        shares = [
            count / total if total else None
            for count, total in zip((inside, outside), totals, strict=True)
        ]
        record = _shared(cases, CATEGORY) | {
            "level": level,
            "development": inside,
            "external": outside,
            "development_share": shares[0],
            "external_share": shares[1],
        }
        records.append(record | _standardised(*map(_of_share, shares)))
    return records


def number(cases: Cases, *, on_logs: bool) -> dict[str, object]:
    """Return the row of a number, with quartiles and the difference of means or mean logs."""
    record = _shared(cases, NUMBER) | {"level": ""}
    moments = []
    for name, values in zip(("development", "external"), cases.values, strict=True):
        own: Floats = values.drop_nulls().to_numpy()
        own = own[np.isfinite(own)]
        record[name] = len(own)
        if len(own):
            quartiles = np.quantile(own, [0.25, 0.5, 0.75]).tolist()
            ends = (f"{name}_low", f"{name}_median", f"{name}_high")
            record |= dict(zip(ends, quartiles, strict=True))
        scaled = np.log(own[own > 0]) if on_logs else own
        moments.append(_moments(scaled))
    return record | _standardised(*moments)


Moments = tuple[float, float] | None
"""Mean and variance, None for fewer than two cases."""


def _moments(values: Floats) -> Moments:
    """Return the moments of values (n,); the variance of equal ones is 0, whatever is rounded."""
    if len(values) < 2:
        return None
    if np.ptp(values) == 0:
        return float(values[0]), 0.0
    return float(values.mean()), float(values.var(ddof=1))


def _standardised(inside: Moments, outside: Moments) -> dict[str, object]:
    """Return `difference` and `note`, which says why there is none."""
    if inside is None or outside is None:
        return {"difference": None, "note": "no difference: fewer than 2 cases are known"}
    gap, variance = outside[0] - inside[0], (inside[1] + outside[1]) / 2
    if variance > 0:
        return {"difference": null(gap / math.sqrt(variance)), "note": ""}
    if gap == 0:
        return {"difference": 0.0, "note": ""}
    return {"difference": None, "note": "no difference: all cases of a cohort are alike"}


def _of_share(share: float | None) -> Moments:
    return None if share is None else (share, share * (1 - share))


def _shared(cases: Cases, kind: str) -> dict[str, object]:
    return {
        "what": cases.what,
        "kind": kind,
        "unit": cases.unit,
        "task": cases.task,
        "grid": cases.grid,
    }


def _columns(slides: Sequence[pl.DataFrame], name: str) -> list[pl.Series]:
    """Return a column of the manifest in both tables; nulls where a table does not have it."""
    return [
        table[place]
        if (place := place_in_table(name, table.columns))
        else pl.Series(name, [None] * len(table), pl.String)
        for table in slides
    ]


def _usable(cohort: pl.DataFrame) -> pl.DataFrame:
    return cohort.filter(pl.col("status") == "ok")
