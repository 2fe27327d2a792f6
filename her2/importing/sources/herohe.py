"""HEROHE: 360 training and 150 test cases, MIRAX, with status, score and laboratory.

The challenge's dataset page says that image 325 of the training set shows no tumour and is not to
be used. Numbers of training and test cases overlap, so that ids begin with the part.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from her2.core.errors import UserError
from her2.core.spelling import folded, is_unknown, printable
from her2.importing.files import files_below, listed
from her2.importing.found import Found, ImportedSlide, LeftOut, Source
from her2.importing.labels import her2_score, her2_status, status_of
from her2.importing.matching import unfinished_files
from her2.importing.sheets import SheetTable, read_sheet_file

Part = Literal["train", "test"]

_WITHOUT_TUMOUR = ("train", "325")
_CASE = re.compile(r"(?:case|image|slide)?[ _-]*0*(\d+)")
_PARTS: dict[Part, re.Pattern[str]] = {
    "train": re.compile(r"(?<![a-z])train(?:ing)?(?![a-z])"),
    "test": re.compile(r"(?<![a-z])test(?:ing)?(?![a-z])"),
}
_SHEETS = (".csv", ".xlsx", ".xls", ".ods")
_PUBLISHED = "HEROHE_HER2_STATUS.xlsx, 'Training (ground truth).csv' and 'Test (ground truth).xlsx'"
_INDEX = "Slidedat.ini"


@dataclass
class _Truth:
    """What the sheets say of a case: label or further column -> its values, in order."""

    values: dict[str, list[str]] = field(default_factory=dict)

    def one(self, name: str) -> str:
        """Return the only value, "" if there is none, or if the sheets contradict each other."""
        found = self.values.get(name, [])
        return found[0] if len(found) == 1 else ""


def read(
    folder: Path,
    *,
    out: Path,
    truth: list[str] | None = None,
    part: Literal["train", "test"] | None = None,
) -> Found:
    """Read the training cases, the test cases, or both.

    Args:
        folder: slides (N.mrxs beside the folder N), those of the training set in a folder whose
            name has `train` in it, those of the test set in one with `test`.
        out: where nothing is converted to.
        truth: a file with labels, such as 'Training (ground truth).csv'; may be given several
            times; default: those in the folder.
        part: part of the slides, and of the files with labels, whose names do not tell it.

    Raises:
        UserError: there are no labels, a sheet cannot be read, or a slide's part is not known.
    """
    sheets = [*map(Path, truth)] if truth else _truth_files(folder)
    if not sheets:
        raise UserError(
            f"{folder}: holds no file with labels; put the published ones there ({_PUBLISHED}), "
            "or name them with --truth."
        )
    rules: list[str] = []
    truths: dict[tuple[Part, str], _Truth] = {}
    conflicts: list[str] = []
    for path in sheets:
        conflicts += _read_truth(path, part, truths, rules)
    conflicts += _contradictions(truths)

    def side_of(path: Path) -> Part | None:
        return _part_of(path.parent) or _part_of(Path(folder.absolute().name)) or part

    files, left_out = _slides(folder)
    left_out += [
        LeftOut(str(path.relative_to(folder)), "is a download that has not finished; get it again")
        for path in unfinished_files(folder)
    ]
    slides: list[ImportedSlide] = []
    unclear = []
    for path in files:
        case = _case_number(path.stem)
        where = str(path.relative_to(folder))
        side = side_of(path.relative_to(folder))
        if case is None:
            left_out.append(
                LeftOut(where, "its name is not the number of a case, as in 12.mrxs; rename it")
            )
        elif side is None:
            unclear.append(where)
        elif (side, case) == _WITHOUT_TUMOUR:
            left_out.append(
                LeftOut(where, "shows no tumour, as the challenge's page says of case 325")
            )
        else:
            slides.append(_imported(path, side, case, truths.get((side, case), _Truth())))
    if unclear:
        raise UserError(
            f"{folder}: {len(unclear)} slides, such as {printable(unclear[0])}, are in no folder "
            "whose name has train or test in it, and numbers of both parts overlap; say "
            "--part train or --part test, or move them into folders of these names."
        )
    have = {one.slide_id for one in slides}
    parts = {one.split for one in slides}
    unlabelled = [one.slide_id for one in slides if not any(one.labels.values())]
    if unlabelled:
        conflicts.append(
            f"{len(unlabelled)} slides have no label in {', '.join(path.name for path in sheets)} "
            f"and stay without: {listed(unlabelled)}"
        )
    named = {(side_of(Path(one.name)), _case_number(Path(one.name).stem)) for one in left_out}
    absent = [
        f"{side}-{case}"
        for side, case in truths
        if side in parts and f"{side}-{case}" not in have and (side, case) not in named
    ]
    if absent:
        left_out.append(
            LeftOut(f"{len(absent)} cases with a label", f"have no slide here: {listed(absent)}")
        )
    if len(parts) < 2:
        slides = [replace(one, split="") for one in slides]
        rules.append("the column split is empty, since slides of one part alone are here")
    else:
        rules.append(
            "split is the official one; training draws its tuning set from train (folds.tune)"
        )
    return Found(
        slides=tuple(slides),
        left_out=tuple(left_out),
        conflicts=tuple(conflicts),
        rules=(
            *rules,
            "her2 is the score of immunohistochemistry, her2_status the final result, as published",
            "site is the laboratory",
        ),
        inputs=tuple(sheets),
        config={
            "evaluation.subgroups": ["age"] if any("age" in one.further for one in slides) else []
        },
    )


def _imported(path: Path, side: Part, case: str, truth: _Truth) -> ImportedSlide:
    name = f"{side}-{case}"
    return ImportedSlide(
        slide_id=name,
        path=path,
        patient_id=name,
        site=truth.one("site"),
        split=side,
        labels={"her2": truth.one("her2"), "her2_status": truth.one("her2_status")},
        further={key: truth.one(key) for key in ("ish_group", "age") if truth.one(key)},
    )


# Labels


def _truth_files(folder: Path) -> list[Path]:
    """Return the sheets below a folder whose names are those of the published ones."""
    names = re.compile(r"ground ?truth|her2_status")
    return [
        path
        for path in files_below(folder, lambda name: name.lower().endswith(_SHEETS))
        if names.search(path.stem.lower())
    ]


def _read_truth(
    path: Path, part: Part | None, truths: dict[tuple[Part, str], _Truth], rules: list[str]
) -> Iterator[str]:
    """Add what a sheet says to the cases; yield sentences on cells that were not understood."""
    side = (
        _part_of(Path(path.name))
        or part
        or ("train" if "her2_status" in path.stem.lower() else None)
    )
    if side is None:
        raise UserError(
            f"{path}: its name does not tell whether it is of the training or the test set; "
            "write `training` or `test` into it, or say --part train or --part test."
        )
    try:
        table = read_sheet_file(path, wanted=("Case",))
    except UserError:  # the columns of HEROHE_HER2_STATUS.xlsx are not known here
        table = read_sheet_file(path)
    rules += [f"{path.name}: {said}" for said in table.said]
    places = _places(table)
    unread: dict[str, list[str]] = {}
    for row in table.rows:
        case = _case_number(row[places["case"]])
        if case is None:
            unread.setdefault(table.header[places["case"]], []).append(row[places["case"]])
            continue
        truth = truths.setdefault((side, case), _Truth())
        for name, at in places.items():
            cell = row[at]
            if name == "case" or is_unknown(cell):
                continue
            value = {"her2": her2_score, "her2_status": her2_status}.get(name, str)(cell)
            if not value:
                unread.setdefault(table.header[at], []).append(f"{cell!r} of case {case}")
            elif value not in truth.values.setdefault(name, []):
                truth.values[name].append(value)
    for column, cells in unread.items():
        yield (
            f"{path.name}, column {column!r}: was not understood and is left empty: {listed(cells)}"
        )


def _places(table: SheetTable) -> dict[str, int]:
    """Return what is read -> the place of its column.

    Raises:
        UserError: there is no column of cases, or none of a label.
    """
    known = {
        "case": r"case.*|image.*|slide.*|id|name|number|n[ro]?\.?",
        "her2": r"immunohistochemistry.*|ihc.*",
        "her2_status": r"final result.*|.*her-?2.*|(ground truth|status|label|result).*",
        "ish_group": r"ish group.*",
        "site": r"laborator.*",
        "age": r"age.*",
    }
    found: dict[str, int] = {}
    for name, pattern in known.items():
        for at, column in enumerate(table.header):
            if at not in found.values() and re.fullmatch(pattern, folded(column)):
                found.setdefault(name, at)
    if "case" not in found or not found.keys() & {"her2", "her2_status"}:
        raise UserError(
            f"{table.path}: needs a column `Case` and one of `Immunohistochemistry` and `Final "
            f"Result`; its columns are {printable(', '.join(filter(None, table.header)))}."
        )
    return found


def _contradictions(truths: Mapping[tuple[Part, str], _Truth]) -> Iterator[str]:
    """Yield what sheets say differently of a case, and final results that scores speak against."""
    for (side, case), truth in sorted(
        truths.items(), key=lambda item: (item[0][0], int(item[0][1]))
    ):
        for name, values in truth.values.items():
            if len(values) > 1:
                yield f"{side}-{case}: {name} is {' and '.join(values)}; it was left empty"
        score, status = truth.one("her2"), truth.one("her2_status")
        expected = status_of(score, status)
        if status and score and status != expected:
            yield (
                f"{side}-{case}: immunohistochemistry {score} yet the final result is {status} "
                f"(ISH group {truth.one('ish_group') or 'not known'}); both were kept"
            )


# Slides


def _slides(folder: Path) -> tuple[list[Path], list[LeftOut]]:
    """Return the MIRAX slides that have their folder, and what else looks like a slide."""
    slides, left_out = [], []
    files = files_below(folder, lambda name: name.lower().endswith(".mrxs"))
    data = {path.parent for path in files_below(folder, lambda name: name == _INDEX)}
    inside: set[Path] = set()
    for path in files:
        beside = path.with_suffix("")
        where = str(path.relative_to(folder))
        if beside.is_dir():
            slides.append(path)
        elif path.parent in data and path.parent.name == path.stem:
            inside.add(path.parent)
            left_out.append(
                LeftOut(where, f"lies in its folder; move it out, to beside the folder {path.stem}")
            )
        else:
            left_out.append(
                LeftOut(where, f"lacks the folder {path.stem} with its px; copy it beside the file")
            )
    owned = {path.with_suffix("") for path in slides} | inside
    for one in sorted(data - owned):
        lacking = "" if any(one.glob("*.dat")) else f", and holds {_INDEX} without the px"
        left_out.append(
            LeftOut(
                str(one.relative_to(folder)),
                f"lacks {one.name}.mrxs beside it{lacking}; download it again, or if only the file "
                "is lost, put any other case's .mrxs there under this name, since nothing is read "
                "from it",
            )
        )
    return sorted(slides, key=_order), left_out


def _order(path: Path) -> tuple[bool, int, str]:
    """Put the training set first, and cases in the order of their numbers."""
    case = _case_number(path.stem)
    return _part_of(path) == "test", int(case or 0), str(path)


def _case_number(text: str) -> str | None:
    """Return the number of a case without zeros in front, None for any other text."""
    found = _CASE.fullmatch(folded(text).removesuffix(".mrxs").removesuffix(".0"))
    return found[1] if found else None


def _part_of(path: Path) -> Part | None:
    """Return the part that the last telling name of a path tells."""
    for name in reversed(path.parts):
        sides = [side for side, pattern in _PARTS.items() if pattern.search(name.lower())]
        if len(sides) == 1:
            return sides[0]
    return None


SOURCE = Source(
    name="herohe",
    title="HEROHE: MIRAX slides with status, score and laboratory, official split.",
    preset="herohe.yaml",
    read=read,
)
