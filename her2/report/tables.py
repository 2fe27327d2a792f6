"""Stage 2, report: a plain table of the page, as data; one macro lays all of them out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from her2.report.format import interval, number


@dataclass(frozen=True, slots=True)
class TableCell:
    """One figure: `0.617`, `[0.529, 0.704]`, and what has to be said beside it."""

    value: str
    interval: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class PageTable:
    """A table: the first cell of a row is its head; titles that begin with # stand over numbers."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    note: str = ""


TableRow = Sequence[TableCell | str]


def page_table(
    caption: str, columns: Iterable[str], rows: Iterable[TableRow], note: str = ""
) -> PageTable:
    """A table of cells; plain text is a cell without interval and note."""
    cells = tuple(
        tuple(TableCell(item) if isinstance(item, str) else item for item in row) for row in rows
    )
    return PageTable(caption, tuple(columns), cells, note)


def figure_cell(
    record: Mapping[str, Any] | None, *, digits: int = 3, sign: str = "", name: str = "value"
) -> TableCell:
    """The cell of a record with `value` (or another name), `low`, `high` and `note`."""
    if record is None:
        return TableCell("NA", note="not evaluated")
    ends = interval(record.get("low"), record.get("high"), digits)
    return TableCell(number(record[name], digits, sign=sign), ends, record.get("note") or "")
