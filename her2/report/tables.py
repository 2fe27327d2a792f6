"""Stage 2, report: a plain table of the page, as data; one macro lays all of them out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from her2.report.format import interval, number


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure: `0.617`, `[0.529, 0.704]`, and what has to be said beside it."""

    value: str
    interval: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table: the first cell of a row is its head; titles that begin with # stand over numbers."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


Row = Sequence[Cell | str]


def sheet(caption: str, columns: Iterable[str], rows: Iterable[Row], note: str = "") -> Sheet:
    """A table of cells; plain text is a cell without interval and note."""
    cells = tuple(
        tuple(Cell(item) if isinstance(item, str) else item for item in row) for row in rows
    )
    return Sheet(caption, tuple(columns), cells, note)


def figure_cell(
    record: Mapping[str, Any] | None, *, digits: int = 3, sign: str = "", name: str = "value"
) -> Cell:
    """The cell of a record with `value` (or another name), `low`, `high` and `note`."""
    if record is None:
        return Cell("NA", note="not evaluated")
    ends = interval(record.get("low"), record.get("high"), digits)
    return Cell(number(record[name], digits, sign=sign), ends, record.get("note") or "")
