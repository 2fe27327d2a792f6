"""Before every stage: `slides.csv` -> `Cohort`, validated with all problems in one message.

Read at parse time by every Snakemake job, so this module uses csv and dataclasses only; a
Parquet manifest imports pyarrow when it is met.
"""

import csv
import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from her2.config import NAME_PATTERN, Task
from her2.core.errors import UserError, problem_list
from her2.core.files import digest
from her2.core.types import MPP_RANGE

REQUIRED = ("slide_id", "path", "patient_id")
OPTIONAL = ("mpp", "site", "scanner", "split", "annotation", "mask")
MISSING = frozenset({"", "na", "n/a", "nan", "none", "null"})
"""Cells (in any case) that mean: no value."""
MAX_ID_LENGTH = 128
"""Ids become file names, which most file systems end at 255 bytes."""
MASK_SUFFIXES = (".png", ".tif", ".tiff")
TRUTH_SUFFIXES = (*MASK_SUFFIXES, ".geojson", ".xml")


@dataclass(frozen=True, slots=True)
class SlideRow:
    """One row of the manifest; optional values are None where the cell is empty."""

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

    def digest(self, rows: Iterable[SlideRow], columns: Iterable[str]) -> str:
        """Digest of some columns (fields, or label columns) of some rows."""
        names = sorted(columns)
        return digest(
            [[row.labels.get(n) if n in row.labels else getattr(row, n, None) for n in names]
             for row in rows]
        )  # fmt: skip

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
    columns, records = _read_table(slides)
    problems = [
        f"column {name!r} is missing; required are {', '.join((*REQUIRED, *sorted(labels)))}"
        for name in (*REQUIRED, *sorted(labels))
        if name not in columns
    ]
    if problems:
        raise problem_list(f"{slides}: found columns {', '.join(columns) or '(none)'}", problems)
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
            columns = list(reader.fieldnames or [])
            records = []
            for record in reader:
                if None in record:
                    raise UserError(
                        f"{path}: row {reader.line_num} has more cells than the header; quote "
                        "values that hold a comma."
                    )
                records.append(dict(record))
            return columns, records
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); see `cohort.slides`."
        ) from None
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise UserError(f"{path}: is not a readable table: {error}") from None


def _row(record: Mapping[str, str], labels: Collection[str]) -> tuple[SlideRow, list[str]]:
    cells = {key: (value or "").strip() for key, value in record.items()}
    wrong = []
    for column in ("slide_id", "patient_id"):
        if not re.fullmatch(NAME_PATTERN, cells[column]) or len(cells[column]) > MAX_ID_LENGTH:
            wrong.append(
                f"column {column!r}: {cells[column]!r} is not a legal id; use letters, digits, "
                "'.', '_' and '-', the first a letter or digit, 128 at most"
            )
    if not cells["path"]:
        wrong.append("column 'path': is empty; name the slide's file")
    mpp, problem = _mpp(cells.get("mpp", ""))
    if problem:
        wrong.append(problem)
    optional = {name: _value(cells.get(name, "")) for name in OPTIONAL if name != "mpp"}
    found = {name: cells[name] for name in labels if _value(cells[name]) is not None}
    row = SlideRow(
        slide_id=cells["slide_id"],
        path=cells["path"],
        patient_id=cells["patient_id"],
        labels=found,
        mpp=mpp,
        **optional,
    )
    return row, wrong


def _mpp(cell: str) -> tuple[float | None, str | None]:
    """NaN is not an empty cell here: somebody computed it, and it is wrong."""
    if cell.lower() in MISSING - {"nan"}:
        return None, None
    try:
        mpp = float(cell)
    except ValueError:
        mpp = math.nan
    if not MPP_RANGE[0] <= mpp <= MPP_RANGE[1]:
        low, high = MPP_RANGE
        return None, (
            f"column 'mpp': {cell!r} is not a scale in um/px between {low} and {high}; leave the "
            "cell empty to use the file's own"
        )
    return mpp, None


def _value(cell: str) -> str | None:
    return None if cell.lower() in MISSING else cell


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
