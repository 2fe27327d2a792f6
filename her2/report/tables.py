"""Stage 2, report: plain tables of the page as data, all laid out by one macro."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from her2.report.format import interval, number


@dataclass(frozen=True, slots=True)
class TableCell:
    """One figure: `0.617`, its interval `[0.529, 0.704]`, and a note beside it."""

    value: str
    interval: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class PageTable:
    """A table whose first column holds the row heads; titles that begin with # head numbers."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    note: str = ""


TableRow = Sequence[TableCell | str]


def page_table(
    caption: str, columns: Iterable[str], rows: Iterable[TableRow], note: str = ""
) -> PageTable:
    """Return a table of cells; plain text becomes a cell without interval and note."""
    cells = tuple(
        tuple(TableCell(item) if isinstance(item, str) else item for item in row) for row in rows
    )
    return PageTable(caption, tuple(columns), cells, note)


def figure_cell(
    record: Mapping[str, Any] | None, *, digits: int = 3, sign: str = "", name: str = "value"
) -> TableCell:
    """Return the cell of a record with `value` (or another name), `low`, `high` and `note`."""
    if record is None:
        return TableCell("NA", note="not evaluated")
    ends = interval(record.get("low"), record.get("high"), digits)
    return TableCell(number(record[name], digits, sign=sign), ends, record.get("note") or "")
