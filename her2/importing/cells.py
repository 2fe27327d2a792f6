"""The cells of a workbook or a text, as texts, and what a spreadsheet has spoilt in them.

Workbooks are read by calamine, through `fastexcel`: XLSX (also strict Office Open XML), XLS, XLSB
and ODS. It reads a sheet as one rectangle, so that a single cell far from the table could take all
memory; such a sheet is refused before.
"""

import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from her2.core.crashes import reading
from her2.core.errors import SlideError, UserError, first_line
from her2.core.spelling import is_failed, printable

_MIDNIGHT = re.compile(r"^(\d{4}-\d\d-\d\d)[ T]00:00:00(?:\.0+)?Z?$")
_LONG = re.compile(r"\d{16,}(?:\.0+)?")
_POWER = re.compile(r"\d(?:[.,]\d+)?E\+(?:1[1-9]|[2-9]\d)", re.IGNORECASE)
"""How a spreadsheet shows a number of 12 digits and more, and saves it in a text."""
_KEPT_DIGITS = 15
_PLACE = re.compile(rb'[\s"]r="([A-Z]{1,3})(\d{1,7})"')
_FAR = re.compile(rb'[\s"]r="(?:[A-Z]{3}\d+|[A-Z]{1,3}\d{6,7})"')
_MAX_CELLS = 50_000_000
_MAX_SHEET_BYTES = 1 << 31
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of a sheet.

    Attributes:
        rows: stripped texts, "" for an empty cell.
        failed: (row, column), from 0, of cells in which the spreadsheet shows an error, such as
            #N/A; their texts are "".
        rounded: (row, column) of long whole numbers that a spreadsheet has rounded to 15 digits.
    """

    rows: Sequence[Sequence[str]]
    failed: frozenset[tuple[int, int]] = field(default=frozenset())
    rounded: frozenset[tuple[int, int]] = field(default=frozenset())


def read_workbook(path: Path, sheet: str | None) -> tuple[dict[str, Cells], list[str]]:
    """Return the cells of one sheet, or of all where none is named, and the names of all sheets.

    Where the workbook has no sheet of that name, all are returned.

    Raises:
        UserError: the workbook cannot be read.
    """
    import fastexcel

    if problem := _closed(path):
        raise UserError(f"{path}: {problem}.")
    try:
        with reading(str(path)):
            book = fastexcel.read_excel(path)
            names = [sheet] if sheet in book.sheet_names else book.sheet_names
            return {name: _of_sheet(book, name) for name in names}, list(book.sheet_names)
    except BaseException as error:
        # A damaged XLS makes the library panic, with an exception that has no public type.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, MemoryError):
            raise
        reason = error.__cause__ if isinstance(error, SlideError) and error.__cause__ else error
        raise UserError(
            f"{path}: is not a readable workbook ({printable(first_line(reason))}); open it in a "
            "spreadsheet and save it as XLSX."
        ) from None


def of_text(rows: Sequence[Sequence[str]]) -> Cells:
    """Return the cells of a text, of which a spreadsheet may have saved some as it showed them."""
    columns: dict[int, list[tuple[int, str]]] = {}
    for at, row in enumerate(rows):
        for column, cell in enumerate(row):
            if len(cell) > _KEPT_DIGITS and _LONG.fullmatch(cell):
                columns.setdefault(column, []).append((at, cell.partition(".")[0]))
    rounded = {
        (at, column)
        for column, found in columns.items()
        # What Excel has rounded ends with zeros; of other numbers, one in ten does.
        if sum(len(digits) - _KEPT_DIGITS for _, digits in found) > 1
        and not any(digits[_KEPT_DIGITS:].strip("0") for _, digits in found)
        for at, _ in found
    }
    return _without_failed(rows, frozenset(rounded) | _matching(rows, _POWER.fullmatch))


def _of_sheet(book: Any, name: str) -> Cells:
    def load(kind: str) -> Any:
        sheet = book.load_sheet(name, header_row=None, skip_rows=0, dtypes=kind)
        return sheet.to_arrow_with_errors()

    batch, errors = load("string")
    columns = [
        ["" if cell is None else _MIDNIGHT.sub(r"\1", cell.strip()) for cell in one.to_pylist()]
        for one in batch.columns
    ]
    rows = [list(row) for row in zip(*columns, strict=True)]
    failed = frozenset(one.position for one in errors.errors) if errors else frozenset()
    long = _matching(rows, _LONG.fullmatch)
    if long:
        # Read so, a number has a value, and a text of digits has none.
        numbers = [one.to_pylist() for one in load("boolean")[0].columns]
        long = frozenset((at, column) for at, column in long if numbers[column][at] is not None)
    found = _without_failed(rows, long)
    return Cells(found.rows, failed | found.failed, found.rounded)


def _matching(
    rows: Sequence[Sequence[str]], matches: Callable[[str], object]
) -> frozenset[tuple[int, int]]:
    return frozenset(
        (at, column) for at, row in enumerate(rows) for column, cell in enumerate(row)
        if cell[:1].isdigit() and len(cell) > 4 and matches(cell)
    )  # fmt: skip


def _without_failed(rows: Sequence[Sequence[str]], rounded: frozenset[tuple[int, int]]) -> Cells:
    failed = frozenset(
        (at, column) for at, row in enumerate(rows) for column, cell in enumerate(row)
        if cell[:1] in ("#", "E") and is_failed(cell)
    )  # fmt: skip
    if not failed:
        return Cells(rows, failed, rounded)
    plain = [
        ["" if (at, column) in failed else cell for column, cell in enumerate(row)]
        for at, row in enumerate(rows)
    ]
    return Cells(plain, failed, rounded)


def _closed(path: Path) -> str | None:
    """Return why a workbook must not be given to the library, None if it may."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as stream:
            if _ENCRYPTED in stream.read():
                return "is protected by a password; save it without one"
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                if not part.filename.lower().endswith(".xml"):
                    continue
                if part.file_size > _MAX_SHEET_BYTES:
                    return f"has {part.file_size / 1e9:,.0f} GB of cells, which is no sheet"
                if re.search(r"worksheets/[^/]+$", part.filename):
                    with archive.open(part) as stream:
                        if problem := _too_wide(stream.read()):
                            return problem
    # What zipfile raises for a zip that it cannot read: NotImplementedError is one in several parts
    # or of a later version, RuntimeError one with a password.
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError, ValueError):
        return None  # the library says what is wrong with it
    return None


def _too_wide(xml: bytes) -> str | None:
    """Return what is wrong with a sheet whose rectangle is too large for the memory."""
    if not _FAR.search(xml):
        return None
    rows, columns, last = 0, 0, ""
    for letters, digits in _places(xml):
        width = 0
        for letter in letters:
            width = 26 * width + letter - 64
        if width > columns or int(digits) > rows:
            last = f"{letters.decode()}{int(digits)}"
        rows, columns = max(rows, int(digits)), max(columns, width)
    if rows * columns <= _MAX_CELLS:
        return None
    return (
        f"has a sheet that reaches as far as the cell {last} ({rows:,} rows, {columns:,} columns); "
        "delete the cells that are far from the table, or save the table as CSV"
    )


def _places(xml: bytes) -> Iterator[tuple[bytes, bytes]]:
    return ((found[1], found[2]) for found in _PLACE.finditer(xml))
