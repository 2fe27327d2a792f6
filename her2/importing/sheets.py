"""Sheets as hospitals and data sets have them: workbooks and texts, read as text, and said how.

The manifest is read strictly (`her2.core.sheets`). What is read here was written by others and
cannot be changed: a title above the header, a sum below the rows, a code page, decimal commas. What
was found out about a sheet is said, so that a person can disagree.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from her2.core.errors import UserError
from her2.core.reading import path_problem
from her2.core.sheets import MAX_BYTES, rows_in_words
from her2.core.spelling import folded, printable
from her2.importing.cells import Cells, read_workbook
from her2.importing.delimited import read_text
from her2.importing.header import SEARCHED, header_row, known_names, listed, meant, no_header

_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
_SUMS = re.compile(
    r"(grand |sub-?)?(total|totals|sum|summe|gesamt|insgesamt|somme|soma|totale|anzahl|count|mean|"
    r"mittelwert|durchschnitt|moyenne|media|average)(?:[\s:=(].*)?"
)
"""First cells of rows about all rows above, in five languages. An id such as `sum-3` is none."""
_FOREIGN = {b"%PDF": "a PDF", b"\x1f\x8b": "compressed by gzip", b"PAR1": "a Parquet"}
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_ROUNDED = "numbers of so many digits that a spreadsheet has rounded them (it keeps 15)"


@dataclass(frozen=True, slots=True)
class SheetTable:
    """A sheet below its header.

    Attributes:
        path: the file.
        header: names of the columns, stripped; "" for a column without a name.
        rows: stripped cells of each row, as many as the header has.
        numbers: number of each row in the sheet, of which the first is 1.
        said: how it was read, as sentences.
        rounded: place of a column -> numbers of the rows in which a spreadsheet has rounded a long
            whole number.
    """

    path: Path
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[int, ...]
    said: tuple[str, ...]
    rounded: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def find(self, *names: str) -> int | None:
        """Return the place of the first of some columns, whatever its case and spaces, or None.

        Raises:
            UserError: the column is there twice.
        """
        header = [folded(name) for name in self.header]
        name = next((name for name in map(folded, names) if name in header), None)
        if name is None:
            return None
        if header.count(name) > 1:
            raise UserError(f"{self.path}: column {name!r} is there twice; rename one of them.")
        return header.index(name)

    def column(self, *names: str) -> list[str]:
        """Return the cells of a column by any of its names.

        Raises:
            UserError: there is none, or there are two; with the columns that there are.
        """
        place = self.find(*names)
        if place is None:
            raise UserError(
                f"{self.path}: has no column {' or '.join(map(repr, names))}"
                f"{meant(names[0], self.header)}; its columns are {listed(self.header)}."
            )
        return [row[place] for row in self.rows]

    def identifiers(self, *names: str) -> list[str]:
        """Return the cells of a column by any of its names, where they tell cases apart.

        Raises:
            UserError: as `column`, or a spreadsheet has rounded some of them.
        """
        cells = self.column(*names)
        place = self.find(*names)
        if place is not None and (numbers := self.rounded.get(place)):
            shown = cells[self.numbers.index(numbers[0])]
            raise UserError(
                f"{self.path}: {rows_in_words(numbers)}, {self.header[place]!r}, such as "
                f"{printable(shown)}: {_ROUNDED}, so it is not clear whose they are. Export the "
                "column as text from where it comes from."
            )
        return cells

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
    choosable: bool = False,
) -> SheetTable:
    """Read a sheet of a workbook, or a text with delimiters.

    Args:
        path: .xlsx, .xls, .xlsb, .ods, .csv, .tsv or .txt; its content decides, not its name.
        wanted: names of columns by which sheet, header row and delimiter are found; by the shape of
            the rows where there are none.
        sheet: name of the workbook's sheet; default: the only one with rows, or with `wanted`.
        header: number of the header's row, from 1; default: found.
        choosable: errors offer `--sheet` and `--header`, which the command has.

    Raises:
        UserError: the file cannot be read, it is not clear which sheet is meant, a wanted column is
            absent or there twice, or a row of a text has more cells than the header.
    """
    if problem := path_problem(path):
        raise UserError(f"{path}: {problem}.")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: has more than {MAX_BYTES / 1e6:,.0f} MB, which is no sheet.")
    with path.open("rb") as stream:
        start = stream.read(4)
    if start in _WORKBOOKS:
        cells, said = _of_workbook(path, wanted, sheet, header, choosable=choosable)
    else:
        if sheet is not None:
            raise UserError(f"{path}: is a text without sheets; leave out the sheet {sheet!r}.")
        if start in _FOREIGN or start[:2] in _FOREIGN:
            what = _FOREIGN.get(start) or _FOREIGN[start[:2]]
            raise UserError(f"{path}: is {what}, no sheet; save it as XLSX or CSV.")
        cells, said = read_text(path, wanted)
    return _below_header(path, cells, wanted, header, said, choosable=choosable)


def _of_workbook(
    path: Path,
    wanted: Sequence[str],
    sheet: str | None,
    header: int | None,
    *,
    choosable: bool,
) -> tuple[Cells, list[str]]:
    found, names = read_workbook(path, sheet)
    if sheet is not None and sheet not in found:
        raise UserError(f"{path}: has no sheet {sheet!r}; its sheets are {listed(names)}.")
    filled = {name: one for name, one in found.items() if any(map(any, one.rows))}
    fitting = {
        name: one
        for name, one in filled.items()
        if wanted and header_row(one.rows, wanted, header) is not None
    }
    chosen = fitting or _likest(filled, wanted)
    if not chosen:
        raise UserError(f"{path}: has no cell with a value.")
    if len(chosen) > 1:
        what = "with these columns" if fitting else "with rows"
        say = "say with --sheet which one is meant, or " if choosable else ""
        raise UserError(
            f"{path}: has {len(chosen)} sheets {what} ({listed(chosen)}); {say}delete the others "
            "in a copy of the file."
        )
    name, one = next(iter(chosen.items()))
    said = [f"sheet {name!r} of {len(found)}"] if len(found) > 1 else []
    return one, said


def _likest(sheets: dict[str, Cells], wanted: Sequence[str]) -> dict[str, Cells]:
    """Return the sheets with the most of the wanted columns, so that the others can be named."""
    known = {
        name: max((len(known_names(row, wanted)) for row in one.rows[:SEARCHED]), default=0)
        for name, one in sheets.items()
    }
    return {name: sheets[name] for name in sheets if known[name] == max(known.values())}


def _below_header(
    path: Path,
    cells: Cells,
    wanted: Sequence[str],
    header: int | None,
    said: list[str],
    *,
    choosable: bool,
) -> SheetTable:
    rows = cells.rows
    at = header_row(rows, wanted, header)
    if at is None:
        raise UserError(f"{path}: {no_header(rows, wanted, header, choosable=choosable)}.")
    names = tuple(rows[at])
    while names and not names[-1]:
        names = names[:-1]
    if at:
        said.append(f"the header is row {at + 1}; what is above it was left out")
    for name in wanted:
        if [folded(one) for one in names].count(folded(name)) > 1:
            raise UserError(f"{path}: column {name!r} is there twice; rename one of them.")
    if longer := [n for n, row in enumerate(rows[at + 1 :], at + 2) if any(row[len(rows[at]) :])]:
        raise UserError(
            f"{path}: {rows_in_words(longer)}: more cells than the header has, so it is not clear "
            "which belong to which column; put cells with a delimiter in quotes."
        )
    kept, numbers, sums, headers = [], [], [], []
    for number, row in enumerate(rows[at + 1 :], start=at + 2):
        texts = tuple(([*row] + [""] * len(names))[: len(names)])
        if not any(texts):
            continue
        if _SUMS.fullmatch(folded(next(filter(None, texts)))):
            sums.append(number)
            continue
        if texts == names:
            headers.append(number)
            continue
        kept.append(texts)
        numbers.append(number)
    if sums:
        said.append(f"{rows_in_words(sums)}: left out, as sums of others")
    if headers:
        said.append(f"{rows_in_words(headers)}: left out, as the header once more")
    commas = sorted(set(_with_decimal_commas(names, kept)))
    if commas:
        said.append(f"decimal commas in {', '.join(map(repr, commas))}")
    if not kept:
        raise UserError(f"{path}: has no row below the header (row {at + 1}).")
    failed = _rows_of(cells.failed, names, numbers)
    rounded = _rows_of(cells.rounded, names, numbers)
    said += [
        f"{rows_in_words(found)}, {names[column]!r}: an error of the spreadsheet, such as #N/A; "
        "read as empty"
        for column, found in failed.items()
    ]
    said += [
        f"{rows_in_words(found)}, {names[column]!r}: {_ROUNDED}"
        for column, found in rounded.items()
    ]
    return SheetTable(path, names, tuple(kept), tuple(numbers), tuple(said), rounded)


def _rows_of(
    places: Iterable[tuple[int, int]], names: Sequence[str], numbers: Sequence[int]
) -> dict[int, list[int]]:
    """Return column -> the numbers of those of its rows that are in some places."""
    kept = {*numbers}
    found: dict[int, list[int]] = {}
    for at, column in sorted(places, key=lambda place: (place[1], place[0])):
        if column < len(names) and at + 1 in kept:
            found.setdefault(column, []).append(at + 1)
    return found


def _with_decimal_commas(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for at, name in enumerate(names):
        if any(_DECIMAL_COMMA.fullmatch(row[at]) for row in rows):
            yield name
