"""The columns of the manifest: what a cell may hold, and which jobs depend on it.

A column is declared once, in `COLUMNS`. The manifest's reader, the plan (which jobs run again when
a cell changes), the cohort's table and the controls take it from there. Labels are not declared:
the config's tasks name their columns.

Read at parse time by every Snakemake job, so nothing heavy is imported here.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from her2.config import NAME_PATTERN
from her2.core.types import MPP_RANGE

Value = str | float | None
Job = Literal["tile", "embed", "audit", "cohort", "folds"]
"""Jobs whose specs digest rows of the manifest. `cohort` writes the table of all slides, which the
controls and the report read."""

MISSING = frozenset({"", "na", "n/a", "nan", "none", "null"})
"""Cells (in any case) that mean: no value."""
MAX_ID_LENGTH = 128
"""Ids become file names, which most file systems end at 255 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of the manifest.

    Attributes:
        name: in the header.
        parse: cell, without spaces around it -> value, None for no value. It raises ValueError with
            what is wrong and what would be legal.
        read_by: the jobs that depend on it.
        required: the header has to hold it.
        in_table: it is a column of the cohort's table (`cohort/slides.parquet`).
        covariate: the controls predict the labels from it (and from the other covariates); it has
            to be in the table, and `parse` has to give numbers for a number.
        subgroup: figures are also given for the patients of each of its values.
        label: what the report calls it.
    """

    name: str
    parse: Callable[[str], Value]
    read_by: tuple[Job, ...]
    required: bool = False
    in_table: bool = False
    covariate: Literal["number", "category"] | None = None
    subgroup: bool = False
    label: str = ""

    def __post_init__(self) -> None:
        """Refuse a declaration that the controls could not follow."""
        if (self.covariate or self.subgroup) and not (self.in_table and self.label):
            raise ValueError(f"column {self.name!r}: controls need `in_table` and a `label`")
        if self.in_table and "cohort" not in self.read_by:
            raise ValueError(f"column {self.name!r}: is in the table, which the job `cohort` makes")
        if self.subgroup and self.covariate == "number":
            raise ValueError(f"column {self.name!r}: a number has no subgroups")


def text(cell: str) -> str | None:
    """Any text."""
    return None if cell.lower() in MISSING else cell


def number(cell: str) -> float | None:
    """A finite number."""
    if cell.lower() in MISSING:
        return None
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{cell!r} is not a number; leave the cell empty where it is not known")
    return value


def identifier(cell: str) -> str:
    """An id, which becomes the name of files."""
    if not re.fullmatch(NAME_PATTERN, cell) or len(cell) > MAX_ID_LENGTH:
        raise ValueError(
            f"{cell!r} is not a legal id; use letters, digits, '.', '_' and '-', the first a "
            f"letter or digit, {MAX_ID_LENGTH} at most"
        )
    return cell


def slide_file(cell: str) -> str:
    """The path of a slide, which every row has."""
    if not cell:
        raise ValueError("is empty; name the slide's file")
    return cell


def scale(cell: str) -> float | None:
    """um/px. NaN is not an empty cell here: somebody computed it, and it is wrong."""
    if cell.lower() in MISSING - {"nan"}:
        return None
    try:
        mpp = float(cell)
    except ValueError:
        mpp = math.nan
    low, high = MPP_RANGE
    if not low <= mpp <= high:
        raise ValueError(
            f"{cell!r} is not a scale in um/px between {low} and {high}; leave the cell empty to "
            "use the file's own"
        )
    return mpp


COLUMNS = (
    Column(
        name="slide_id",
        parse=identifier,
        read_by=("tile", "embed", "audit", "cohort", "folds"),
        required=True,
    ),
    Column(name="path", parse=slide_file, read_by=("tile", "embed", "cohort"), required=True),
    Column(
        name="patient_id", parse=identifier, read_by=("audit", "cohort", "folds"), required=True
    ),
    Column(name="mpp", parse=scale, read_by=("tile", "embed", "cohort")),
    # The folds read the site or the split too, where the config says so: `Plan.folds_spec`.
    Column(
        name="site",
        parse=text,
        read_by=("cohort",),
        in_table=True,
        covariate="category",
        subgroup=True,
        label="site",
    ),
    Column(
        name="scanner",
        parse=text,
        read_by=("cohort",),
        in_table=True,
        covariate="category",
        subgroup=True,
        label="scanner",
    ),
    Column(name="split", parse=text, read_by=("cohort",), in_table=True),
    Column(name="annotation", parse=text, read_by=("tile", "cohort"), in_table=True),
    Column(name="mask", parse=text, read_by=("tile", "cohort"), in_table=True),
)
"""In the order of the cohort's table."""


def required_columns() -> tuple[str, ...]:
    """Names that every header holds."""
    return tuple(column.name for column in COLUMNS if column.required)


def columns_read_by(job: Job) -> tuple[str, ...]:
    """Names of the columns that a job depends on."""
    return tuple(column.name for column in COLUMNS if job in column.read_by)


def covariates(kind: Literal["number", "category"]) -> dict[str, str]:
    """Name -> label of the columns that are covariates of a kind."""
    return {column.name: column.label for column in COLUMNS if column.covariate == kind}


def subgroups() -> dict[str, str]:
    """Name -> label of the columns whose values make subgroups."""
    return {column.name: column.label for column in COLUMNS if column.subgroup}
