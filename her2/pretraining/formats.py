"""Stage 1, pre-training data: how each patch data set names its images, labels and cases."""

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
    """A patch as its format names it; the pixels are not read yet."""

    id: str
    label: str
    path: Path
    case: str | None = None
    part: Part | None = None


Listing = tuple[list[Listed], list[str]]
"""The patches, and what is wrong."""


def list_folders(section: PatchesSection) -> Listing:
    """`path/{label}/**/image`; cases are unknown."""
    root = section.path
    rows, problems = [], []
    for path in _images(root):
        relative = path.relative_to(root)
        if len(relative.parts) == 1:
            problems.append(f"{relative}: lies in no class folder")
        rows.append(Listed(relative.as_posix(), relative.parts[0], path))
    filled = {row.label for row in rows}
    problems += [
        f"{folder.name}/: holds no image"
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".") and folder.name not in filled
    ]
    return rows, problems


def list_csv(section: PatchesSection) -> Listing:
    """Columns `path` (relative to the file, or absolute), `label` and, optionally, `case_id`."""
    table, problems = read_csv(section.path, ("path", "label"))
    if problems:
        return [], problems
    if "case_id" in table.columns:
        blank = table["case_id"].null_count()
        if 0 < blank < len(table):
            problems.append(
                f"case_id is blank in {blank} of {len(table)} rows: fill it, or drop the column"
            )
    rows = []
    for record in table.to_dicts():
        path = section.path.parent / str(record["path"])
        rows.append(Listed(str(record["path"]), str(record["label"]), path, record.get("case_id")))
    return rows, problems + _missing(rows)


def list_bci(section: PatchesSection) -> Listing:
    """`00000_train_1+.png` (Liu 2022): number, part, score. The set names no patient."""
    rows, problems = [], []
    seen: dict[str, str] = {}
    for path in _images(section.path):
        name = path.relative_to(section.path).as_posix()
        found = _BCI_STEM.search(path.stem)
        if found is None:
            problems.append(f"{name}: the name does not end in a score, as 00000_train_1+.png does")
            continue
        if path.name in seen:
            problems.append(
                f"{name}: has the name of {seen[path.name]}; H&E and IHC pairs share their names, "
                "so let `path` be the folder of one stain"
            )
            continue
        seen[path.name] = name
        score = "0" if found[1] == "0" else f"{found[1]}+"
        part = _BCI_PART.get(path.stem.split("_")[-2].lower())
        rows.append(Listed(path.name, score, path, part=part))
    return rows, problems


def list_ihc4bc(section: PatchesSection) -> Listing:
    """`xxx_caseid_region_row_col.png` in class folders, or with a csv of `path,label`.

    Neighbouring patches of this set overlap by half, so only a split by case is honest.
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
    """Image files below a folder, sorted; hidden ones (of file managers) are none."""
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            yield path


def read_csv(path: Path, columns: tuple[str, ...]) -> tuple[pl.DataFrame, list[str]]:
    """A table of text, and what is wrong with it; blanks are null, only in other columns legal."""
    try:
        table = pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        return pl.DataFrame(), [f"{path.name}: cannot be read ({error})"]
    absent = [name for name in columns if name not in table.columns]
    if absent:
        have = ", ".join(table.columns)
        return table, [f"{path.name}: no column {', '.join(absent)}; it has {have}"]
    blank = table.with_row_index("row", 2).filter(pl.any_horizontal(pl.col(columns).is_null()))
    return table, [f"{path.name}: row {row}: blank" for row in blank["row"].to_list()]


def _missing(rows: list[Listed]) -> list[str]:
    """Files that are absent, and files that are named twice."""
    problems, seen = [], set()
    for row in rows:
        if row.path in seen:
            problems.append(f"{row.id}: is listed twice")
        elif not row.path.is_file():
            problems.append(f"{row.id}: there is no such file")
        seen.add(row.path)
    return problems
