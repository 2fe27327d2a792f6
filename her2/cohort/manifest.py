"""Before every stage: the slides of a manifest, `SlideRow` and `Cohort`, and their buckets.

`her2.cohort.reading` makes them from the file. Every Snakemake job imports this module when it
parses the workflow, so it imports nothing heavy.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from her2.cohort import columns
from her2.cohort.columns import Value
from her2.cohort.labels import Conflict, conflicts
from her2.config import Task
from her2.config.names import bucket_name
from her2.core.errors import UserError
from her2.core.files import digest
from her2.core.paths import user_path
from her2.core.reading import ABSENT, path_problem

MASK_SUFFIXES = (".png", ".tif", ".tiff")
TRUTH_SUFFIXES = (*MASK_SUFFIXES, ".geojson", ".xml")


@dataclass(frozen=True, slots=True)
class SlideRow:
    """A row of the manifest; optional values are None if the cell is empty.

    The fields are the columns that code reads by name. `path` is empty for an absent slide, of
    which there are only features (`source: features`). `other` has the values of all further
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
    """Validated slides, sorted by id, so that the order of the manifest does not matter.

    `cautions` say what in the manifest may be a mistake and stops nothing, `remarks` how it was
    read. Neither makes two cohorts differ.
    """

    rows: tuple[SlideRow, ...]
    root: Path
    cautions: tuple[str, ...] = field(default=(), compare=False)
    remarks: tuple[str, ...] = field(default=(), compare=False)

    def file(self, row: SlideRow) -> Path:
        """Return the slide's path; a relative one starts at the cohort's root.

        Raises:
            UserError: the slide is absent: its cell is empty.
        """
        if not row.path:
            raise UserError(f"slide {row.slide_id!r}, column 'path': is empty; there is no slide.")
        return self._place(row, "path", row.path)

    def present_file(self, row: SlideRow) -> Path | None:
        """Return the slide's path, or None if the slide is absent: there are only features."""
        return self.file(row) if row.path else None

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
    return bucket_name(index, count)


def buckets_of(slide_id: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return the bucket of a slide, of those with these names; none if it is in none of them."""
    return tuple(n for n in names if n == bucket_of(slide_id, int(n.rsplit("-", 1)[1])))


def find_mask(folder: Path, slide_id: str) -> Path:
    """Return `{slide_id}.png`, `.tif` or `.tiff` in a folder; the first if none exists."""
    names = [folder / f"{slide_id}{suffix}" for suffix in MASK_SUFFIXES]
    # Unlike Path.exists, this also tells where a folder may not be entered.
    return next((path for path in names if path_problem(path) != ABSENT), names[0])
