"""Raw slides to scores: the slides that somebody names, as a cohort.

They are slide files, folders of slides, or a manifest. The ids of files come from their names, and
such a slide is its own patient.
"""

import logging
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from her2.cohort.columns import MAX_ID_LENGTH
from her2.cohort.manifest import Cohort, SlideRow
from her2.cohort.reading import read_slides
from her2.core.crashes import reading
from her2.core.errors import SlideError, UserError, problem_list
from her2.core.paths import user_path
from her2.core.reading import path_problem
from her2.slides.backends import open_slide, slide_files

log = logging.getLogger(__name__)

MANIFEST_SUFFIXES = (".csv", ".parquet")
SLIDE_SUFFIXES = frozenset(
    (
        *(".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif", ".svslide", ".mrxs", ".vms", ".vmu"),
        *(".ndpis", ".dcm", ".png", ".jpg", ".jpeg", ".jp2", ".bmp", ".webp"),
    )
)
"""Suffixes by which a file of a folder is a slide whatever is in it, so that a damaged slide is in
the table with its reason. Any other file is one if a reader opens it."""
_MIRAX_INDEX = "Slidedat.ini"


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """The slides in a folder, sorted, and how many of its files are none."""

    slides: tuple[Path, ...]
    others: int


def find_slides(
    sources: Sequence[Path], root: Path | None = None, *, without: Collection[Path] = ()
) -> Cohort:
    """Return the slides that the sources name.

    Args:
        sources: slide files and folders, or one manifest (.csv, .parquet).
        root: where relative paths of a manifest start; default: its folder.
        without: folders that are not searched, such as the cache, which has pictures.

    Raises:
        UserError: a source does not exist or has no slide, ids are not unique, or the manifest has
            problems. All of them are named.
    """
    manifests = [path for path in sources if path.suffix.lower() in MANIFEST_SUFFIXES]
    if manifests and len(sources) > 1:
        raise UserError(
            f"{manifests[0]}: is a manifest, which is given alone; add the other slides as rows."
        )
    if manifests:
        return read_slides(manifests[0], root=root)
    if root is not None:
        raise UserError(
            f"--root {root}: is where the paths of a manifest start, and none is given."
        )
    problems: list[str] = []
    files: list[Path] = []
    for source in sources:
        problem = path_problem(source, "folder" if source.is_dir() else "file")
        if problem is not None:
            problems.append(f"{source}: {problem}")
        elif source.is_dir() and Path(f"{source.resolve()}.mrxs").is_file():
            log.info("%s: holds the data of the MIRAX slide beside it", source)
        elif source.is_dir():
            found = slides_in(source, without)
            files += found.slides
            log.info("%s: slides: %d, other files: %d", source, len(found.slides), found.others)
            if not found.slides:
                problems.append(
                    f"{source}: holds no file that is a slide; name the folder of the slides, or "
                    "a manifest with their paths"
                )
        else:
            files.append(source)
    if problems:
        raise problem_list("there is nothing to predict in some of what was given", problems)
    files = list(dict.fromkeys(path.absolute() for path in files))
    return named_slides(_without_parts(files))


def named_slides(files: Sequence[Path]) -> Cohort:
    """Return the cohort of slide files; ids come from the names, see `legal_id`.

    Raises:
        UserError: several files would have the same id, or a path cannot be one of a manifest.
    """
    owners: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        owners[legal_id(path.stem).casefold()].append(path)
    if shared := {name: paths for name, paths in owners.items() if len(paths) > 1}:
        raise problem_list(
            "slides are named by their files, and some would have one name; give a manifest with "
            "the columns slide_id and path instead",
            [f"{name}: {', '.join(map(str, sorted(paths)))}" for name, paths in shared.items()],
        )
    rows, problems = [], []
    for path in files:
        name, cell = legal_id(path.stem), str(path).replace("$", "$$")  # `$` begins a variable
        try:
            user_path(cell)
        except ValueError as problem:
            problems.append(f"{path}: {problem}")
        rows.append(SlideRow(name, cell, name, {}))
    if problems:
        raise problem_list("some slides have names that cannot be used", problems)
    return Cohort(tuple(sorted(rows, key=lambda row: row.slide_id)), Path("/"))


def legal_id(name: str) -> str:
    """Return a legal slide id that is as like a name as possible.

    Letters lose their accents, and each run of other characters becomes one `_`.
    """
    plain = unicodedata.normalize("NFKD", name.replace("ß", "ss"))
    plain = "".join(one for one in plain if not unicodedata.combining(one))
    legal = re.sub(r"[^A-Za-z0-9._-]+", "_", plain)
    return re.sub(r"^[^A-Za-z0-9]+", "", legal)[:MAX_ID_LENGTH].rstrip("_") or "slide"


def slides_in(folder: Path, without: Collection[Path] = ()) -> FoundFiles:
    """Return the slides in a folder and in the folders below it, but for those in `without`.

    Hidden files, the data of a MIRAX slide, and all but one of the files of a slide of several
    files are none of them.
    """
    candidates, others = [], 0
    for path in _files(folder, without):
        if path.suffix.lower() in SLIDE_SUFFIXES or _opens(path):
            candidates.append(path)
        else:
            others += 1
    slides = _without_parts(candidates)
    return FoundFiles(tuple(slides), others + len(candidates) - len(slides))


def _without_parts(candidates: Sequence[Path]) -> list[Path]:
    """Return the files that stand for a slide, without the others that belong to the same one."""
    parts: set[Path] = set()
    first: dict[frozenset[Path], Path] = {}
    for path in candidates:
        group = _slide_files(path)
        if group[0] == path:
            parts |= set(group[1:])
        elif first.setdefault(frozenset(group), path) != path:  # of a DICOM series
            parts.add(path)
    return [path for path in candidates if path not in parts]


def _files(folder: Path, without: Collection[Path]) -> Iterator[Path]:
    """Yield the files in a folder and below it, sorted; links to folders are followed once."""
    seen = {os.path.realpath(one) for one in without}
    for root, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        if _MIRAX_INDEX in names:  # a slide's data without the slide, or with it in a wrong place
            folders.clear()
            names = [name for name in names if name.lower().endswith(".mrxs")]
            if not names:
                log.warning("%s: data of a MIRAX slide; its .mrxs is not beside the folder", root)
        mirax = {Path(name).stem for name in names if name.lower().endswith(".mrxs")}
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n not in mirax)
        yield from (
            Path(root, name)
            for name in sorted(names)
            if not name.startswith(".") and Path(root, name).is_file()
        )


def _opens(path: Path) -> bool:
    try:
        with reading(str(path)):
            open_slide(path).close()
    except SlideError:
        return False
    return True


def _slide_files(path: Path) -> list[Path]:
    """Return all files of a slide; where they cannot be told, tiling says why."""
    try:
        with reading(str(path)):
            return slide_files(path)
    except SlideError:
        return [path]
