"""BCNB: 1,058 core-needle biopsies as flat JPEG, with status, score, tumour outlines and a split.

Their um/px were published nowhere, so that the user has to know it. Outlines of the class
`negative` are not used, as its authors do not.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from her2.core.errors import UserError, problem_list
from her2.core.files import parse_json
from her2.core.reading import path_problem
from her2.core.spelling import folded_id, is_unknown
from her2.core.types import MPP_RANGE
from her2.importing.files import files_below, listed
from her2.importing.found import Found, ImportedSlide, LeftOut, Source
from her2.importing.labels import her2_score, her2_status, status_of
from her2.importing.matching import slide_files, unfinished_files
from her2.importing.outlines import Rings, publish_outlines
from her2.importing.sheets import SheetTable, read_sheet_file

_CLINICAL = "patient-clinical-data.xlsx"
_LISTS = {"train_id.txt": "train", "val_id.txt": "tune", "test_id.txt": "test"}
"""Published list of ids -> the manifest's value of `split`."""
_SUFFIXES = (".jpg", ".jpeg")
_FURTHER = {"age": ("Age(years)", "Age"), "er": ("ER",), "pr": ("PR",)}
_LARGEST_JSON = 64 << 20
_NO_AREA = "some have fewer than 3 points"


@dataclass(frozen=True, slots=True)
class _Case:
    """A row of the clinical sheet."""

    labels: Mapping[str, str]
    further: Mapping[str, str]


_UNKNOWN = _Case({"her2": "", "her2_status": ""}, {})


def read(
    folder: Path,
    *,
    out: Path,
    mpp: float | None = None,
    clinical: Path | None = None,
    splits: Path | None = None,
    convert: bool = False,
    outlines: Literal["use", "ignore"] = "use",
    threads: int = 1,
) -> Found:
    """Read the slides, the clinical sheet, the outlines of tumours and the official split.

    Args:
        folder: the data set, with N.jpg and N.json in it or below (`WSIs`).
        out: where outlines and converted slides go.
        mpp: um/px of the slides; required, since it was published nowhere.
        clinical: the sheet with labels; default: patient-clinical-data.xlsx in the folder.
        splits: folder of train_id.txt, val_id.txt and test_id.txt; default: found in the folder.
        convert: write each slide as a pyramidal TIFF with um/px, of which tiles are read faster.
        outlines: use: tiles come from the outlined tumours; ignore: from all tissue.
        threads: slides that are converted at once, as far as they fit into memory.

    Raises:
        UserError: the um/px, the sheet or the lists are absent or cannot be right.
    """
    mpp = _known_mpp(mpp)
    table = _clinical(folder, clinical)
    labels, conflicts, rules = _labels(table)
    split, lists = _split(folder, splits, labels)
    pictures, left_out = _pictures(folder)
    left_out += _strays(folder, pictures, labels)
    if convert:
        paths, failed = _converted(pictures, out, mpp, threads)
        left_out += failed
    else:
        paths = pictures
    annotations: dict[str, Path] = {}
    if outlines == "use":
        wanted = {case: path.with_suffix(".json") for case, path in pictures.items()}
        annotations, said = _annotations({one: wanted[one] for one in paths}, out)
        conflicts += said
    slides = tuple(
        ImportedSlide(
            slide_id=_id(case),
            path=path,
            patient_id=_id(case),
            split=split.get(case, ""),
            mpp=mpp,
            annotation=annotations.get(case),
            labels=labels.get(case, _UNKNOWN).labels,
            further=labels.get(case, _UNKNOWN).further,
        )
        for case, path in paths.items()
    )
    rules += [
        f"um/px {mpp:g} was given by the user",
        "her2 is the sheet's HER2 Expression, her2_status its HER2",
        "split is the official one (val is tune)"
        if split
        else "no lists of the official split are here (train_id.txt, val_id.txt, test_id.txt; "
        "--splits names their folder), so that slides are cross-validated",
        "tiles come from the outlines `positive`; `negative` ones are not used, as by the authors"
        if outlines == "use"
        else "outlines were not used",
    ]
    ages = any("age" in one.further for one in slides)
    return Found(
        slides=slides,
        left_out=tuple(left_out),
        conflicts=tuple(conflicts),
        rules=tuple(rules),
        inputs=(table.path, *lists),
        config={"evaluation.subgroups": ["age"] if ages else []},
    )


def _known_mpp(mpp: float | None) -> float:
    low, high = MPP_RANGE
    if mpp is None:
        raise UserError(
            "--mpp is required: the um/px of BCNB's slides was published nowhere, and a guess "
            "would put every tile at a wrong scale. Ask its authors, or measure something of known "
            "size, such as red blood cells (about 7 um)."
        )
    if not (math.isfinite(mpp) and low <= mpp <= high):
        raise UserError(f"--mpp {mpp:g}: is not between {low} and {high} um/px.")
    return mpp


def _id(case: str) -> str:
    return f"bcnb-{case}"


# Labels and split


def _clinical(folder: Path, clinical: Path | None) -> SheetTable:
    found = [clinical] if clinical else files_below(folder, _CLINICAL.__eq__)
    if len(found) != 1:
        what = "holds no" if not found else f"holds {len(found)} files"
        raise UserError(f"{folder}: {what} {_CLINICAL}; name the sheet with --clinical.")
    return read_sheet_file(found[0], wanted=("Patient ID", "HER2", "HER2 Expression"))


def _labels(
    table: SheetTable,
) -> tuple[dict[str, _Case], list[str], list[str]]:
    """Return case -> its labels and further columns, conflicts, and how the sheet was read."""
    cells = {name: table.column(name) for name in ("Patient ID", "HER2", "HER2 Expression")}
    further = {
        name: table.column(*columns)
        for name, columns in _FURTHER.items()
        if table.find(*columns) is not None
    }
    found: dict[str, _Case] = {}
    conflicts, unread = [], []
    for at, text in enumerate(cells["Patient ID"]):
        case = _case(text)
        if case is None:
            unread.append(f"row {table.numbers[at]}: Patient ID {text!r}")
            continue
        score, status = her2_score(cells["HER2 Expression"][at]), her2_status(cells["HER2"][at])
        for column, value in (("HER2 Expression", score), ("HER2", status)):
            if not value and not is_unknown(cells[column][at]):
                unread.append(f"case {case}: {column} {cells[column][at]!r}")
        if status and score and status != status_of(score, status):
            conflicts.append(
                f"{_id(case)}: HER2 Expression {score} yet HER2 {status}; her2_status was left "
                "empty"
            )
            status = ""
        one = _Case(
            {"her2": score, "her2_status": status},
            {name: values[at] for name, values in further.items() if not is_unknown(values[at])},
        )
        if found.setdefault(case, one) != one:
            conflicts.append(f"{_id(case)}: has several rows that differ; its labels are empty")
            found[case] = _UNKNOWN
    if unread:
        conflicts.append(f"{table.path.name}: was not understood and is empty: {listed(unread)}")
    return found, conflicts, [f"{table.path.name}: {said}" for said in table.said]


def _split(
    folder: Path, splits: Path | None, labels: Mapping[str, _Case]
) -> tuple[dict[str, str], list[Path]]:
    """Return case -> its part, and the files of the lists; both empty where there are none.

    Raises:
        UserError: a list is absent or there twice, or the lists share or lack cases.
    """
    place = folder if splits is None else splits
    paths = {name: files_below(place, name.__eq__) for name in _LISTS}
    if splits is None and not any(paths.values()):
        return {}, []
    problems = [
        f"{name}: is there {len(found)} times" for name, found in paths.items() if len(found) != 1
    ]
    parts: dict[str, list[str]] = {}
    for name, found in paths.items():
        for number, line in enumerate(_lines(found[0]) if len(found) == 1 else (), start=1):
            case = _case(line)
            if case is None:
                problems.append(f"{name}, line {number}: {line!r} is no number of a case")
            elif name not in parts.setdefault(case, []):
                parts[case].append(name)
    twice = [f"{case} ({' and '.join(names)})" for case, names in parts.items() if len(names) > 1]
    if twice:
        problems.append(f"cases in more than one list: {listed(twice)}")
    lacking = [case for case in labels if case not in parts]
    if not problems and lacking:
        problems.append(f"cases of {_CLINICAL} in none of the lists: {listed(lacking)}")
    if unknown := [case for case in parts if case not in labels]:
        problems.append(f"cases that {_CLINICAL} does not have: {listed(unknown)}")
    if problems:
        raise problem_list(
            f"{place}: the lists of the official split are not as published; get them again, or "
            "move them away, and slides are cross-validated",
            problems,
        )
    files = [found[0] for found in paths.values()]
    return {case: _LISTS[names[0]] for case, names in parts.items()}, files


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a list of ids that are not empty, whatever ends them."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}).") from None
    yield from filter(None, map(str.strip, text.splitlines()))


# Slides


def _pictures(folder: Path) -> tuple[dict[str, Path], list[LeftOut]]:
    """Return case -> its JPEG in the order of the cases, and other files that look like one."""
    found: dict[str, Path] = {}
    left_out = []
    for path in slide_files(folder, _SUFFIXES):
        case, where = _case(path.stem), str(path.relative_to(folder))
        if case is None:
            left_out.append(LeftOut(where, "its name is not the number of a case, as in 12.jpg"))
        elif case in found:
            first = found[case].relative_to(folder)
            left_out.append(LeftOut(where, f"is case {case} as {first} is; keep one of them"))
        else:
            found[case] = path
    return dict(sorted(found.items(), key=lambda item: int(item[0]))), left_out


def _strays(
    folder: Path, pictures: Mapping[str, Path], labels: Mapping[str, _Case]
) -> Iterator[LeftOut]:
    """Yield unfinished downloads, and the outlines and rows that belong to no slide."""
    for path in unfinished_files(folder):
        yield LeftOut(
            str(path.relative_to(folder)), "is a download that has not finished; get it again"
        )
    for path in files_below(folder, lambda name: name.lower().endswith(".json")):
        where, case = str(path.relative_to(folder)), _case(path.stem)
        if case is None:
            yield LeftOut(where, "its name is not the number of a case, as in 12.json")
        elif case not in pictures:
            yield LeftOut(where, f"has outlines of case {case}, whose slide is not here")
    if absent := [case for case in labels if case not in pictures]:
        yield LeftOut(f"{len(absent)} case(s) of {_CLINICAL}", f"no slide: {listed(absent)}")


def _converted(
    pictures: Mapping[str, Path], out: Path, mpp: float, threads: int
) -> tuple[dict[str, Path], list[LeftOut]]:
    """Return case -> its pyramidal TIFF, and the slides that could not be converted."""
    from her2.importing.convert import Conversion, convert_all  # seldom needed

    targets = {case: out / "slides" / f"{_id(case)}.tif" for case in pictures}
    problems = convert_all(
        [Conversion(_id(case), path, targets[case]) for case, path in pictures.items()],
        mpp=mpp,
        threads=threads,
    )
    return (
        {case: path for case, path in targets.items() if _id(case) not in problems},
        [LeftOut(name, problem) for name, problem in problems.items()],
    )


# Outlines


def _annotations(files: Mapping[str, Path], out: Path) -> tuple[dict[str, Path], list[str]]:
    """Write outlines as GeoJSON of QuPath; return case -> file, and what could not be used.

    Raises:
        UserError: a file that would be written over was changed since, or made by others.
    """
    rings_of: dict[str, Rings] = {}
    problems: dict[str, list[str]] = {}
    for case, path in files.items():
        if reason := path_problem(path, limit_bytes=_LARGEST_JSON):
            problems.setdefault(f"{path.suffix[1:]} {reason}", []).append(case)
            continue
        try:
            rings, bad = _outlines(parse_json(path.read_bytes()))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            problems.setdefault("not of BCNB's form", []).append(case)
            continue
        if bad:
            problems.setdefault(_NO_AREA, []).append(case)
        if rings:
            rings_of[_id(case)] = rings
        else:
            problems.setdefault("no outline `positive`", []).append(case)
    files_of = publish_outlines(rings_of, out / "annotations", name="positive")
    said = [
        f"outlines of {len(cases)} slide(s): {reason}, so that "
        f"{'the others are used' if reason == _NO_AREA else 'tiles come from all of the tissue'}: "
        f"{listed(map(_id, cases))}"
        for reason, cases in problems.items()
    ]
    return {case: files_of[_id(case)] for case in files if _id(case) in files_of}, said


def _outlines(value: Any) -> tuple[list[list[tuple[float, float]]], int]:
    """Return the closed rings of `positive`, and how many have no area.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: the form is another.
    """
    rings, bad = [], 0
    for one in value["positive"]:
        ring = [(float(x), float(y)) for x, y in one["vertices"]]
        if not all(map(math.isfinite, (number for point in ring for number in point))):
            raise ValueError("a coordinate is not finite")
        if len(set(ring)) < 3:
            bad += 1
        else:
            rings.append(ring if ring[0] == ring[-1] else [*ring, ring[0]])
    return rings, bad


def _case(text: str) -> str | None:
    """Return the number of a case without zeros in front, None for any other text."""
    plain = folded_id(text)
    return plain if re.fullmatch(r"[0-9]+", plain) else None


SOURCE = Source(
    name="bcnb",
    title="BCNB: JPEG slides with status, score, outlines and the official split.",
    preset="bcnb.yaml",
    read=read,
)
