"""Sheets as hospitals and data sets have them: workbooks and texts, read as text, and said how.

The manifest is read strictly (`her2.core.sheets`). What is read here was written by others and
cannot be changed: a title above the header, a sum below the rows, a code page, decimal commas. What
was found out about a sheet is said, so that a person can disagree. Workbooks are read by calamine,
through `fastexcel`: XLSX (also strict Office Open XML), XLS, XLSB and ODS.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from her2.core.errors import UserError
from her2.core.reading import path_problem
from her2.core.sheets import MAX_BYTES, rows_in_words
from her2.core.spelling import folded, nearest, printable

_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SUMS = re.compile(
    r"(grand |sub)?(total|totals|sum|summe|gesamt|insgesamt|somme|soma|totale|anzahl|count|mean|"
    r"mittelwert|durchschnitt|moyenne|media|average)\b.*"
)
"""First cells of rows that are of all rows above, in five languages."""
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_SEARCHED = 30
"""Rows among which the header is looked for."""


@dataclass(frozen=True, slots=True)
class SheetTable:
    """A sheet below its header.

    Attributes:
        path: the file.
        header: names of the columns, stripped; "" for a column without a name.
        rows: stripped cells of each row, as many as the header has.
        numbers: number of each row in the sheet, of which the first is 1.
        said: how it was read, as sentences.
    """

    path: Path
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[int, ...]
    said: tuple[str, ...]

    def find(self, *names: str) -> int | None:
        """Return the place of the first of some columns, whatever its case and spaces, or None."""
        places = {folded(name): at for at, name in reversed([*enumerate(self.header)])}
        return next((places[folded(name)] for name in names if folded(name) in places), None)

    def column(self, *names: str) -> list[str]:
        """Return the cells of a column by any of its names.

        Raises:
            UserError: there is none; with the columns that there are.
        """
        place = self.find(*names)
        if place is None:
            meant = nearest(names[0], [name for name in self.header if name])
            raise UserError(
                f"{self.path}: has no column {' or '.join(map(repr, names))}"
                f"{f' (did you mean {meant!r}?)' if meant else ''}; its columns are "
                f"{printable(', '.join(filter(None, self.header)))}."
            )
        return [row[place] for row in self.rows]

    def decimals(self, *names: str) -> list[str]:
        """Return the cells of a column with a decimal point, where they have a decimal comma."""
        cells = self.column(*names)
        return [
            cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell for cell in cells
        ]


def read_sheet_file(
    path: Path,
    *,
    wanted: Sequence[str] = (),
    sheet: str | None = None,
    header: int | None = None,
) -> SheetTable:
    """Read a sheet of a workbook, or a text with delimiters.

    Args:
        path: .xlsx, .xls, .xlsb, .ods, .csv, .tsv or .txt; its content decides, not its name.
        wanted: names of columns by which sheet, header row and delimiter are found; by the shape of
            the rows where there are none.
        sheet: name of the workbook's sheet; default: the only one with rows, or with `wanted`.
        header: number of the header's row, from 1; default: found.

    Raises:
        UserError: the file cannot be read, it is not clear which sheet is meant, or a column is
            there twice among the wanted ones.
    """
    if problem := path_problem(path):
        raise UserError(f"{path}: {problem}.")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: has more than {MAX_BYTES / 1e6:,.0f} MB, which is no sheet.")
    with path.open("rb") as stream:
        start = stream.read(4)
    if start in _WORKBOOKS:
        rows, said = _of_workbook(path, wanted, sheet, header)
    else:
        if sheet is not None:
            raise UserError(f"{path}: is a text without sheets; leave out the sheet {sheet!r}.")
        rows, said = _of_text(path, wanted)
    return _below_header(path, rows, wanted, header, said)


def _of_workbook(
    path: Path, wanted: Sequence[str], sheet: str | None, header: int | None
) -> tuple[list[list[str]], list[str]]:
    import fastexcel

    try:
        book = fastexcel.read_excel(path)
        names = [sheet] if sheet in book.sheet_names else book.sheet_names
        found = {
            name: [
                ["" if cell is None else str(cell).strip() for cell in row]
                for row in book.load_sheet(name, header_row=None, dtypes="string")
                .to_polars()
                .iter_rows()
            ]
            for name in names
        }
    except fastexcel.FastExcelError as error:
        reason = printable(str(error).splitlines()[0])
        raise UserError(f"{path}: is not a readable workbook ({reason}).") from None
    if sheet is not None and sheet not in found:
        raise UserError(
            f"{path}: has no sheet {sheet!r}; its sheets are {printable(', '.join(names))}."
        )
    filled = {name: rows for name, rows in found.items() if any(any(row) for row in rows)}
    fitting = {
        name: rows
        for name, rows in filled.items()
        if wanted and _header_row(rows, wanted, header) is not None
    }
    chosen = fitting if len(fitting) == 1 else filled
    if not chosen:
        raise UserError(f"{path}: has no cell with a value.")
    if len(chosen) > 1:
        raise UserError(
            f"{path}: has {len(chosen)} sheets with rows ({printable(', '.join(chosen))}); say "
            "with --sheet which one is meant."
        )
    name, rows = next(iter(chosen.items()))
    said = [f"sheet {name!r} of {len(found)}"] if len(found) > 1 else []
    return rows, said


def _of_text(path: Path, wanted: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    content = path.read_bytes()
    encoding = _encoding(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no text in {encoding} ({error.reason}).") from None
    parsed = {delimiter: _parsed(text, delimiter) for delimiter in _DELIMITERS}

    def fit(delimiter: str) -> tuple[int, int]:
        rows = parsed[delimiter][:_SEARCHED]
        names = max((len(_known(row, wanted)) for row in rows), default=0)
        widths = [len(row) for row in rows if any(row)]
        return names, max((widths.count(n) * (n > 1) for n in set(widths)), default=0)

    chosen = max(_DELIMITERS, key=fit)  # the first of equals
    said = []
    if encoding not in ("utf-8", "utf-8-sig"):
        said.append(f"read as {encoding}")
    if chosen != ",":
        said.append(f"{_DELIMITERS[chosen]} between cells")
    return parsed[chosen], said


def _encoding(content: bytes) -> str:
    """Return UTF-8 or UTF-16 where the bytes are that, else the code page of western Windows."""
    for mark, name in _MARKS.items():
        if content.startswith(mark):
            return name
    if content[:400].count(0) * 3 > len(content[:400]):
        return "utf-16-le" if content[1:2] == b"\0" else "utf-16-be"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


def _parsed(text: str, delimiter: str) -> list[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return [[cell.strip() for cell in row] for row in reader]
    except csv.Error:  # a quote that never ends is no sign of this delimiter
        return []


def _below_header(
    path: Path,
    rows: list[list[str]],
    wanted: Sequence[str],
    header: int | None,
    said: list[str],
) -> SheetTable:
    at = _header_row(rows, wanted, header)
    if at is None:
        columns = ", ".join(map(repr, wanted))
        raise UserError(
            f"{path}: no row has the column{'s' * (len(wanted) > 1)} {columns}; say with --header "
            "which row has the names of the columns."
        )
    names = tuple(rows[at])
    while names and not names[-1]:
        names = names[:-1]
    if at:
        said.append(f"the header is row {at + 1}; what is above it was left out")
    for name in wanted:
        if [folded(one) for one in names].count(folded(name)) > 1:
            raise UserError(f"{path}: column {name!r} is there twice; rename one of them.")
    kept, numbers, sums = [], [], []
    for number, row in enumerate(rows[at + 1 :], start=at + 2):
        cells = tuple((row + [""] * len(names))[: len(names)])
        if not any(cells):
            continue
        if _SUMS.fullmatch(folded(next(filter(None, cells)))):
            sums.append(number)
            continue
        kept.append(cells)
        numbers.append(number)
    if sums:
        said.append(f"{rows_in_words(sums)}: left out, as sums of others")
    commas = sorted(set(_with_decimal_commas(names, kept)))
    if commas:
        said.append(f"decimal commas in {', '.join(map(repr, commas))}")
    if not kept:
        raise UserError(f"{path}: has no row below the header (row {at + 1}).")
    return SheetTable(path, names, tuple(kept), tuple(numbers), tuple(said))


def _header_row(
    rows: Sequence[Sequence[str]], wanted: Sequence[str], header: int | None
) -> int | None:
    """Return the place of the header: as given, with all wanted names, or by the shape of rows."""
    if header is not None:
        return header - 1 if 0 < header <= len(rows) else None
    first = rows[:_SEARCHED]
    if wanted:
        return next((at for at, row in enumerate(first) if len(_known(row, wanted)) == len(wanted)),
                    None)  # fmt: skip
    filled = [sum(map(bool, row)) for row in first]
    most = max(filled, default=0)
    # The first row that is about as wide as the widest: a title fills one cell.
    return next((at for at, count in enumerate(filled) if count and count >= 0.6 * most), None)


def _known(row: Sequence[str], wanted: Sequence[str]) -> set[str]:
    return {folded(name) for name in wanted} & {folded(cell) for cell in row}


def _with_decimal_commas(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for at, name in enumerate(names):
        if any(_DECIMAL_COMMA.fullmatch(row[at]) for row in rows):
            yield name
