"""Stage 1, pre-training data: the images, labels and cases of each patch data set's format."""

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from her2.config import PatchesSection
from her2.core.errors import UserError
from her2.core.reading import path_problem
from her2.core.sheets import Sheet, read_sheet, rows_in_words
from her2.core.spelling import folded, folded_id, is_missing, look_alikes, printable, spelt
from her2.pretraining.stained import is_headless, read_stained

Part = Literal["train", "valid", "test"]
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")

_BCI_STEM = re.compile(r"_([0-3])\+?$")
_BCI_STAINS = ("HE", "IHC")
_BCI_PART: dict[str, Part] = {"train": "train", "val": "valid", "valid": "valid", "test": "test"}


@dataclass(frozen=True, slots=True)
class Listed:
    """A patch as listed by its format; its pixels have not been read yet."""

    id: str
    label: str
    path: Path
    case: str | None = None
    part: Part | None = None


Listing = tuple[list[Listed], list[str]]
"""The patches, and the problems found."""


def patch_files(section: PatchesSection) -> list[str]:
    """Return all files that an encoder's training reads: tables, images, and the slides named.

    A table that cannot be read names no files here; its job says what is wrong with it.
    """
    found = [path for path in (section.path, section.labels, section.slides) if path is not None]
    if section.path.is_dir():
        for folder, _, names in os.walk(section.path):
            found += sorted(Path(folder, name) for name in names)
    for table in (section.slides, *(() if section.path.is_dir() else (section.path,))):
        if table is not None:
            with suppress(UserError):
                cells = read_csv(table, ("path",))[0].cells
                found += [table.parent / cell for cell in cells.get("path", ())]
    return [str(path) for path in found]


def list_folders(section: PatchesSection) -> Listing:
    """List images in class folders, `path/{label}/**/image`; their cases are unknown."""
    root = section.path
    rows, problems = [], []
    for path in _images(root):
        relative = path.relative_to(root)
        if len(relative.parts) == 1:
            problems.append(f"{relative}: is not in a class folder")
        rows.append(Listed(relative.as_posix(), relative.parts[0], path))
    filled = {row.label for row in rows}
    problems += [
        f"{folder.name}/: holds no image"
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".") and folder.name not in filled
    ]
    return rows, problems


def list_csv(section: PatchesSection) -> Listing:
    """List a csv with the columns `path`, `label` and optionally `case_id`.

    A path is absolute or relative to the csv.
    """
    named = _named_labels(section)
    sheet, problems = read_csv(section.path, ("path", "label"), optional=("case_id",), words=named)
    if not sheet.cells:
        return [], problems
    paths, labels = sheet.cells["path"], sheet.cells["label"]
    cases = [None if is_missing(cell) else cell for cell in sheet.cells.get("case_id", [])]
    if 0 < (blank := cases.count(None)) < len(cases):
        problems.append(
            f"case_id is missing in {blank} of {len(cases)} rows; fill them in, or remove the "
            "column"
        )
    problems += look_alikes_in("label", (one for one in labels if one not in named), folded)
    problems += look_alikes_in("case_id", filter(None, cases), folded_id)
    rows = [
        Listed(path, label, section.path.parent / path, case)
        for path, label, case in zip(paths, labels, cases or [None] * len(paths), strict=True)
    ]
    return rows, problems + _missing(rows)


def list_bci(section: PatchesSection) -> Listing:
    """List BCI (Liu 2022): `00000_train_1+.png` is number, part, score; patients are unknown.

    It is published as `{HE,IHC}/{train,test}/` and as `{train,test}/{HE,IHC}/`. The two images of a
    pair share a name.
    """
    root = section.path
    paths, problems = _of_one_stain(section, [*_images(root)])
    rows = []
    seen: dict[str, str] = {}
    for path in paths:
        relative = path.relative_to(root)
        name = relative.as_posix()
        found = _BCI_STEM.search(path.stem)
        if found is None:
            problems.append(f"{name}: the name must end in a score, as in 00000_train_1+.png")
            continue
        if path.name in seen:
            problems.append(f"{name}: has the same name as {seen[path.name]}; remove one of them")
            continue
        seen[path.name] = name
        score = "0" if found[1] == "0" else f"{found[1]}+"
        named = _BCI_PART.get((path.stem.split("_")[-2:-1] or [""])[0].lower())
        folders = {part for one in relative.parts[:-1] if (part := _BCI_PART.get(one.lower()))}
        if len(parts := folders | ({named} if named else set())) > 1:
            problems.append(
                f"{name}: name and folders are of different parts ({', '.join(sorted(parts))})"
            )
        rows.append(Listed(path.name, score, path, part=next(iter(parts), None)))
    return rows, problems


def _of_one_stain(section: PatchesSection, paths: list[Path]) -> tuple[list[Path], list[str]]:
    """Return the images of BCI's stain that is asked for, and why that cannot be said."""
    root, wanted = section.path, section.stain
    by_stain: dict[str, list[Path]] = {}
    for path in paths:
        folders = [part.upper() for part in path.relative_to(root).parts[:-1]]
        stain = next((part for part in folders if part in _BCI_STAINS), "")
        by_stain.setdefault(stain, []).append(path)
    named = sorted(by_stain.keys() - {""})
    if wanted is None:
        if len(named) < 2:
            return paths, []
        return [], [
            "holds the images of both stains; add `stain: HE` or `stain: IHC` to the section"
        ]
    if wanted in by_stain:
        return by_stain[wanted], []
    if not named and root.name.upper() == wanted:  # the folder of this stain itself
        return paths, []
    have = f"of {named[0]} alone" if named else "without folders HE and IHC"
    return [], [f"holds images {have}, and `stain` is {wanted}; `path` is the folder of both"]


def list_ihc4bc(section: PatchesSection) -> Listing:
    """List `xxx_caseid_region_row_col.png` in class folders, or with a csv.

    The csv is one of `path,label`, or the set's own (`her2.pretraining.stained`). Neighbouring
    patches of this set overlap by half, so only a split by case avoids leakage.
    """
    if section.labels is None:
        rows, problems = list_folders(section)
        if rows and all(row.path.parent == section.path for row in rows):
            return [], [
                f"its {len(rows)} images are in no class folders; set `labels` to the set's csv"
            ]
    elif is_headless(section.labels, SUFFIXES):
        rows, problems = _ihc4bc_table(section, section.labels)
    else:
        rows, problems = _ihc4bc_labels(section, section.labels)
    result = []
    for row in rows:
        fields = row.path.stem.split("_")
        if len(fields) < 5 or not all(fields[-4:]):
            problems.append(f"{printable(row.id)}: is not named xxx_caseid_region_row_col")
            continue
        result.append(Listed(row.id, row.label, row.path, case=fields[-4]))
    return result, problems


def _ihc4bc_labels(section: PatchesSection, table: Path) -> Listing:
    named = _named_labels(section)
    sheet, problems = read_csv(table, ("path", "label"), words=named)
    if section.stained_dab is not None:
        problems.append(
            f"{table.name}: has labels of its own; remove `stained_dab`, `stained_share`"
        )
    if not sheet.cells:
        return [], problems
    paths, labels = sheet.cells["path"], sheet.cells["label"]
    problems += look_alikes_in("label", (one for one in labels if one not in named), folded)
    rows = [
        Listed(path, label, section.path / path) for path, label in zip(paths, labels, strict=True)
    ]
    return rows, problems + _missing(rows)


def _ihc4bc_table(section: PatchesSection, table: Path) -> Listing:
    """List the images of the set's own csv; discarded patches are left out, as in the set."""
    least = section.stained_share
    if least is None:
        return [], [
            f"{table.name}: its second column is no class but a mark of the annotators (a: the DAB "
            "analysis is right, 0: negative, d: discarded). Set `stained_dab`, the mean DAB from "
            "which a nucleus is stained, and `stained_share`, the share of stained nuclei from "
            "which a patch is positive; or name a csv `path,label` with labels of your own"
        ]
    found, problems = read_stained(table, section.stained_dab)
    kept = [row for row in found if row.mark != "d"]
    without = [row.row for row in kept if row.share is None and row.mark == "a"]
    if without:
        problems.append(
            f"{table.name}: {rows_in_words(without)}: accepted, but without nuclei, so that no "
            "class follows; mark them d, or remove them (HER2 has no DAB analysis: it needs a csv "
            "`path,label`)"
        )
    rows = [
        Listed(
            row.name,
            "positive" if row.mark == "a" and (row.share or 0) >= least else "negative",
            section.path / row.name,
        )
        for row in kept
    ]
    return rows, problems + _missing(rows)


LISTERS: dict[str, Callable[[PatchesSection], Listing]] = {
    "folders": list_folders,
    "csv": list_csv,
    "bci": list_bci,
    "ihc4bc": list_ihc4bc,
}


def _images(root: Path) -> Iterator[Path]:
    """Yield the image files below a folder, sorted, without the hidden ones of file managers."""
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            yield path


def read_csv(
    path: Path,
    columns: tuple[str, ...],
    *,
    optional: tuple[str, ...] = (),
    words: Collection[str] = (),
) -> tuple[Sheet, list[str]]:
    """Read a table of text; return it and its problems, without cells if columns are wrong.

    A cell of `columns` that means a missing value is a problem, unless it is one of `words`.
    """
    try:
        sheet = read_sheet(path, {*columns, *optional}, key="patches")
    except UserError as error:
        return Sheet((), {}, ()), [str(error)]
    problems = [f"{path.name}: {problem}" for problem in sheet.wrong_columns]
    if absent := [name for name in columns if name not in sheet.header]:
        have = printable(", ".join(filter(None, sheet.header)))
        problems.append(f"{path.name}: no column {', '.join(absent)}; its columns are {have}")
    if problems:
        return Sheet(sheet.header, {}, ()), problems
    problems += [f"{path.name}: {problem}" for problem in sheet.wrong_rows]
    for name in columns:
        cells = sheet.cells[name]
        for cell in dict.fromkeys(cells):
            if is_missing(cell) and cell not in words:
                at = [n for n, one in zip(sheet.numbers, cells, strict=True) if one == cell]
                what = f"{cell!r} means a missing value" if cell else "is empty"
                problems.append(f"{path.name}: {rows_in_words(at)}: column {name!r}: {what}")
    return sheet, problems


def look_alikes_in(column: str, cells: Iterable[str], key: Callable[[str], str]) -> list[str]:
    """Return a problem for each group of cells that differ in their spelling alone."""
    return [
        f"column {column!r}: {spelt(group)} differ in nothing but case, spaces, kinds of dashes or "
        "a spreadsheet's '.0'; write what is the same alike"
        for group in look_alikes(cells, key)
    ]


def _named_labels(section: PatchesSection) -> set[str]:
    """Return the labels that the config names, which are then meant as they are."""
    return {label for labels in (section.classes or {}).values() for label in labels}


def _missing(rows: list[Listed]) -> list[str]:
    """Return a problem for each file that is absent and each that is listed twice."""
    problems, seen = [], set()
    for row in rows:
        if is_missing(row.id):
            continue  # named already
        if row.path in seen:
            problems.append(f"{printable(row.id)}: is listed twice")
        elif why := path_problem(row.path):
            problems.append(f"{printable(row.id)}: the file {why}")
        seen.add(row.path)
    return problems
