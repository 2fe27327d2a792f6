"""Stage 2, control: the groups of patients by columns of the manifest and by amount of tissue."""

from collections.abc import Mapping, Sequence

import polars as pl

from her2.cohort.columns import place_in_table, subgroups
from her2.config.learning import TISSUE
from her2.core.errors import UserError

UNKNOWN = "(not known)"
MOST_NUMBERS = 10
"""Number of values above which a column of numbers is cut into thirds."""


def patient_groups(
    tested: pl.DataFrame, cohort: pl.DataFrame, columns: Sequence[str] = ()
) -> Mapping[str, Mapping[str, str]]:
    """Return the group of each tested patient by each property: property -> patient -> group.

    A patient has the value of their first slide that has one. Their amount of tissue is the sum
    over their tested slides. It is cut into thirds of the patients, as are columns of more than
    `MOST_NUMBERS` numbers. A property that is the same for all patients is left out.

    Args:
        tested: rows with `slide_id, patient_id`.
        cohort: one row per slide: `slide_id, tissue_mm2` and columns of the manifest.
        columns: further columns of the manifest.

    Raises:
        UserError: the cohort's table lacks one of `columns`.
    """
    places = {name: name for name in subgroups() if name in cohort.columns}
    places |= {name: column_of(cohort, name) for name in columns}
    slides = (
        tested.select("slide_id", "patient_id")
        .unique()
        .sort("slide_id")
        .join(cohort, on="slide_id", how="left", maintain_order="left")
    )
    about = (
        slides.group_by("patient_id")
        .agg(
            *(pl.col(place).cast(pl.String).drop_nulls().first().alias(name)
              for name, place in places.items()),
            pl.col("tissue_mm2").sum().alias(TISSUE),
        )
        .sort("patient_id")
    )  # fmt: skip
    found = {}
    for by in (*places, TISSUE):
        groups = _groups(about[by])
        if groups.n_unique() > 1:
            found[by] = dict(zip(about["patient_id"], groups, strict=True))
    return found


def column_of(cohort: pl.DataFrame, name: str) -> str:
    """Return the name that a column of the manifest has in the cohort's table.

    Raises:
        UserError: the table does not have it.
    """
    place = place_in_table(name, cohort.columns)
    if not place:
        raise UserError(
            f"`evaluation`: the cohort's table has no column {name!r}; run snakemake again."
        )
    return place


def as_numbers(values: pl.Series) -> pl.Series | None:
    """Return values as numbers, or None if one of them is not a finite number."""
    numbers = values.cast(pl.Float64, strict=False)
    finite = numbers.is_finite().fill_null(False)
    return numbers if (finite == values.is_not_null()).all() else None


def _groups(values: pl.Series) -> pl.Series:
    numbers = as_numbers(values)
    if numbers is None or (values.name != TISSUE and numbers.n_unique() <= MOST_NUMBERS):
        return values.cast(pl.String).fill_null(UNKNOWN)
    if numbers.n_unique() < 2:
        return pl.Series([UNKNOWN] * len(values))
    return _thirds(numbers)


def _thirds(numbers: pl.Series) -> pl.Series:
    """Return `1 (least)`, `2` or `3 (most)`; equal numbers are in the same third."""
    third = (3 * (numbers.rank("average") - 0.5) / numbers.count()).floor()
    names = {0: "1 (least)", 1: "2", 2: "3 (most)"}
    return pl.Series([UNKNOWN if one is None else names[int(one)] for one in third])
