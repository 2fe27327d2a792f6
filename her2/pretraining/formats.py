"""Stage 1, pre-training data: the images, labels and cases of each patch data set's format."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from her2.config import PatchesSection

Part = Literal["train", "valid", "test"]
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")

_BCI_STEM = re.compile(r"_([0-3])\+?$")
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
    table, problems = read_csv(section.path, ("path", "label"))
    if problems:
        return [], problems
    if "case_id" in table.columns:
        blank = table["case_id"].null_count()
        if 0 < blank < len(table):
            problems.append(
                f"case_id is blank in {blank} of {len(table)} rows; fill them in, or remove the "
                "column"
            )
    rows = []
    for record in table.to_dicts():
        path = section.path.parent / str(record["path"])
        rows.append(Listed(str(record["path"]), str(record["label"]), path, record.get("case_id")))
    return rows, problems + _missing(rows)


def list_bci(section: PatchesSection) -> Listing:
    """List BCI (Liu 2022): `00000_train_1+.png` is number, part, score; patients are unknown."""
    rows, problems = [], []
    seen: dict[str, str] = {}
    for path in _images(section.path):
        name = path.relative_to(section.path).as_posix()
        found = _BCI_STEM.search(path.stem)
        if found is None:
            problems.append(f"{name}: the name must end in a score, as in 00000_train_1+.png")
            continue
        if path.name in seen:
            problems.append(
                f"{name}: has the same name as {seen[path.name]}; the H&E and IHC images of a pair "
                "share a name, so set `path` to the folder of one stain"
            )
            continue
        seen[path.name] = name
        score = "0" if found[1] == "0" else f"{found[1]}+"
        part = _BCI_PART.get(path.stem.split("_")[-2].lower())
        rows.append(Listed(path.name, score, path, part=part))
    return rows, problems


def list_ihc4bc(section: PatchesSection) -> Listing:
    """List `xxx_caseid_region_row_col.png` in class folders, or with a csv of `path,label`.

    Neighbouring patches of this set overlap by half, so only a split by case avoids leakage.
    """
    problems: list[str] = []
    if section.labels is None:
        rows, problems = list_folders(section)
    else:
        table, problems = read_csv(section.labels, ("path", "label"))
        if problems:
            return [], problems
        rows = [
            Listed(str(r["path"]), str(r["label"]), section.path / str(r["path"]))
            for r in table.to_dicts()
        ]
        problems = _missing(rows)
    result = []
    for row in rows:
        fields = row.path.stem.split("_")
        if len(fields) < 5 or not all(fields[-4:]):
            problems.append(f"{row.id}: is not named xxx_caseid_region_row_col")
            continue
        result.append(Listed(row.id, row.label, row.path, case=fields[-4]))
    return result, problems


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


def read_csv(path: Path, columns: tuple[str, ...]) -> tuple[pl.DataFrame, list[str]]:
    """Read a table of text; return it and its problems.

    Blanks are null, and a problem where they are in `columns`.
    """
    try:
        table = pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        return pl.DataFrame(), [f"{path.name}: cannot be read ({error})"]
    absent = [name for name in columns if name not in table.columns]
    if absent:
        have = ", ".join(table.columns)
        return table, [f"{path.name}: no column {', '.join(absent)}; its columns are {have}"]
    blank = table.with_row_index("row", 2).filter(pl.any_horizontal(pl.col(columns).is_null()))
    needed = " or ".join(columns)
    return table, [f"{path.name}: row {row}: blank {needed}" for row in blank["row"].to_list()]


def _missing(rows: list[Listed]) -> list[str]:
    """Return a problem for each file that is absent and each that is listed twice."""
    problems, seen = [], set()
    for row in rows:
        if row.path in seen:
            problems.append(f"{row.id}: is listed twice")
        elif not row.path.is_file():
            problems.append(f"{row.id}: the file does not exist")
        seen.add(row.path)
    return problems
