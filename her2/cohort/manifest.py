"""Before every stage: `slides.csv` -> `Cohort`, validated with all problems in one message.

Read at parse time by every Snakemake job, so this module uses csv and dataclasses only; a
Parquet manifest imports pyarrow when it is met.
"""

import csv
import hashlib
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from her2.cohort import columns
from her2.cohort.columns import Value, text
from her2.config import Task
from her2.core.errors import UserError, problem_list
from her2.core.files import digest

MASK_SUFFIXES = (".png", ".tif", ".tiff")
TRUTH_SUFFIXES = (*MASK_SUFFIXES, ".geojson", ".xml")


@dataclass(frozen=True, slots=True)
class SlideRow:
    """One row of the manifest; optional values are None where the cell is empty.

    Fields are the columns that some code reads by name. `other` has the values of all further
    columns that `her2.cohort.columns` declares, where they have one.
    """

    slide_id: str
    path: str
    patient_id: str
    labels: Mapping[str, str]
    mpp: float | None = None
    site: str | None = None
    scanner: str | None = None
    split: str | None = None
    annotation: str | None = None
    mask: str | None = None
    other: Mapping[str, Value] = field(default_factory=dict)

    def value(self, column: str) -> Value:
        """The value of a declared column."""
        value: Value = getattr(self, column) if column in FIELDS else self.other.get(column)
        return value


FIELDS = frozenset(one.name for one in fields(SlideRow)) - {"labels", "other"}
"""The columns that `SlideRow` has as fields."""


@dataclass(frozen=True, slots=True)
class Cohort:
    """Validated slides, sorted by id (so the manifest's order changes nothing)."""

    rows: tuple[SlideRow, ...]
    root: Path

    def file(self, row: SlideRow) -> Path:
        """The slide's path: relative ones start at the cohort's root."""
        return self.root / row.path

    def annotation_file(self, row: SlideRow) -> Path | None:
        """The file of regions that the slide's tiles are restricted to."""
        return None if row.annotation is None else self.root / row.annotation

    def mask_file(self, row: SlideRow, tissue_masks: Path | None = None) -> Path | None:
        """The tissue mask from another program: the row's own, else that of `tissue_masks`."""
        if row.mask is not None:
            return self.root / row.mask
        return None if tissue_masks is None else find_mask(tissue_masks, row.slide_id)

    @property
    def described(self) -> tuple[str, ...]:
        """Columns that the cohort's table takes from the manifest.

        Those that are no field of `SlideRow` are among them where some slide has a value, so that
        declaring a column changes no table of a cohort that does not have it.
        """
        used = {name for row in self.rows for name in row.other}
        return tuple(
            column.name
            for column in columns.COLUMNS
            if column.in_table and (column.name in FIELDS or column.name in used)
        )

    def digest(self, rows: Iterable[SlideRow], names: Iterable[str]) -> str:
        """Digest of some columns (declared ones, or label columns) of some rows.

        What is no field of `SlideRow` is digested by its name, and where it has a value alone: a
        newly declared column leaves the digests of cohorts without it as they were.
        """
        ordered = sorted(names)
        further = {column.name for column in columns.COLUMNS} - FIELDS
        records: list[list[object]] = []
        for row in rows:
            record: list[object] = [
                row.labels.get(n) if n in row.labels else getattr(row, n, None)
                for n in ordered
                if n not in further
            ]
            known = {n: row.labels.get(n, row.other.get(n)) for n in ordered if n in further}
            found = {n: value for n, value in known.items() if value is not None}
            records.append([*record, found] if found else record)
        return digest(records)

    def bucket(self, name: str) -> tuple[SlideRow, ...]:
        """The slides of a bucket, see `bucket_names`."""
        count = int(name.rsplit("-", 1)[1])
        return tuple(row for row in self.rows if bucket_of(row.slide_id, count) == name)

    def buckets(self, slides_per_bucket: int) -> dict[str, tuple[SlideRow, ...]]:
        """Bucket name -> its slides; empty buckets are left out."""
        count = bucket_count(len(self.rows), slides_per_bucket)
        found: dict[str, list[SlideRow]] = defaultdict(list)
        for row in self.rows:
            found[bucket_of(row.slide_id, count)].append(row)
        return {name: tuple(found[name]) for name in sorted(found)}


def bucket_count(n_slides: int, slides_per_bucket: int) -> int:
    """The power of two that gives about `slides_per_bucket` slides a bucket."""
    return 1 << max(0, math.ceil(math.log2(max(1, n_slides) / slides_per_bucket)))


def bucket_of(slide_id: str, count: int) -> str:
    """`INDEX-of-COUNT`, from a hash of the id: never the slide's position in the list."""
    index = int.from_bytes(hashlib.sha256(slide_id.encode()).digest()[:4], "big") % count
    return f"{index:04d}-of-{count:04d}"


def read_cohort(slides: Path, *, root: Path | None = None, tasks: Mapping[str, Task]) -> Cohort:
    """Read and check a manifest.

    Args:
        slides: .csv (UTF-8, one header row) or .parquet.
        root: where relative paths start; default: the manifest's folder.
        tasks: whose label columns and classes must fit.

    Raises:
        UserError: with every problem: row, column, value and the mend. Whether the files exist
            is a separate question, see `missing_files`.
    """
    rows, problems = _read_rows(slides, {task.label for task in tasks.values()})
    problems += _duplicates(rows) + _label_problems(rows, tasks)
    return _cohort(slides, root, rows, problems)


def read_labels(slides: Path, *, root: Path | None = None, labels: Collection[str]) -> Cohort:
    """Read a manifest as a job does: with some label columns, without judging their values.

    Raises:
        UserError: with every problem of ids, paths and um/px.
    """
    rows, problems = _read_rows(slides, labels)
    return _cohort(slides, root, rows, problems + _duplicates(rows))


def find_mask(folder: Path, slide_id: str) -> Path:
    """`{slide_id}.png`, `.tif` or `.tiff` in a folder; the first where there is none."""
    names = [folder / f"{slide_id}{suffix}" for suffix in MASK_SUFFIXES]
    return next((path for path in names if path.exists()), names[0])


def missing_files(cohort: Cohort, tissue_masks: Path | None = None) -> UserError | None:
    """An error that names every slide whose file, annotation or mask is not there, or None."""
    problems, lacking = [], set()
    for row in cohort.rows:
        own = "column 'mask'" if row.mask is not None else "`cohort.tissue_masks`"
        for what, path in (
            ("column 'path'", cohort.file(row)),
            ("column 'annotation'", cohort.annotation_file(row)),
            (own, cohort.mask_file(row, tissue_masks)),
        ):
            if path is not None and not path.exists():
                problems.append(f"slide {row.slide_id!r}, {what}: {str(path)!r} does not exist")
                lacking.add(row.slide_id)
    if not problems:
        return None
    return problem_list(
        f"{len(lacking)} of {len(cohort.rows)} slides are missing a file; correct the paths, or "
        f"`cohort.root` (now {str(cohort.root)!r})",
        problems,
    )


def _read_rows(slides: Path, labels: Collection[str]) -> tuple[list[SlideRow], list[str]]:
    header, records = _read_table(slides)
    required = (*columns.required_columns(), *sorted(labels))
    problems = [
        f"column {name!r} is missing; required are {', '.join(required)}"
        for name in required
        if name not in header
    ]
    if problems:
        raise problem_list(f"{slides}: found columns {', '.join(header) or '(none)'}", problems)
    if not records:
        raise UserError(f"{slides}: lists no slide; write one row a slide below the header.")
    rows = []
    for number, record in enumerate(records, start=2):
        row, wrong = _row(record, labels)
        problems += [f"row {number}: {problem}" for problem in wrong]
        rows.append(row)
    return rows, problems


def _cohort(slides: Path, root: Path | None, rows: list[SlideRow], problems: list[str]) -> Cohort:
    if problems:
        raise problem_list(f"{slides}: {len(problems)} problem(s)", problems)
    ordered = tuple(sorted(rows, key=lambda row: row.slide_id))
    return Cohort(rows=ordered, root=slides.parent if root is None else root)


def _read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            with path.open("rb") as content:
                table = pyarrow.parquet.read_table(content)
            records = [
                {key: "" if value is None else str(value) for key, value in record.items()}
                for record in table.to_pylist()
            ]
            return list(table.column_names), records
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="", strict=True)
            header = list(reader.fieldnames or [])
            records = []
            for record in reader:
                if None in record:
                    raise UserError(
                        f"{path}: row {reader.line_num} has more cells than the header; quote "
                        "values that hold a comma."
                    )
                records.append(dict(record))
            return header, records
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); see `cohort.slides`."
        ) from None
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise UserError(f"{path}: is not a readable table: {error}") from None


def _row(record: Mapping[str, str], labels: Collection[str]) -> tuple[SlideRow, list[str]]:
    cells = {key: (value or "").strip() for key, value in record.items()}
    wrong, values = [], {}
    for column in columns.COLUMNS:
        cell = cells.get(column.name, "")
        try:
            values[column.name] = column.parse(cell)
        except ValueError as problem:
            wrong.append(f"column {column.name!r}: {problem}")
            values[column.name] = cell if column.required else None
    known: dict[str, Any] = {name: value for name, value in values.items() if name in FIELDS}
    return SlideRow(
        **known,
        labels={name: cells[name] for name in labels if text(cells[name]) is not None},
        other={
            name: value
            for name, value in values.items()
            if name not in FIELDS and value is not None
        },
    ), wrong


def _duplicates(rows: list[SlideRow]) -> list[str]:
    """Ids that differ in case only would be one file on some filesystems."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows, start=2):
        numbers[row.slide_id.lower()].append(number)
    return [
        f"rows {', '.join(map(str, found))}, column 'slide_id': "
        f"{rows[found[0] - 2].slide_id!r} is used {len(found)} times; ids must be unique "
        "(capitals do not count)"
        for found in numbers.values()
        if len(found) > 1
    ]


def _label_problems(rows: list[SlideRow], tasks: Mapping[str, Task]) -> list[str]:
    problems = []
    for column in sorted({task.label for task in tasks.values()}):
        legal = {
            value
            for task in tasks.values()
            if task.label == column
            for values in task.classes.values()
            for value in values
        }
        by_patient: dict[str, dict[str, int]] = defaultdict(dict)
        for number, row in enumerate(rows, start=2):
            value = row.labels.get(column)
            if value is None:
                continue
            by_patient[row.patient_id].setdefault(value, number)
            if value not in legal:
                problems.append(
                    f"row {number}, column {column!r}: {value!r} is in no task's classes; legal: "
                    f"{', '.join(sorted(legal))}, or empty for unknown"
                )
        problems += [
            f"patient {patient!r}, column {column!r}: has "
            + " and ".join(f"{value!r} (row {number})" for value, number in found.items())
            + "; a patient has one label, or give the lesions ids of their own"
            for patient, found in by_patient.items()
            if len(found) > 1
        ]
    return problems
