"""Rows of a hospital's sheet -> what the sheet says of each case, with its contradictions named."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from her2.cohort.columns import COLUMNS, scale
from her2.config import NAME_PATTERN
from her2.core.errors import problem_list
from her2.core.sheets import rows_in_words
from her2.core.spelling import folded, is_missing, is_unknown, nearest, printable
from her2.importing.confirm import Meaning, text_key
from her2.importing.found import LeftOut
from her2.importing.matching import SLIDE_SUFFIXES
from her2.importing.sheets import SheetTable

LABEL_COLUMNS = ("her2", "her2_status", "fish")
_COLUMNS = ("patient", "slide", *LABEL_COLUMNS, "site", "scanner", "split", "mpp")
_KNOWN = ("patient", *LABEL_COLUMNS)
"""Columns whose cells may say in words that nothing is known."""
_INSTEAD = {"patient_id": "patient", "slide_id": "slide", "path": "slide", "case": "slide"}


@dataclass(frozen=True, slots=True)
class Case:
    """All rows of the sheet with one name.

    Attributes:
        name: what files are called after: the cell of the column `slide`, else of `patient`.
        rows: numbers of its rows.
        texts: column of the manifest -> its different texts, without missing ones.
    """

    name: str
    rows: tuple[int, ...]
    texts: Mapping[str, tuple[str, ...]]

    @property
    def patient(self) -> str:
        """The patient of a case that has exactly one."""
        (found,) = self.texts["patient"]
        return found

    def __str__(self) -> str:
        """Return the name and the rows, for people."""
        return f"{printable(self.name)!r} ({rows_in_words(self.rows)})"


def parse_columns(given: Iterable[str]) -> dict[str, str]:
    """Return column of the manifest -> column of the sheet, of `NAME=COLUMN`.

    Raises:
        UserError: it is not of this form, or the name is there twice or cannot be used.
    """
    found: dict[str, str] = {}
    problems = []
    taken = {column.name for column in COLUMNS} - set(_COLUMNS)
    for one in given:
        name, equals, column = (part.strip() for part in one.partition("="))
        meant = _INSTEAD.get(name) or nearest(name, _COLUMNS)
        if not equals or not name or not column:
            problems.append(f"{one!r}: write NAME=COLUMN, such as her2='Statut HER2'")
        elif name in found:
            problems.append(f"{one!r}: {name!r} is there twice")
        elif name in _INSTEAD:
            problems.append(f"{one!r}: write {meant}={column!r}")
        elif name in taken or not re.fullmatch(NAME_PATTERN, name):
            hint = f" (did you mean {meant!r}?)" if meant else ""
            problems.append(f"{one!r}: {name!r} cannot be the name of a further column{hint}")
        elif name not in _COLUMNS and meant:
            problems.append(f"{one!r}: did you mean {meant!r}?")
        else:
            found[name] = column
    if problems:
        raise problem_list("--column: names columns of the sheet", problems)
    return found


def read_cases(table: SheetTable, columns: Mapping[str, str]) -> tuple[list[Case], list[LeftOut]]:
    """Return the cases in the order of the sheet, and the rows that name none.

    Raises:
        UserError: a column is not there, ids were rounded, or a um/px is no number.
    """
    key = "slide" if "slide" in columns else "patient"
    cells = {
        name: table.identifiers(column)
        if name in ("patient", "slide")
        else table.column(column)
        if name in LABEL_COLUMNS
        else table.decimals(column)
        for name, column in columns.items()
    }
    _check_scales(table, cells.get("mpp", ()), columns)
    groups: dict[str, list[int]] = defaultdict(list)
    left_out = []
    for at, cell in enumerate(cells[key]):
        if name := "" if is_unknown(cell) else _name(cell):
            groups[name].append(at)
        else:
            left_out.append(
                LeftOut(
                    f"row {table.numbers[at]}",
                    f"{columns[key]!r} is empty; in a sheet with merged cells, fill them in",
                )
            )
    cases = [
        Case(
            name,
            tuple(table.numbers[at] for at in places),
            {
                column: _different((texts[at] for at in places), known=column in _KNOWN)
                for column, texts in cells.items()
            },
        )
        for name, places in groups.items()
    ]
    return cases, left_out


def labels_of(
    case: Case, meanings: Mapping[tuple[str, str], Meaning]
) -> tuple[dict[str, str], list[str]]:
    """Return label column -> value of a case, "" where it has none, and its contradictions.

    The status is what all of its confirmed texts agree on. Where texts contradict each other, the
    label stays empty.
    """
    said = {
        column: [meanings[column, text_key(text)] for text in case.texts[column]]
        for column in LABEL_COLUMNS
        if column in case.texts
    }
    scores = _filled(one.her2 for one in said.get("her2", ()))
    statuses = _filled(one.status for found in said.values() for one in found)
    conflicts = []
    if len(scores) > 1:
        statuses = ()  # nobody knows which score it belongs to
        conflicts = [f"{case}: her2 {' and '.join(scores)} ({_quoted(case)}); left without labels"]
    elif len(statuses) > 1:
        conflicts = [f"{case}: negative and positive ({_quoted(case)}); left without her2_status"]
    labels = {"her2": scores, "her2_status": statuses}
    if "fish" in said:
        labels["fish"] = _filled(one.status for one in said["fish"])
    if "her2" not in said:
        del labels["her2"]
    return {name: found[0] if len(found) == 1 else "" for name, found in labels.items()}, conflicts


def single_values(case: Case, columns: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Return the value of other columns, "" where there is none, and the contradictions."""
    found = {name: case.texts[name] for name in columns if name in case.texts}
    return {name: texts[0] if len(texts) == 1 else "" for name, texts in found.items()}, [
        f"{case}: {name} {' and '.join(map(repr, texts))}; left empty"
        for name, texts in found.items()
        if len(texts) > 1
    ]


def _check_scales(table: SheetTable, cells: Sequence[str], columns: Mapping[str, str]) -> None:
    problems = []
    for number, cell in zip(table.numbers, cells, strict=False):
        try:
            scale(cell)
        except ValueError as error:
            problems.append(f"row {number}: {columns['mpp']!r} {error}")
    if problems:
        raise problem_list(f"{table.path}: {len(problems)} problem(s)", problems)


def _name(cell: str) -> str:
    """Return a cell in one Unicode form, without the folder and suffix that a file's name has."""
    text = " ".join(unicodedata.normalize("NFC", cell).split())
    stem, dot, suffix = text.rpartition(".")
    if stem and f"{dot}{suffix}".lower() in SLIDE_SUFFIXES:
        return re.split(r"[\\/]", stem)[-1]
    return text


def _different(cells: Iterable[str], *, known: bool) -> tuple[str, ...]:
    """Return the cells that say something and differ in more than case and spaces."""
    found: dict[str, str] = {}
    for cell in cells:
        if not (is_unknown(cell) if known else is_missing(cell)):
            text = " ".join(unicodedata.normalize("NFC", cell).split())
            found.setdefault(folded(text), text)
    return tuple(found.values())


def _filled(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({*values} - {""}))


def _quoted(case: Case) -> str:
    texts = [text for column in LABEL_COLUMNS for text in case.texts.get(column, ())]
    return ", ".join(repr(printable(text)) for text in texts)
