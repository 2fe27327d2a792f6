"""The columns of the manifest: legal values of a cell, and the jobs that depend on it.

A column is declared once, in `COLUMNS`. The manifest's reader, the plan (which jobs run again when
a cell changes), the cohort's table and the controls take it from there. Label columns are not
declared, because the config's tasks name them.

Every Snakemake job imports this module when it parses the workflow, so it imports nothing heavy.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from her2.config import NAME_PATTERN
from her2.core.paths import user_path
from her2.core.spelling import has_controls, is_dash, is_missing, is_unknown
from her2.core.types import MPP_RANGE

Value = str | float | None
Job = Literal["tile", "embed", "take", "audit", "cohort", "folds"]
"""Jobs whose specs digest rows of the manifest. `cohort` writes the table of all slides for the
controls and the report."""

FURTHER = "column_"
"""Prefix, in the cohort's table, of columns that are not declared here but named in the config."""
MAX_ID_LENGTH = 128
"""Ids become file names, which most file systems limit to 255 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of the manifest.

    Attributes:
        name: name in the header.
        parse: stripped cell -> value, or None for a missing value. Raises a ValueError that says
            what is wrong and what is legal.
        read_by: jobs that depend on the column.
        required: True if every manifest must have the column.
        in_table: True if the column is in the cohort's table (`cohort/slides.parquet`).
        covariate: set if the controls predict the labels from it (and the other covariates). It
            must be in the table, and for "number", `parse` must return numbers.
        subgroup: True if metrics are also given for the patients of each of its values.
        label: name in the report.
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
        """Refuse a declaration that the controls cannot use."""
        if (self.covariate or self.subgroup) and not (self.in_table and self.label):
            raise ValueError(f"column {self.name!r}: controls need `in_table` and a `label`")
        if self.in_table and "cohort" not in self.read_by:
            raise ValueError(
                f"column {self.name!r}: `in_table` needs the job `cohort` in `read_by`"
            )
        if self.subgroup and self.covariate == "number":
            raise ValueError(f"column {self.name!r}: a number cannot be a `subgroup`")


def text(cell: str) -> str | None:
    """Parse any text."""
    return None if is_missing(cell) else cell


def label(cell: str) -> str | None:
    """Parse a label. A dash is kept, as a task may have it for negative; else no class has it."""
    return None if is_unknown(cell) and not is_dash(cell) else cell


def number(cell: str) -> float | None:
    """Parse a finite number."""
    if is_unknown(cell):
        return None
    value = _float(cell)
    if not math.isfinite(value):
        raise ValueError(
            f"{cell!r} is not a number{_advice(cell)}; leave the cell empty if it is unknown"
        )
    return value


def identifier(cell: str) -> str:
    """Parse an id, which becomes part of file names."""
    if is_unknown(cell):
        raise ValueError(f"{_shown(cell)}; enter an id, or leave the row out")
    if not re.fullmatch(NAME_PATTERN, cell) or len(cell) > MAX_ID_LENGTH:
        raise ValueError(
            f"{cell!r} is not a legal id; use at most {MAX_ID_LENGTH} letters, digits, '.', '_' "
            f"and '-', beginning with a letter or digit{_strange(cell)}"
        )
    return cell


def if_given(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """Return a parser of the same cells for which a missing value is None instead of an error."""
    return lambda cell: None if is_unknown(cell) else parse(cell)


def slide_file(cell: str) -> str:
    """Parse the path of a slide, which is required. The cell is kept as it is written."""
    if is_unknown(cell):
        raise ValueError(
            f"{_shown(cell)}; enter the path of the slide's file, or leave the row out"
        )
    if not has_controls(cell):  # the sheet's own check names those
        user_path(cell)
    return cell


def slide_file_if_any(cell: str) -> str:
    """Parse the path of a slide that may be absent: then it is empty."""
    return "" if is_unknown(cell) else slide_file(cell)


def further_file(cell: str) -> str | None:
    """Parse the path of a file that a slide may have. The cell is kept as it is written."""
    if is_unknown(cell):
        return None
    user_path(cell)
    return cell


def scale(cell: str) -> float | None:
    """Parse a um/px. NaN is an error here, as it comes from a wrong computation."""
    if is_unknown(cell) and cell.lower() != "nan":
        return None
    mpp = _float(cell)
    low, high = MPP_RANGE
    if not low <= mpp <= high:
        raise ValueError(
            f"{cell!r} is not a um/px between {low} and {high}{_advice(cell)}; leave the cell "
            "empty to use the file's own"
        )
    return mpp


def _float(cell: str) -> float:
    """Return the number that a cell has in plain digits, NaN if it has none."""
    try:
        # Python also reads 0_25 and the digits of other scripts.
        return float(cell) if cell.isascii() and "_" not in cell else math.nan
    except ValueError:
        return math.nan


def _advice(cell: str) -> str:
    return " (write a decimal point)" if re.fullmatch(r"-?\d+,\d+", cell) else ""


def _shown(cell: str) -> str:
    return f"{cell!r} means a missing value" if cell else "is empty"


def _strange(cell: str) -> str:
    """Name the first character of an id that cannot be typed, or what a spreadsheet did to it."""
    if re.fullmatch(r"\d([.,]\d+)?[eE]\+\d+", cell):
        return "; a spreadsheet has shortened it, so format the column as text and enter it again"
    strange = next((one for one in cell if not one.isascii()), "")
    name = unicodedata.name(strange, "") if strange else ""
    return f" ({strange!a} is {name.lower()})" if name else ""


COLUMNS = (
    Column(
        name="slide_id",
        parse=identifier,
        read_by=("tile", "embed", "take", "audit", "cohort", "folds"),
        required=True,
    ),
    Column(
        name="path", parse=slide_file, read_by=("tile", "embed", "take", "cohort"), required=True
    ),
    Column(
        name="patient_id", parse=identifier, read_by=("audit", "cohort", "folds"), required=True
    ),
    Column(name="mpp", parse=scale, read_by=("tile", "embed", "take", "cohort")),
    # The folds also read the site or the split, depending on the config: `Plan.folds_spec`.
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
    Column(name="annotation", parse=further_file, read_by=("tile", "cohort"), in_table=True),
    Column(name="mask", parse=further_file, read_by=("tile", "cohort"), in_table=True),
)
"""The columns, in the order of the cohort's table."""


def required_columns() -> tuple[str, ...]:
    """Return the names of the columns that every manifest must have."""
    return tuple(column.name for column in COLUMNS if column.required)


def columns_read_by(job: Job) -> tuple[str, ...]:
    """Return the names of the columns that a job depends on."""
    return tuple(column.name for column in COLUMNS if job in column.read_by)


def covariates(kind: Literal["number", "category"]) -> dict[str, str]:
    """Return name -> label of the columns that are covariates of a kind."""
    return {column.name: column.label for column in COLUMNS if column.covariate == kind}


def further_columns(named: Iterable[str], labels: Collection[str]) -> tuple[str, ...]:
    """Return those of the config's columns that the cohort's table does not have anyway."""
    present = {column.name for column in COLUMNS if column.in_table} | set(labels)
    return tuple(sorted({*named} - present))


def place_in_table(name: str, table: Collection[str]) -> str:
    """Return the name that a column of the manifest has in the cohort's table, "" if it has none.

    A column that only the config names has a prefix there, because its name may be that of a
    property of slides.
    """
    found = (f"{FURTHER}{name}", f"label_{name}", name)
    return next((one for one in found if one in table), "")


def subgroups() -> dict[str, str]:
    """Return name -> label of the columns whose values define subgroups."""
    return {column.name: column.label for column in COLUMNS if column.subgroup}
