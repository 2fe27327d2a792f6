"""Before every stage: `slides.csv` -> `Cohort`, validated, with all problems in one message.

Every Snakemake job imports this module when it parses the workflow, so it uses only csv and
dataclasses. pyarrow is imported only for a Parquet manifest.
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
from her2.cohort.labels import Conflict, conflicts, refusal
from her2.config import Config, PatientLabel, Task
from her2.core.errors import UserError, problem_list
from her2.core.files import digest
from her2.core.paths import path_problem, user_path

MASK_SUFFIXES = (".png", ".tif", ".tiff")
TRUTH_SUFFIXES = (*MASK_SUFFIXES, ".geojson", ".xml")


@dataclass(frozen=True, slots=True)
class SlideRow:
    """A row of the manifest; optional values are None if the cell is empty.

    The fields are the columns that code reads by name. `other` has the values of all further
    columns that `her2.cohort.columns` declares or the config names, without missing ones. `number`
    is the row in the file, where the header is row 1; it does not make two slides differ.
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
    number: int = field(default=0, compare=False)

    def value(self, column: str) -> Value:
        """Return the value of a column, apart from label columns."""
        value: Value = getattr(self, column) if column in FIELDS else self.other.get(column)
        return value


FIELDS = frozenset(one.name for one in fields(SlideRow)) - {"labels", "other", "number"}
"""The columns that `SlideRow` has as fields."""


@dataclass(frozen=True, slots=True)
class Cohort:
    """Validated slides, sorted by id, so that the order of the manifest does not matter."""

    rows: tuple[SlideRow, ...]
    root: Path

    def file(self, row: SlideRow) -> Path:
        """Return the slide's path; a relative one starts at the cohort's root."""
        return self._place(row, "path", row.path)

    def annotation_file(self, row: SlideRow) -> Path | None:
        """Return the file of regions that the slide's tiles are restricted to, or None."""
        cell = row.annotation
        return None if cell is None else self._place(row, "annotation", cell)

    def mask_file(self, row: SlideRow, tissue_masks: Path | None = None) -> Path | None:
        """Return the external tissue mask: the row's own, else that in `tissue_masks`, or None."""
        if row.mask is not None:
            return self._place(row, "mask", row.mask)
        return None if tissue_masks is None else find_mask(tissue_masks, row.slide_id)

    def _place(self, row: SlideRow, column: str, cell: str) -> Path:
        try:
            return self.root / user_path(cell)
        except ValueError as problem:  # a variable that the machine of the job lacks
            raise UserError(f"slide {row.slide_id!r}, column {column!r}: {problem}") from None

    @property
    def described(self) -> tuple[str, ...]:
        """Return the columns that the cohort's table takes from the manifest.

        A column that is not a field of `SlideRow` is included only if a slide has a value, so that
        declaring a new column does not change the table of a cohort without it.
        """
        used = {name for row in self.rows for name in row.other}
        return tuple(
            column.name
            for column in columns.COLUMNS
            if column.in_table and (column.name in FIELDS or column.name in used)
        )

    def digest(self, rows: Iterable[SlideRow], names: Iterable[str]) -> str:
        """Return the digest of some columns (declared or label columns) of some rows.

        A column that is not a field of `SlideRow` is digested with its name, and only if it has a
        value, so that a newly declared column does not change the digests of cohorts without it.
        """
        ordered = sorted(names)
        known_only = {name for row in self.rows for name in row.other}
        further = ({column.name for column in columns.COLUMNS} | known_only) - FIELDS
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

    def conflicts(self, task: Task) -> list[Conflict]:
        """Return the patients whose slides have labels of different classes of a task."""
        ordered = sorted(self.rows, key=lambda row: row.number)
        return conflicts(
            ((row.slide_id, row.patient_id, row.labels.get(task.label)) for row in ordered), task
        )

    def bucket(self, name: str) -> tuple[SlideRow, ...]:
        """Return the slides of a bucket, see `bucket_of`."""
        count = int(name.rsplit("-", 1)[1])
        return tuple(row for row in self.rows if bucket_of(row.slide_id, count) == name)

    def buckets(self, slides_per_bucket: int) -> dict[str, tuple[SlideRow, ...]]:
        """Return bucket name -> slides, without empty buckets."""
        count = bucket_count(len(self.rows), slides_per_bucket)
        found: dict[str, list[SlideRow]] = defaultdict(list)
        for row in self.rows:
            found[bucket_of(row.slide_id, count)].append(row)
        return {name: tuple(found[name]) for name in sorted(found)}


def bucket_count(n_slides: int, slides_per_bucket: int) -> int:
    """Return the power of two that gives about `slides_per_bucket` slides per bucket."""
    return 1 << max(0, math.ceil(math.log2(max(1, n_slides) / slides_per_bucket)))


def bucket_of(slide_id: str, count: int) -> str:
    """Return `INDEX-of-COUNT`, where INDEX is a hash of the id, not the position in the list."""
    index = int.from_bytes(hashlib.sha256(slide_id.encode()).digest()[:4], "big") % count
    return f"{index:04d}-of-{count:04d}"


def configured_cohort(config: Config, slides: Path, root: Path | None) -> Cohort:
    """Read and check a manifest, as `read_cohort` does, with the tasks and columns of a config."""
    return read_cohort(
        slides,
        root=root,
        tasks=config.tasks,
        patient_label=config.cohort.patient_label,
        named=config.evaluation.columns,
    )


def read_cohort(
    slides: Path,
    *,
    root: Path | None = None,
    tasks: Mapping[str, Task],
    patient_label: PatientLabel = "refuse",
    named: Mapping[str, str] | None = None,
) -> Cohort:
    """Read and check a manifest.

    Args:
        slides: .csv (UTF-8, one header row) or .parquet.
        root: folder where relative paths start; default: the manifest's folder.
        tasks: tasks whose label columns and classes the manifest must fit.
        patient_label: the config's `cohort.patient_label`.
        named: further columns to read as text -> the config's key that names each.

    Raises:
        UserError: the manifest has problems; the message lists all of them with row, column, value
            and fix. `her2.pipeline.inputs` checks that the files are there.
    """
    rows, problems = _read_rows(slides, {task.label for task in tasks.values()}, named or {})
    problems += _duplicates(rows) + _label_problems(rows, tasks)
    whole = Cohort(tuple(rows), slides.parent)
    problems += [
        f"task {name!r}, column {task.label!r}: {problem}"
        for name, task in tasks.items()
        if (problem := refusal(whole.conflicts(task), task, patient_label))
    ]
    return _cohort(slides, root, rows, problems)


def read_labels(
    slides: Path,
    *,
    root: Path | None = None,
    labels: Collection[str],
    named: Collection[str] = (),
) -> Cohort:
    """Read a manifest for a job: with some label and further columns, which are not checked.

    Raises:
        UserError: ids, paths or um/px have problems; the message lists all of them.
    """
    rows, problems = _read_rows(slides, labels, dict.fromkeys(named, "evaluation"))
    return _cohort(slides, root, rows, problems + _duplicates(rows))


def find_mask(folder: Path, slide_id: str) -> Path:
    """Return `{slide_id}.png`, `.tif` or `.tiff` in a folder; the first if none exists."""
    names = [folder / f"{slide_id}{suffix}" for suffix in MASK_SUFFIXES]
    absent = "does not exist"  # unlike Path.exists, also where a folder may not be entered
    return next((path for path in names if path_problem(path) != absent), names[0])


def _read_rows(
    slides: Path, labels: Collection[str], named: Mapping[str, str]
) -> tuple[list[SlideRow], list[str]]:
    header, records = _read_table(slides)
    required = (*columns.required_columns(), *sorted(labels))
    problems = [
        f"column {name!r} is missing; the required columns are {', '.join(required)}"
        for name in required
        if name not in header
    ]
    problems += [
        f"`{key}`: there is no column {name!r}; correct the name or add the column"
        for name, key in named.items()
        if name not in header
    ]
    problems += [
        f"`{key}`: column {name!r} tells slides or patients apart; name one whose values they share"
        for name, key in named.items()
        if name in columns.required_columns()
    ]
    if problems:
        raise problem_list(f"{slides}: found columns {', '.join(header) or '(none)'}", problems)
    if not records:
        raise UserError(f"{slides}: lists no slides. Write one row per slide below the header.")
    further = columns.further_columns(named, labels)
    rows = []
    for number, record in enumerate(records, start=2):
        row, wrong = _row(number, record, labels, further)
        problems += [f"row {number}: {problem}" for problem in wrong]
        rows.append(row)
    return rows, problems


def _cohort(slides: Path, root: Path | None, rows: list[SlideRow], problems: list[str]) -> Cohort:
    if problems:
        raise problem_list(f"{slides}: {len(problems)} problem(s)", problems)
    ordered = tuple(sorted(rows, key=lambda row: row.slide_id))
    return Cohort(rows=ordered, root=slides.parent if root is None else root)


def _read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    if problem := path_problem(path):
        raise UserError(f"{path}: {problem}. Check `cohort.slides` in the config.")
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
                        f"{path}: row {reader.line_num} has more cells than the header. Put values "
                        "with a comma in quotes."
                    )
                records.append(dict(record))
            return header, records
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}). Check `cohort.slides` in the config."
        ) from None
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise UserError(f"{path}: is not a readable table: {error}") from None


def _row(
    number: int, record: Mapping[str, str], labels: Collection[str], further: Collection[str]
) -> tuple[SlideRow, list[str]]:
    cells = {key: (value or "").strip() for key, value in record.items()}
    wrong: list[str] = []
    values: dict[str, Value] = {name: text(cells[name]) for name in further}
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
        number=number,
    ), wrong


def _duplicates(rows: list[SlideRow]) -> list[str]:
    """Find duplicate ids, ignoring case because some file systems do."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows, start=2):
        numbers[row.slide_id.lower()].append(number)
    return [
        f"rows {', '.join(map(str, found))}, column 'slide_id': "
        f"{rows[found[0] - 2].slide_id!r} is used {len(found)} times; ids must be unique "
        "(ignoring case)"
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
        problems += [
            f"row {row.number}, column {column!r}: {value!r} is in no task's classes; "
            f"use {', '.join(sorted(legal))}, or leave the cell empty if unknown"
            for row in rows
            if (value := row.labels.get(column)) is not None and value not in legal
        ]
    return problems
