"""Texts with delimiters, in the encodings in which spreadsheets and hospitals save them."""

import codecs
import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from her2.core.errors import UserError
from her2.importing.cells import Cells, of_text
from her2.importing.header import SEARCHED, known_names

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def read_text(path: Path, wanted: Sequence[str]) -> tuple[Cells, list[str]]:
    """Return the cells of a text, and how it was read, as sentences.

    Args:
        path: the file.
        wanted: names of columns by which the delimiter is found, or by equal rows.

    Raises:
        UserError: it is no text, or is in two encodings.
    """
    content = path.read_bytes()
    encoding = _encoding(content)
    if encoding == "cp1252" and (row := _mixed(content)):
        raise UserError(
            f"{path}: is UTF-8, but for row {row} and maybe others, which were written in another "
            "encoding; correct them, and save the file as UTF-8."
        )
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no text in {encoding} ({error.reason}).") from None
    if "\0" in text:
        raise UserError(f"{path}: has null characters, as no text has; save it as XLSX or CSV.")
    parsed = {delimiter: _parsed(text, delimiter) for delimiter in _DELIMITERS}

    def fit(delimiter: str) -> tuple[int, int]:
        rows = parsed[delimiter][0][:SEARCHED]
        names = max((len(known_names(row, wanted)) for row in rows), default=0)
        widths = [len(row) for row in rows if any(row)]
        return names, max((widths.count(n) * (n > 1) for n in set(widths)), default=0)

    chosen = max(_DELIMITERS, key=fit)  # the first of equals
    said = []
    if encoding not in ("utf-8", "utf-8-sig"):
        said.append(f"read as {encoding}")
    if chosen != ",":
        said.append(f"{_DELIMITERS[chosen]} between cells")
    rows, quoted = parsed[chosen]
    if not quoted:
        said.append("quotes were read as letters, since they do not come in pairs")
    return of_text(rows), said


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


def _mixed(content: bytes) -> int | None:
    """Return the first row that is no UTF-8 where most of what is beyond ASCII is, else None."""
    text = content.decode("utf-8", errors="surrogateescape")
    others = [one for one in text if not one.isascii()]
    odd = sum("\udc80" <= one <= "\udcff" for one in others)
    if odd * 2 > len(others):
        return None
    return next(
        number
        for number, line in enumerate(text.splitlines(), start=1)
        if any("\udc80" <= one <= "\udcff" for one in line)
    )


def _parsed(text: str, delimiter: str) -> tuple[list[list[str]], bool]:
    """Return the rows, and whether quotes enclose cells.

    Elsewhere a quote is a letter: otherwise one that is never closed would swallow all rows below.
    """
    lines = io.StringIO(text, newline="")
    try:
        return _stripped(csv.reader(lines, delimiter=delimiter, strict=True)), True
    except csv.Error:
        lines.seek(0)
    try:
        return _stripped(csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)), False
    except csv.Error:  # a cell of 128 kB is no sign of this delimiter
        return [], True


def _stripped(rows: Iterable[list[str]]) -> list[list[str]]:
    return [[cell.strip() for cell in row] for row in rows]
