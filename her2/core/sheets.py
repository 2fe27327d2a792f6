"""Every stage: tables that people wrote (CSV or Parquet), read as text, exactly as written.

What a sheet does not say clearly is refused, with row, column and fix: a column twice, rows of
another length than the header, an encoding that has to be guessed, numbers in place of text.
Every Snakemake job reads the manifest, so this module imports nothing heavy; pyarrow is imported
for Parquet alone.
"""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from her2.core.errors import UserError
from her2.core.reading import path_problem
from her2.core.spelling import has_controls, printable

MAX_BYTES = 1 << 27
MAX_ROWS = 2_000_000
MAX_COLUMNS = 10_000

_BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # begins like that of UTF-16, so it is tried first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_FOREIGN = {
    b"PK\x03\x04": "a spreadsheet's workbook (or another ZIP)",
    b"\xd0\xcf\x11\xe0": "a workbook of an old Excel",
    b"\x1f\x8b": "compressed by gzip",
    b"%PDF": "a PDF",
}
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SAID_DELIMITER = re.compile(r'"?sep=([,;\t|])"?(?:\r\n|\r|\n)', re.IGNORECASE)
_AS_CSV = 'Save the sheet as "CSV UTF-8 (comma delimited)".'


@dataclass(frozen=True, slots=True)
class Sheet:
    """The columns of a sheet that were asked for, as stripped text.

    Attributes:
        header: names of all columns, stripped, in their order; "" for columns without a name.
        cells: name -> one cell for each row, for the columns that were asked for and are there.
        numbers: the row's number for each row; the header is row 1. Rows without any text are left
            out.
        wrong_columns: problems of the header, after which the columns cannot be read.
        wrong_rows: problems of the rows that are not in `cells`.
        remarks: how the sheet was read, where that is not obvious.
    """

    header: tuple[str, ...]
    cells: Mapping[str, list[str]]
    numbers: Sequence[int]
    wrong_columns: tuple[str, ...] = ()
    wrong_rows: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.numbers)


def read_sheet(
    path: Path, wanted: Collection[str], *, key: str, numeric: Collection[str] = ()
) -> Sheet:
    """Read a CSV (UTF-8, or another Unicode that says so; comma, semicolon or tab) or a Parquet.

    Args:
        path: the file.
        wanted: names of the columns to return.
        key: the config's key that names the file, for errors.
        numeric: those of them that may be decimal numbers in Parquet; all others are texts or
            whole numbers.

    Raises:
        UserError: the file cannot be read as a table at all. Other problems are the sheet's.
    """
    content = _content(path, key)
    if content[:4] == b"PAR1":
        return _read_parquet(path, content, wanted, numeric)
    if path.suffix.lower() == ".parquet":
        raise UserError(f"{path}: is not a readable table: it is no Parquet file.")
    text, encoding = _decoded(path, content, wanted)
    _check_size(path, max(text.count("\n"), text.count("\r")))
    return _read_csv(path, text, encoding, wanted)


def rows_in_words(numbers: Sequence[int], *, shown: int = 8) -> str:
    """Return `row 3`, or `rows 3, 4, 9` with the number of those beyond `shown`."""
    listed = ", ".join(map(str, numbers[:shown]))
    more = f" and {len(numbers) - shown} more" if len(numbers) > shown else ""
    return f"row{'s' * (len(numbers) > 1)} {listed}{more}"


def _content(path: Path, key: str) -> bytes:
    if problem := path_problem(path):
        raise UserError(f"{path}: {problem}. Check `{key}` in the config.")
    try:
        found = path.stat()
        if found.st_size > MAX_BYTES:
            raise UserError(
                f"{path}: has {found.st_size / 1e6:,.0f} MB, more than the {MAX_BYTES / 1e6:,.0f} "
                "MB of any sheet. Name a table with a row for each file, not the files."
            )
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}). Check `{key}` in the config."
        ) from None


def _decoded(path: Path, content: bytes, wanted: Collection[str]) -> tuple[str, str]:
    """Return a CSV's text and its encoding: UTF-8, or that of its byte order mark."""
    for start, kind in _FOREIGN.items():
        if content.startswith(start):
            raise UserError(f"{path}: is not a readable table: it is {kind}. {_AS_CSV}")
    mark = next((mark for mark in _BOMS if content.startswith(mark)), b"")
    encoding = _BOMS.get(mark, "utf-8")
    if encoding == "utf-8" and 0 in content:
        row = content.count(b"\n", 0, content.index(0)) + 1
        what = "UTF-16 without a byte order mark" if content.count(0) * 3 > len(content) else "data"
        raise UserError(
            f"{path}: is not a readable table: row {row} has null characters, as in {what}. "
            f"{_AS_CSV}"
        )
    try:
        text = content.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a readable table: {_undecodable(error, wanted)}") from None
    return text, encoding


def _undecodable(error: UnicodeDecodeError, wanted: Collection[str]) -> str:
    """Say where bytes are not of the encoding, and what they would be in that of old Windows.

    The delimiter is said too, as Excel in many countries saves both otherwise than expected.
    """
    content, start = error.object, error.start
    if error.encoding != "utf-8":
        return f"it is damaged {error.encoding.upper()} ({error.reason}). {_AS_CSV}"
    row = len((content[:start] + b"x").splitlines())
    left = max(content.rfind(sign, 0, start) for sign in (b"\r", b"\n", b",", b";", b"\t")) + 1
    word = content[left : start + 20].split(b"\n")[0]
    for sign in (b"\r", b",", b";", b"\t"):
        word = word.split(sign)[0]
    try:
        guess = word.decode("cp1252")
    except UnicodeDecodeError:
        return f"row {row} has bytes that are not UTF-8 ({word!r}). {_AS_CSV}"
    delimiter = _DELIMITERS[_delimiter(content.decode("latin-1"), wanted)[0]]
    return (
        f"row {row} is not in UTF-8; in Windows-1252 it would have {guess!r} (with {delimiter} "
        f"between cells), and other encodings have other letters for these bytes. {_AS_CSV} "
        f"If {guess!r} is right, `iconv -f cp1252 -t utf-8` does so too."
    )


def _read_csv(path: Path, text: str, encoding: str, wanted: Collection[str]) -> Sheet:
    delimiter, begin = _delimiter(text, wanted)
    first = 2 if begin else 1  # the header's row
    records, broken = _records(text[begin:], delimiter, first)
    header = tuple(name.strip() for name in records[0]) if records else ()
    _check_size(path, len(records), len(header))
    wrong = [broken] if broken else []
    named = max((at + 1 for at, name in enumerate(header) if name), default=0)
    kept, numbers, empty = [], [], 0
    for number, record in enumerate(records[1:], start=first + 1):
        if not named <= len(record) <= len(header):
            if any(cell.strip() for cell in record):
                wrong.append(_of_another_length(number, record, header, delimiter))
            else:
                empty += 1
        elif "".join(record).strip():
            kept.append(record)
            numbers.append(number)
        else:
            empty += 1
    cells = {
        name: [record[at].strip() for record in kept]
        for at, name in enumerate(header)
        if name in wanted
    }
    wrong += _with_control_characters(cells, numbers)
    remarks = _left_out(path, empty)
    if encoding != "utf-8" or delimiter != ",":
        remarks.append(
            f"{path}: was read as {encoding.upper()}, with {_DELIMITERS[delimiter]} between cells"
        )
    return Sheet(header, cells, numbers, _twice(header), tuple(wrong), tuple(remarks))


def _delimiter(text: str, wanted: Collection[str]) -> tuple[str, int]:
    """Return the delimiter, and where the header begins.

    It is that of Excel's line `sep=;` before the header, or the one that gives the header most of
    the wanted names, else the comma.
    """
    if said := _SAID_DELIMITER.match(text):
        return said[1], said.end()
    first = text[: text.find("\n", 1) + 1 or None]

    def names(delimiter: str) -> int:
        records, _ = _records(first, delimiter)
        return len({name.strip() for name in records[0]} & set(wanted)) if records else 0

    return max(_DELIMITERS, key=names), 0  # the first of equals


def _records(text: str, delimiter: str, first: int = 1) -> tuple[list[list[str]], str]:
    """Return the records of a CSV until one cannot be parsed, and what is wrong with that.

    `first` is the number of the first row.
    """
    found: list[list[str]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        found.extend(reader)  # keeps what came before an error
    except csv.Error as error:
        return found, (
            f"row {len(found) + first}: is not a readable table from here on "
            f"({printable(str(error))}); put cells "
            "with quotes, commas or line breaks in quotes, and double the quotes inside"
        )
    return found, ""


def _of_another_length(
    number: int, record: Sequence[str], header: Sequence[str], delimiter: str
) -> str:
    what = "more" if len(record) > len(header) else "fewer"
    fix = (
        f"put cells with {_DELIMITERS[delimiter]} in quotes"
        if what == "more"
        else "complete it; empty cells need their delimiters too"
    )
    return (
        f"row {number}: has {what} cells than the header ({len(record)} for {len(header)}); {fix}"
    )


def _twice(header: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        f"column {name!r}: is there {count} times; keep one, or rename the others"
        for name, count in Counter(header).items()
        if name and count > 1
    )


def _with_control_characters(
    cells: Mapping[str, Sequence[str]], numbers: Sequence[int]
) -> Iterator[str]:
    for name, column in cells.items():
        found: dict[str, list[int]] = {cell: [] for cell in set(column) if has_controls(cell)}
        for number, cell in zip(numbers, column, strict=True) if found else ():
            if cell in found:
                found[cell].append(number)
        for cell, rows in sorted(found.items()):
            yield (
                f"{rows_in_words(rows)}: column {name!r}: {cell!r} has a line break or another "
                "control character; remove it"
            )


def _left_out(path: Path, empty: int) -> list[str]:
    return [f"{path}: {empty} empty row{'s' * (empty > 1)} left out"] if empty else []


def _check_size(path: Path, rows: int, columns: int = 0) -> None:
    for count, most, what in ((rows, MAX_ROWS, "rows"), (columns, MAX_COLUMNS, "columns")):
        if count > most:
            raise UserError(f"{path}: has {count:,} {what}, more than the {most:,} of any sheet.")


def _read_parquet(
    path: Path, content: bytes, wanted: Collection[str], numeric: Collection[str]
) -> Sheet:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        count = file.metadata.num_rows
        names = file.schema_arrow.names
        _check_size(path, count, len(names))
        header = tuple(name.strip() for name in names)
        if wrong := _twice(header):
            return Sheet(header, {}, (), wrong)
        places = {name: at for at, name in enumerate(header) if name in wanted}
        table = file.read(columns=[names[at] for at in places.values()])
        columns = {name: table.column(names[at]) for name, at in places.items()}
        wrong = tuple(
            f"column {name!r}: {reason}"
            for name, column in columns.items()
            if (reason := _no_text(column, decimal=name in numeric))
        )
        if wrong:
            return Sheet(header, {}, (), wrong)
        cells = {
            name: ["" if value is None else str(value).strip() for value in column.to_pylist()]
            for name, column in columns.items()
        }
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        reason = next(iter(str(error).strip().splitlines()), "damaged Parquet")
        raise UserError(f"{path}: is not a readable table: {printable(reason)}") from None
    kept = [at for at, row in enumerate(zip(*cells.values(), strict=True)) if any(row)]
    empty = count - len(kept) if cells else 0
    if empty:
        cells = {name: [column[at] for at in kept] for name, column in cells.items()}
    numbers = [at + 2 for at in kept]
    wrong = tuple(_with_control_characters(cells, numbers))
    return Sheet(header, cells, numbers, (), wrong, tuple(_left_out(path, empty)))


def _no_text(column: Any, *, decimal: bool) -> str:
    """Return why a Parquet column is not read as text, and the fix; "" if it is."""
    from pyarrow import types

    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    exact = (types.is_string, types.is_large_string, types.is_string_view, types.is_integer)
    decimals = (types.is_floating, types.is_decimal, types.is_boolean)
    legal = (*exact, *decimals) if decimal else exact
    if column.null_count == len(column) or any(is_of(kind) for is_of in legal):
        return ""
    hint = " (17 would become 17.0)" if types.is_floating(kind) else ""
    return f"is of type {kind} in Parquet, not text{hint}; write it as text"
