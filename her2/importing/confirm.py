"""What the words of a hospital's sheet mean as labels: proposed here, decided by a person.

`labels.csv` has a row for each different text. The proposal stands in `her2` and `status`; a row
counts when a person has written `yes` into `confirmed`, whatever `her2` and `status` then say.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from her2.core.errors import UserError, problem_list
from her2.core.sheets import rows_in_words
from her2.core.spelling import folded, is_unknown, printable
from her2.importing.labels import her2_score, her2_status, status_of
from her2.importing.sheets import read_sheet_file

LABELS = "labels.csv"
SCORES = "her2"
"""The column whose texts may have a score; those of other label columns have only a status."""
HEADER = ("column", "value", "n", "proposed", "her2", "status", "confirmed")
_NEEDED = ("column", "value", "her2", "status", "confirmed")
_YES = frozenset(("yes", "y", "ja", "j", "oui", "o", "sim", "s", "si", "sì", "sí", "x", "true",
                  "wahr", "vrai", "verdadeiro", "ok", "1", "✓"))  # fmt: skip
_SCORE = re.compile(r"([0-3])(?:[.,]0+)?\s*\+?")
_CHANGED_BY_SPREADSHEETS = re.compile(r"[=+\-@']|\d+[-/.,:eE ]+\d")
"""Texts that a spreadsheet would take for a formula, a date or another number."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a text says: score (0, 1+, 2+, 3+) and status (negative, positive), "" for neither."""

    her2: str = ""
    status: str = ""


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What a person has said of the texts.

    Attributes:
        meanings: (column, text as `text_key` has it) -> meaning, of confirmed rows.
        waiting: the (column, text) that nobody has confirmed, with what is proposed.
        text: what `labels.csv` has to become, with rows for new texts; "" if it is complete.
        n_new: number of these rows.
        unused: texts in `labels.csv` that no slide has.
    """

    meanings: Mapping[tuple[str, str], Meaning]
    waiting: Mapping[tuple[str, str], str]
    text: str
    n_new: int
    unused: tuple[str, ...]


def text_key(text: str) -> str:
    """Return a text without case and repeated spaces: the same words have one row."""
    return folded(text)


def proposal(column: str, text: str) -> Meaning:
    """Return what a text certainly says; nothing where it is ambiguous or contradicts itself.

    A score's status is that of the guideline (`status_of`). Results of hybridisation and other
    statuses say nothing of the score.
    """
    said = her2_status(text)
    if column != SCORES:
        return Meaning(status=said)
    score = her2_score(text)
    status = status_of(score, said) if score else said
    return Meaning(score, "" if said and status != said else status)


def confirm(path: Path, texts: Mapping[str, Counter[str]], *, delimiter: str = ",") -> Confirmed:
    """Read what a person has confirmed, and propose what is new.

    Args:
        path: `labels.csv`, which need not be there yet.
        texts: label column -> its texts -> number of slides.
        delimiter: of a file that is not there yet.

    Raises:
        UserError: confirmed rows say what is no score or status, or contradict each other.
    """
    header: tuple[str, ...] = HEADER
    rows: list[Sequence[str]] = []
    decided: dict[tuple[str, str], Meaning] = {}
    open_rows: set[tuple[str, str]] = set()
    unused = []
    wanted = {
        (column, text_key(text)): (text, n)
        for column, counted in texts.items()
        for text, n in _merged(counted).items()
    }
    if path.exists():
        header, rows, numbers, delimiter = _read(path)
        problems = []
        sources: dict[tuple[str, str], int] = {}
        for number, row in zip(numbers, rows, strict=True):
            cells = dict(zip(map(folded, header), row, strict=True))
            key = (cells["column"].strip(), text_key(_unguarded(cells["value"])))
            if key not in wanted:
                unused.append(f"{key[0]} {_unguarded(cells['value'])!r}")
                continue
            if folded(cells["confirmed"]) not in _YES:
                open_rows.add(key)
                continue
            try:
                meaning = _meaning(key[0], cells)
            except ValueError as error:
                problems.append(f"row {number} ({key[0]} {printable(wanted[key][0])!r}): {error}")
                continue
            if decided.setdefault(key, meaning) != meaning:
                where = rows_in_words([sources[key], number])
                problems.append(f"{where}: say different things of {wanted[key][0]!r}")
            sources.setdefault(key, number)
        if problems:
            raise problem_list(f"{path}: {len(problems)} problem(s)", problems)
    new = [key for key in wanted if key not in decided and key not in open_rows]
    added = [_new_row(header, key[0], *wanted[key]) for key in new]
    text = _text(header, [*rows, *added], delimiter) if new else ""
    waiting = {
        (column, wanted[column, key][0]): _in_words(proposal(column, wanted[column, key][0]))
        for column, key in wanted
        if (column, key) not in decided
    }
    return Confirmed(decided, waiting, text, len(new), tuple(unused))


def delimiter_of(path: Path) -> str:
    """Return the delimiter by which this person's spreadsheet knows columns: `;`, else `,`."""
    with path.open("rb") as stream:
        start = stream.read(4096)
    is_workbook = start[:4] in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
    return ";" if not is_workbook and start.count(b";") > start.count(b",") else ","


def _merged(counted: Counter[str]) -> dict[str, int]:
    """Return the texts that differ, each as it is written most often, with their numbers."""
    groups: dict[str, Counter[str]] = {}
    for text, n in counted.items():
        groups.setdefault(text_key(text), Counter())[" ".join(text.split())] += n
    return {one.most_common(1)[0][0]: one.total() for one in groups.values()}


def _read(path: Path) -> tuple[tuple[str, ...], list[Sequence[str]], Sequence[int], str]:
    try:
        table = read_sheet_file(path, wanted=_NEEDED)
    except UserError as error:
        raise UserError(
            f"{error} If it cannot be mended, delete it, and the next run writes it anew."
        ) from None
    return table.header, list(table.rows), table.numbers, delimiter_of(path)


def _meaning(column: str, cells: Mapping[str, str]) -> Meaning:
    """Return what a person has entered.

    Raises:
        ValueError: it is no score or status.
    """
    score, status = (
        "" if is_unknown(_unguarded(cells[name])) else _unguarded(cells[name])
        for name in ("her2", "status")
    )
    found = _SCORE.fullmatch(score)
    if score and column != SCORES:
        raise ValueError(
            f"her2 is {score!r}, but {column!r} says nothing of the score; leave it empty"
        )
    if score and not found:
        raise ValueError(f"her2 is {score!r}; write 0, 1+, 2+, 3+ or nothing")
    if status and not her2_status(status):
        raise ValueError(f"status is {status!r}; write negative, positive or nothing")
    plain = "" if not found else "0" if found[1] == "0" else f"{found[1]}+"
    return Meaning(plain, her2_status(status))


def _new_row(header: Iterable[str], column: str, text: str, n: int) -> list[str]:
    proposed = proposal(column, text)
    cells = {
        "column": column,
        "value": f"'{text}" if _CHANGED_BY_SPREADSHEETS.match(text) else text,
        "n": str(n),
        "proposed": _in_words(proposed),
        "her2": proposed.her2,
        "status": proposed.status,
    }
    return [cells.get(folded(name), "") for name in header]


def _unguarded(cell: str) -> str:
    return cell.strip().removeprefix("'")


def _in_words(one: Meaning) -> str:
    return " ".join(filter(None, (one.her2, one.status)))


def _text(header: Sequence[str], rows: Iterable[Sequence[str]], delimiter: str) -> str:
    """Return a CSV with the mark by which spreadsheets know UTF-8."""
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter, lineterminator="\n").writerows([header, *rows])
    return f"\ufeff{stream.getvalue()}"
