"""Yale's slides of TCIA's collection HER2-TUMOR-ROIS: status in file names, regions of tumour.

Source: Farahmand et al., Modern Pathology 35, 2022 (doi 10.1038/s41379-021-00911-w).
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from her2.core.barcodes import patient_of
from her2.core.errors import SlideError, UserError, problem_list
from her2.core.files import file_digest
from her2.core.reading import path_problem
from her2.core.spelling import folded, is_unknown, printable
from her2.importing.copies import repeated
from her2.importing.found import Found, ImportedSlide, LeftOut, Source
from her2.importing.labels import legal_id, legal_ids
from her2.importing.matching import match_by_name, slide_files, unfinished_files
from her2.importing.sheets import SheetTable, read_sheet_file

_NAMED = re.compile(
    r"her2[ _-]?(pos|neg)(?:itive|ative)?[ _-]*case[ _-]*(\d+)(?!\d)", re.IGNORECASE
)
_RESPONDING = re.compile(r"trastuzumab[ _-]?response", re.IGNORECASE)
_STATUS = {"pos": "positive", "neg": "negative"}
_RESPONSE = {
    **dict.fromkeys(("responder", "yes", "y", "1", "true"), "responder"),
    **dict.fromkeys(
        ("non-responder", "nonresponder", "non responder", "non", "no", "n", "0", "false"),
        "non-responder",
    ),
}
_SHEETS = (".xlsx", ".xls", ".xlsb", ".ods", ".csv", ".tsv")


def read(
    folder: Path,
    *,
    out: Path,
    response: Path | None = None,
    regions: Literal["use", "ignore"] = "use",
    tcga: Literal["leave-out", "take"] = "leave-out",
) -> Found:
    """Read Yale's part of the collection HER2-TUMOR-ROIS.

    Args:
        folder: the collection's folder (PKG-HER2tumorROIs_v3), or that of one cohort in it.
        out: not used; nothing is converted.
        response: workbook of the response to trastuzumab, with the columns Patient and Responder;
            default: the one in the folder.
        regions: use the drawn regions of tumour, so that tiles come from them alone, or ignore
            them.
        tcga: what becomes of slides of TCGA, whose patients are those of TCGA-BRCA. Those that are
            taken have a status where their name says so.
    """
    if problem := path_problem(folder, "folder"):
        raise UserError(f"{folder}: {problem}. Name the folder of the collection.")
    files = slide_files(folder)
    sheet = response or _response_sheet(folder)
    table = None if sheet is None else read_sheet_file(sheet, wanted=("Patient", "Responder"))
    barcodes = {path: barcode for path in files if (barcode := patient_of(path.name))}
    named = [path for path in files if path not in barcodes and _is_her2(path, folder)]
    others = [path for path in files if path not in barcodes and path not in named]
    if not barcodes and not named and (table is None or not others):
        raise UserError(
            f"{folder}: has no slide of Yale's cohorts, whose names are like Her2Pos_Case_01.svs"
            f"{_instead(files)}. Name the folder of the collection; the response cohort alone "
            "needs its workbook, too (--response)."
        )

    left = []
    made = [_her2_slide(path) for path in named]
    if tcga == "take":
        made += [_her2_slide(path, barcode) for path, barcode in barcodes.items()]
    else:
        left += [
            LeftOut(_within(path, folder), f"{_of_tcga(barcode)}; --tcga take")
            for path, barcode in barcodes.items()
        ]
    answered = _response_slides(table, others, folder)
    made += answered.slides
    left += answered.left_out
    left += [
        LeftOut(_within(path, folder), "is an unfinished download; download it again")
        for path in unfinished_files(folder)
    ]
    again = repeated({one.path: one.slide_id for one in made}, folder)
    left += [LeftOut(_within(path, folder), why) for path, why in again.items()]
    made = [one for one in made if one.path not in again]
    plain: list[str] = []
    if regions == "use":
        made, more, plain = _with_regions(made, files, folder)
        left += more
    return Found(
        slides=tuple(sorted(made, key=lambda one: one.slide_id)),
        left_out=tuple(left),
        conflicts=answered.conflicts,
        rules=(
            "her2_status is that of the file's name (Her2Pos, Her2Neg); nothing states the score, "
            "or the status of the response cohort",
            *answered.rules,
            *_region_rules(regions, plain),
        ),
        inputs=() if sheet is None else (sheet,),
    )


def _is_her2(path: Path, folder: Path) -> bool:
    """Return whether a slide is of the HER2 cohort, whose file names have the status."""
    return _NAMED.match(path.stem) is not None and not _is_response(path, folder)


def _is_response(path: Path, folder: Path) -> bool:
    """Return whether a file lies in the folder of the response cohort."""
    parts = (folder.name, *path.relative_to(folder).parts[:-1])
    return any(_RESPONDING.search(part) for part in parts)


def _her2_slide(path: Path, barcode: str = "") -> ImportedSlide:
    found = _NAMED.search(path.stem)
    status = _STATUS[found[1].lower()] if found else ""
    patient = barcode or (f"Her2{found[1].title()}_Case_{int(found[2]):02}" if found else "")
    return ImportedSlide(
        slide_id=legal_id(path.stem),
        path=path,
        patient_id=patient,
        labels={"her2_status": status, "response": ""},
    )


def _of_tcga(barcode: str) -> str:
    return f"is of {barcode}, a patient of TCGA-BRCA, whom models trained there know"


def _response_sheet(folder: Path) -> Path | None:
    """Return the workbook of the response cohort below a folder, None if there is none.

    Raises:
        UserError: there are several.
    """
    found = [path for path in slide_files(folder, _SHEETS) if "response" in path.name.casefold()]
    found = [path for path in found if not path.name.startswith("~$")]  # a lock of Excel
    if len({file_digest(path) for path in found}) > 1:
        names = ", ".join(_within(path, folder) for path in found)
        raise UserError(f"{folder}: has several workbooks of the response ({names}); say which "
                        "with --response.")  # fmt: skip
    return found[0] if found else None


def _response_slides(table: SheetTable | None, files: Sequence[Path], folder: Path) -> Found:
    """Return the slides of the response cohort, and those of no cohort as left out."""
    if table is None:
        reason = (
            "has no status in its name (Her2Pos_Case_01), and no workbook of the response to "
            "trastuzumab was found (--response)"
        )
        return Found(
            slides=(), left_out=tuple(LeftOut(_within(one, folder), reason) for one in files)
        )
    answers: dict[str, set[str]] = defaultdict(set)
    for patient, answer in zip(table.column("Patient"), table.column("Responder"), strict=True):
        if patient:
            answers[patient].add(answer)
    ids, shared = legal_ids(answers)
    if shared or not all(ids.values()):
        problems = [f"{' and '.join(map(repr, same))} become one id" for same in shared.values()]
        problems += [f"{name!r} has no letter or digit" for name, one in ids.items() if not one]
        raise problem_list(f"{table.path}: column 'Patient'", problems)
    matched = match_by_name(answers, files)
    labels, conflicts = {}, []
    for patient in matched.files:
        labels[patient], conflict = _answer(answers[patient])
        if conflict:
            conflicts.append(f"response of patient {printable(patient)}: {conflict}: left empty")
    unclear = {one: f"could be {' or '.join(names)} of {table.path.name}; rename the file"
               for one, names in matched.ambiguous.items()}  # fmt: skip
    none = dict.fromkeys(
        matched.unnamed,
        f"is neither named like Her2Pos_Case_01 nor like a patient of {table.path.name}",
    )
    return Found(
        slides=tuple(
            ImportedSlide(
                slide_id=f"response-{legal_id(path.stem)}",
                path=path,
                patient_id=f"response-{ids[patient]}",
                labels={"her2_status": "", "response": labels[patient]},
            )
            for patient, paths in matched.files.items()
            for path in paths
        ),
        left_out=(
            *(LeftOut(_within(path, folder), why) for path, why in (unclear | none).items()),
            *(
                LeftOut(f"patient {patient} of {table.path.name}", _no_slide(table.path))
                for patient in matched.without
            ),
        ),
        conflicts=tuple(conflicts),
        rules=(
            f"{table.path.name}: {'; '.join((*table.said, 'response is its Responder'))}; ids of "
            "these patients begin with response-",
        ),
    )


def _no_slide(sheet: Path) -> str:
    return f"has no slide whose name is, or begins with, the Patient of {sheet.name}"


def _answer(cells: set[str]) -> tuple[str, str]:
    """Return the response that the cells of a patient state, and why there is none."""
    known = {_RESPONSE.get(folded(cell).removesuffix(".0"), "") for cell in cells}
    said = ", ".join(repr(printable(cell)) for cell in sorted(cells))
    if len(cells) > 1 and len(known) > 1:
        return "", f"rows differ ({said})"
    answer = known.pop()
    unknown = not answer and not all(map(is_unknown, cells))
    return answer, f"{said} is no answer that is known" if unknown else ""


def _with_regions(
    slides: Sequence[ImportedSlide], files: Sequence[Path], folder: Path
) -> tuple[list[ImportedSlide], list[LeftOut], list[str]]:
    """Give slides their annotations; return the slides, what was left out, and ids without one."""
    from her2.slides.annotations import chosen_regions  # slow to load: it needs OpenCV

    drawn: dict[str, list[Path]] = defaultdict(list)
    for path in slide_files(folder, (".xml",)):
        drawn[folded(path.stem)].append(path)
    stems = Counter(folded(path.stem) for path in files)
    kept, left, plain = [], [], []
    for one in slides:
        candidates = drawn.get(folded(one.path.stem), [])
        if stems[folded(one.path.stem)] > 1:  # as where two cohorts count from 1
            cohort = one.path.parent.parent
            candidates = [path for path in candidates if path.is_relative_to(cohort)]
        nearest = _nearest(one.path, candidates)
        if not nearest:
            plain.append(one.slide_id)
            kept.append(one)
            continue
        if len({file_digest(path) for path in nearest}) > 1:
            names = " and ".join(_within(path, folder) for path in nearest)
            reason = (
                f"has different annotations ({names}); delete the wrong one, or --regions ignore"
            )
            left.append(LeftOut(_within(one.path, folder), reason))
            continue
        try:
            chosen_regions(nearest[0], ())
        except SlideError as error:
            reason = f"{error}; draw it again, or --regions ignore"
            left.append(LeftOut(_within(one.path, folder), reason))
        else:
            kept.append(replace(one, annotation=nearest[0]))
    return kept, [*left, *_without_slide(drawn, stems, folder)], plain


def _nearest(slide: Path, drawn: Sequence[Path]) -> list[Path]:
    """Return the annotations that share the most folders with a slide."""
    shared = {path: len(Path(os.path.commonpath((path, slide))).parts) for path in drawn}
    most = max(shared.values(), default=0)
    return [path for path, count in shared.items() if count == most]


def _without_slide(
    drawn: Mapping[str, Sequence[Path]], stems: Container[str], folder: Path
) -> Iterator[LeftOut]:
    for stem, paths in drawn.items():
        if stem not in stems:
            barcode = patient_of(paths[0].name)
            more = f"; it {_of_tcga(barcode)}, and the slide is at the GDC" if barcode else ""
            for path in paths:
                yield LeftOut(_within(path, folder), f"is an annotation without a slide{more}")


def _region_rules(regions: str, plain: list[str]) -> Iterator[str]:
    if regions == "ignore":
        yield "the drawn regions were ignored: the whole tissue is tiled"
        return
    yield "tiles come from the drawn regions alone, without those that ImageScope calls negative"
    if plain:
        yield (
            f"{len(plain):,} slides have no drawn region, so their whole tissue is tiled: "
            f"{', '.join(plain)}"
        )


def _instead(files: Sequence[Path]) -> str:
    return f"; what it has is like {printable(files[0].name)!r}" if files else ""


def _within(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder))


SOURCE = Source(
    name="yale",
    title="Yale's slides of HER2-TUMOR-ROIS: HER2 status, and response to trastuzumab.",
    preset="yale.yaml",
    read=read,
)
