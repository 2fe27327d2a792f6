"""Warwick's HER2 scoring contest: H&E slides; the IHC slides beside them show the answer.

Source: Qaiser et al., Histopathology 72(2), 2018 (doi 10.1111/his.13333).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from her2.core.errors import UserError
from her2.core.files import file_digest
from her2.core.reading import path_problem
from her2.core.spelling import is_unknown, printable
from her2.importing.copies import repeated
from her2.importing.found import Found, ImportedSlide, LeftOut, Source
from her2.importing.labels import her2_score, legal_id, status_of
from her2.importing.matching import scan_group, slide_files, unfinished_files
from her2.importing.sheets import SheetTable, read_sheet_file

CASE, SCORE, PERCENTAGE = "CaseNo", "HeR2 SCORE", "her2_percent"
_NAME = re.compile(r"(?:case[ _-]*)?(?P<case>\d+)[ _-]+(?P<stain>.+)", re.IGNORECASE)
_HE = re.compile(r"h[ _-]?(?:&|and)?[ _-]?e(?:[ _-]+\d+)?", re.IGNORECASE)
_IHC = re.compile(r"her-?2|ihc|neu", re.IGNORECASE)
_SHEETS = (".xlsx", ".xls", ".xlsb", ".ods", ".csv", ".tsv")


def read(folder: Path, *, out: Path, truth: Path | None = None) -> Found:
    """Read the slides of the contest.

    Args:
        folder: the folder with the slides, of which 01_HE.ndpi is H&E and 01_HER2.ndpi is IHC.
        out: not used; nothing is converted.
        truth: the workbook with the columns CaseNo and HeR2 SCORE; default: groundTruth.xlsx in
            the folder.
    """
    if problem := path_problem(folder, "folder"):
        raise UserError(f"{folder}: {problem}. Name the folder of the contest's slides.")
    files = slide_files(folder)
    cases = {path: known for path in files if (known := _case(path))}
    if not cases:
        seen = f"; what it has is like {printable(files[0].name)!r}" if files else ""
        raise UserError(
            f"{folder}: has no slide of the contest, whose names are like 01_HE.ndpi{seen}. Name "
            "the folder of its slides."
        )
    sheet = truth or _truth_sheet(folder)
    table = read_sheet_file(sheet, wanted=(CASE, SCORE))
    labels, conflicts = _labels(table)
    taken = {path: case for path, (case, stain) in cases.items() if stain == "he"}
    numbers = set(taken.values())
    if taken and numbers.isdisjoint(labels):
        raise UserError(
            f"{sheet}: has none of the {len(numbers):,} cases with slides, so it is the truth of "
            "others."
        )
    ids = {path: f"warwick-{legal_id(path.stem)}" for path in taken}
    again = repeated(ids, folder)
    none = dict.fromkeys(("her2", "her2_status", PERCENTAGE), "")
    slides = []
    for path, case in taken.items():
        if path in again:
            continue
        row = labels.get(case, none)
        slides.append(
            ImportedSlide(
                slide_id=ids[path],
                path=path,
                patient_id=f"warwick-{case:02}",
                labels={name: row[name] for name in ("her2", "her2_status")},
                further={PERCENTAGE: row[PERCENTAGE]},
            )
        )
    return Found(
        slides=tuple(sorted(slides, key=lambda one: one.slide_id)),
        left_out=(
            *(LeftOut(_within(path, folder), why) for path, why in again.items()),
            *_left_out(files, cases, numbers, labels, folder, sheet),
        ),
        conflicts=tuple(conflicts),
        rules=(
            f"{sheet.name}: {'; '.join((*table.said, f'{len(labels):,} cases'))}",
            "only slides whose names end in HE were taken; patients are numbered as the cases",
            "her2_status: 0 and 1+ negative, 3+ positive; 2+ has none, since there is no FISH",
            f"{PERCENTAGE}: percentage of cells with complete membrane staining",
            *_unlabelled(numbers, labels, sheet),
        ),
        inputs=(sheet,),
    )


def _case(path: Path) -> tuple[int, str] | None:
    """Return the case and the stain (he, ihc or "") of a slide, None if its name has no case."""
    found = _NAME.fullmatch(scan_group(path))
    if found is None:
        return None
    stain = found["stain"].strip()
    # HER2 begins with HE, so that only a whole word will do.
    if _HE.fullmatch(stain):
        return int(found["case"]), "he"
    return int(found["case"]), "ihc" if _IHC.search(stain) else ""


def _truth_sheet(folder: Path) -> Path:
    """Return the workbook of the truth below a folder.

    Raises:
        UserError: there is none, or there are several.
    """
    found = [
        path
        for path in slide_files(folder, _SHEETS)
        if "groundtruth" in re.sub(r"[\W_]", "", path.stem.casefold())
        and not path.name.startswith("~$")  # a lock of Excel
    ]
    if len({file_digest(path) for path in found}) == 1:
        return found[0]
    what = f"several ({', '.join(_within(one, folder) for one in found)})" if found else "none"
    raise UserError(
        f"{folder}: the truth should be in it as groundTruth.xlsx, and there is {what}; name the "
        "file with --truth."
    )


def _labels(table: SheetTable) -> tuple[dict[int, dict[str, str]], list[str]]:
    """Return case -> its labels and percentage, and what is wrong with some rows."""
    cells: dict[int, list[tuple[str, str]]] = defaultdict(list)
    problems = []
    rows = zip(
        table.numbers, table.column(CASE), table.column(SCORE), _percents(table), strict=True
    )
    for number, case, score, percent in rows:
        if not (found := re.fullmatch(r"(?:case[ _-]*)?(\d+)(?:\.0+)?", case, re.IGNORECASE)):
            problems.append(f"row {number}: {CASE} {printable(case)!r} is no number: left out")
        elif (score, percent) not in cells[int(found[1])]:
            cells[int(found[1])].append((score, percent))
    labels = {}
    for one, known in cells.items():
        if len(known) > 1:
            said = "; ".join(printable(" / ".join(row)) for row in known)
            problems.append(f"case {one:02}: has different rows ({said}): no label")
            known = [("", "")]
        (text, percent), = known  # fmt: skip
        score, share = her2_score(text), percent.removesuffix("%").strip()
        if not score and not is_unknown(text):
            problems.append(
                f"case {one:02}: score {printable(text)!r} is none of 0 to 3: left empty"
            )
        if not is_unknown(share) and not _is_percentage(share):
            problems.append(f"case {one:02}: percentage {printable(percent)!r} is none: left empty")
        labels[one] = {
            "her2": score,
            "her2_status": status_of(score, ""),
            PERCENTAGE: share if _is_percentage(share) else "",
        }
    return labels, problems


def _percents(table: SheetTable) -> list[str]:
    name = next((one for one in table.header if one.casefold().startswith("percent")), None)
    return [""] * len(table.rows) if name is None else table.decimals(name)


def _is_percentage(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?", text) is not None and float(text) <= 100


def _left_out(
    files: Sequence[Path],
    cases: dict[Path, tuple[int, str]],
    taken: set[int],
    labels: Iterable[int],
    folder: Path,
    sheet: Path,
) -> Iterator[LeftOut]:
    for path in unfinished_files(folder):
        yield LeftOut(_within(path, folder), "is an unfinished download; download it again")
    there = {case for case, _ in cases.values()}
    for case in sorted(there - taken):
        yield LeftOut(f"case {case:02}", "has no H&E slide in the folder")
    for case in sorted(set(labels) - there):
        yield LeftOut(f"case {case:02} of {sheet.name}", "has no slide in the folder")
    stains = {path: cases[path][1] if path in cases else "" for path in files}
    for path in sorted(files, key=lambda path: stains[path]):
        if not stains[path]:
            reason = "its name does not say that it is H&E, as 01_HE.ndpi does"
            yield LeftOut(_within(path, folder), reason)
        elif stains[path] == "ihc":
            yield LeftOut(_within(path, folder), "is the IHC slide, which shows the answer")


def _unlabelled(taken: set[int], labels: Iterable[int], sheet: Path) -> Iterator[str]:
    if absent := sorted(taken - set(labels)):
        names = ", ".join(f"{one:02}" for one in absent)
        yield f"cases that {sheet.name} does not have were taken without a label: {names}"


def _within(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder))


SOURCE = Source(
    name="warwick",
    title="Warwick's HER2 scoring contest: its H&E slides with the score of the IHC.",
    preset="warwick.yaml",
    read=read,
)
