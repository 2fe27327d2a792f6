"""Before every stage: what may be wrong with a manifest's columns, ids and labels, in words."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from posixpath import normpath

from her2.cohort import columns
from her2.cohort.columns import Column
from her2.config import Task, UnmappedLabels
from her2.core.sheets import Sheet, rows_in_words
from her2.core.spelling import (
    folded,
    folded_id,
    is_dash,
    is_failed,
    is_missing,
    is_spelling_of,
    is_unknown,
    look_alikes,
    nearest,
    spelt,
)

_APART = (
    "differ in nothing but case, spaces, kinds of dashes, leading zeros or the '.0' of a "
    "spreadsheet; write what is the same alike, and make what is not differ in more"
)

_COLUMN = re.compile(r"column '[^']*'")
_VALUES = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d+(?:, \d+)*| and (?= more)")


def places(numbers: Sequence[int], cells: Sequence[str]) -> dict[str, list[int]]:
    """Return cell -> the numbers of its rows."""
    found: dict[str, list[int]] = defaultdict(list)
    for number, cell in zip(numbers, cells, strict=True):
        found[cell].append(number)
    return found


def few_of_a_kind(problems: Iterable[str], *, shown: int = 8) -> list[str]:
    """Return the problems with at most so many of a kind, so that none of them hides the others.

    Problems of a kind are of one column, and differ in nothing but numbers and values in quotes.
    """
    kinds: dict[tuple[str, str], list[str]] = defaultdict(list)
    for problem in problems:
        column = _COLUMN.search(problem)
        kinds[column[0] if column else "", _VALUES.sub("", problem)].append(problem)
    return [
        line
        for (column, _), found in kinds.items()
        for line in (
            *found[:shown],
            *([f"{column}: {len(found) - shown} more like these"] if len(found) > shown else []),
        )
    ]


def column_problems(
    sheet: Sheet,
    labels: Collection[str],
    named: Mapping[str, str],
    required: Collection[str] | None = None,
) -> list[str]:
    """Return the columns that are missing, or that the config should not name.

    `required` are the columns that must be there beside the labels; default: those of every
    manifest.
    """
    required = (*(required or columns.required_columns()), *sorted(labels))
    absent = [name for name in dict.fromkeys(required) if name not in sheet.header]
    problems = [
        f"column {name!r} is missing{_meant(name, sheet.header)}; the required columns are "
        f"{', '.join(required)}"
        for name in absent
    ]
    for name, key in named.items():
        if name not in sheet.header:
            problems.append(
                f"`{key}`: there is no column {name!r}{_meant(name, sheet.header)}; correct the "
                "name or add the column"
            )
        if name in columns.required_columns():
            problems.append(
                f"`{key}`: column {name!r} tells slides or patients apart; name one whose values "
                "they share"
            )
    return problems


def overlooked_columns(header: Sequence[str], read: Collection[str]) -> Iterator[str]:
    """Yield a caution for each column that is not read, but named nearly like one that would be."""
    absent = [name for name in read if name not in header]
    for name in header:
        if not name or name in read:
            continue
        meant = next((one for one in read if is_spelling_of(name, one)), nearest(name, absent))
        if meant is not None:
            yield (
                f"The manifest's column {name!r} is not read. If it is meant to be {meant!r}, "
                "rename it."
            )


def doubtful_values(sheet: Sheet, further: Collection[str]) -> Iterator[str]:
    """Yield a caution for each word for a missing value that counts as a group of its own."""
    grouping = (column.name for column in columns.COLUMNS if _groups(column))
    for name in dict.fromkeys((*grouping, *further)):
        for cell, number in Counter(sheet.cells.get(name, ())).items():
            if is_failed(cell) or (is_unknown(cell) and not is_missing(cell)):
                yield (
                    f"The manifest's column {name!r} has {cell!r} {number} times, which counts as "
                    "a value. If it means that the value is missing, leave the cells empty."
                )


def row_problems(sheet: Sheet, further: Collection[str]) -> Iterator[str]:
    """Yield slides and files that are listed twice, and values that only look different.

    `further` are the columns that only the config names. Their values may be numbers, of which
    1 and 1.0 are the same anyway.
    """
    for numbers, names in _repeated(sheet, "slide_id", folded_id):
        what = f"is used {len(numbers)} times" if len(names) == 1 else _APART
        yield (
            f"{rows_in_words(numbers)}, column 'slide_id': {spelt(names)} {what}; ids must be "
            "unique"
        )
    for numbers, names in _repeated(sheet, "path", _same_file):
        what = "is used" if len(names) == 1 else "are one file, used"
        yield (
            f"{rows_in_words(numbers)}, column 'path': {spelt(names)} {what} {len(numbers)} times; "
            "keep one row for each slide"
        )
    grouping = [column.name for column in columns.COLUMNS if _groups(column)]
    keys = dict.fromkeys(further, folded) | dict.fromkeys(("patient_id", *grouping), folded_id)
    for name, key in keys.items():
        cells = sheet.cells.get(name, [])
        groups = [group for group in look_alikes(cells, key) if not is_missing(group[0])]
        found = places(sheet.numbers, cells) if groups else {}
        for group in groups:
            numbers = sorted(number for one in group for number in found[one])
            yield f"{rows_in_words(numbers)}, column {name!r}: {spelt(group)} {_APART}"


@dataclass(frozen=True, slots=True)
class LabelRules:
    """What becomes of labels of no class: the config's `cohort.missing` and `unmapped_labels`."""

    missing: Collection[str] = ()
    unmapped: UnmappedLabels = "error"

    def means_missing(self, cell: str) -> bool:
        """Return whether a label that no class has means that the label is missing."""
        return is_unknown(cell) or folded(cell) in {folded(word) for word in self.missing}


STRICT = LabelRules()
"""Labels of no class are errors."""


def label_problems(sheet: Sheet, tasks: Mapping[str, Task], rules: LabelRules) -> Iterator[str]:
    """Yield the labels that no task has, and those of tasks that mean a missing value."""
    for name, task in tasks.items():
        for values in task.classes.values():
            yield from (
                f"`tasks.{name}.classes`: a label {value!r} means that the label is missing; "
                "write another word for it, here and in the manifest"
                for value in values
                if is_unknown(value.strip()) and not is_dash(value.strip())
            )
            yield from (
                f"`cohort.missing`: {value!r} is a label of the task {name!r}; delete it here or "
                "there"
                for value in values
                if folded(value) in {folded(word) for word in rules.missing}
            )
    for column, legal in _legal(tasks).items():
        found = places(sheet.numbers, sheet.cells[column])
        for cell, numbers in found.items():
            if cell in legal or rules.means_missing(cell):
                continue
            meant = _alike(cell, legal)
            if not meant and rules.unmapped == "leave_out":
                continue
            yield (
                f"{rows_in_words(numbers)}, column {column!r}: {cell!r} is in no task's "
                f"classes; {f'write it as {meant!r}' if meant else f'use {_list(legal)}'}, or "
                "leave the cell empty if unknown"
                + ("" if meant else " (`cohort.missing`, `cohort.unmapped_labels`)")
            )


def left_out_labels(sheet: Sheet, tasks: Mapping[str, Task], rules: LabelRules) -> Iterator[str]:
    """Yield how many slides have labels that no task has, where such labels are left out."""
    for column, legal in _legal(tasks).items() if rules.unmapped == "leave_out" else ():
        counts = Counter(
            cell
            for cell in sheet.cells[column]
            if cell not in legal and not rules.means_missing(cell) and not _alike(cell, legal)
        )
        if counts:
            words = ", ".join(f"{number} {cell!r}" for cell, number in counts.most_common())
            total = counts.total()
            yield (
                f"The manifest's column {column!r} has {total} label{'s' * (total != 1)} of no "
                f"task's classes ({words}). Their slides are predicted only "
                "(cohort.unmapped_labels: leave_out)."
            )


def missing_labels(
    sheet: Sheet, labels: Collection[str], tasks: Mapping[str, Task], rules: LabelRules
) -> Iterator[str]:
    """Yield how many slides have a label, for columns where some have none, and what they have."""
    legal = _legal(tasks)
    for name in sorted(labels):
        cells = sheet.cells[name]
        missing = Counter(
            cell for cell in cells if cell not in legal.get(name, ()) and rules.means_missing(cell)
        )
        if missing:
            words = ", ".join(
                f"{number} {repr(cell) if cell else 'empty'}"
                for cell, number in missing.most_common()
            )
            yield (
                f"column {name!r}: {len(cells) - missing.total()} of {len(cells)} slides have a "
                f"label; the others are predicted only ({words})"
            )


def _legal(tasks: Mapping[str, Task]) -> dict[str, set[str]]:
    """Return label column -> the labels that some task has."""
    legal: dict[str, set[str]] = {task.label: set() for _, task in sorted(tasks.items())}
    for task in tasks.values():
        legal[task.label] |= {value for values in task.classes.values() for value in values}
    return dict(sorted(legal.items()))


def _alike(cell: str, legal: Collection[str]) -> str:
    """Return the label that a cell looks like, "" if there is none."""
    return next((one for one in sorted(legal) if folded_id(one) == folded_id(cell)), "")


def _repeated(
    sheet: Sheet, column: str, key: Callable[[str], str]
) -> Iterator[tuple[list[int], list[str]]]:
    """Yield the rows' numbers and the different spellings of a value that several rows have."""
    keys = list(map(key, sheet.cells.get(column, [])))
    if len(set(keys)) == len(keys):
        return
    found: dict[str, list[int]] = defaultdict(list)
    for at, same in enumerate(keys):
        found[same].append(at)
    for same, rows in found.items():
        if len(rows) > 1 and not is_unknown(same):
            names = dict.fromkeys(sheet.cells[column][at] for at in rows)
            yield [sheet.numbers[at] for at in rows], list(names)


def _same_file(path: str) -> str:
    return normpath(path) if "./" in path or "//" in path else path


def _groups(column: Column) -> bool:
    return column.subgroup or column.covariate == "category"


def _meant(name: str, header: Iterable[str]) -> str:
    found = nearest(name, [one for one in header if one])
    return f" (did you mean {found!r}?)" if found else ""


def _list(values: Iterable[str]) -> str:
    return ", ".join(sorted(values))
