"""What the Genomic Data Commons says of its files: the manifest and the sample sheet of a download.

The manifest of `gdc-client` has the digest and the size of every file, which an interrupted
download or a failing disk does not keep.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from her2.core.errors import UserError, problem_list
from her2.core.reading import path_problem
from her2.importing.sheets import SheetTable, read_sheet_file

AGAIN = "download it again"


@dataclass(frozen=True, slots=True)
class GdcFile:
    """A line of the manifest: id (the folder that gdc-client makes), name, MD5 (hex) and bytes."""

    id: str
    name: str
    md5: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GdcSample:
    """A line of the sample sheet."""

    name: str
    project: str
    sample_type: str


def read_manifest(path: Path) -> tuple[GdcFile, ...]:
    """Read the manifest of a download.

    Raises:
        UserError: it cannot be read, is another file of the GDC, or has cells that are not legal.
    """
    try:
        table = read_sheet_file(path, wanted=("id", "filename", "md5", "size"))
    except UserError as error:
        raise UserError(
            f"--manifest {error} A manifest has the columns id, filename, md5, size, state; the "
            "GDC's button Manifest makes it. A sample sheet is given as --sample-sheet."
        ) from None
    cells = [table.column(name) for name in ("id", "filename", "md5", "size")]
    problems, found = [], []
    for number, one, name, md5, size in zip(table.numbers, *cells, strict=True):
        if not re.fullmatch(r"[0-9a-fA-F]{32}", md5):
            problems.append(f"row {number}: md5 {md5!r} is not 32 hexadecimal digits")
        elif not re.fullmatch(r"[0-9]+", size):
            problems.append(f"row {number}: size {size!r} is not a number of bytes")
        else:
            found.append(GdcFile(one, name, md5.lower(), int(size)))
    if problems:
        raise problem_list(f"--manifest {path}: {len(problems)} problem(s)", problems)
    return tuple(found)


def read_sample_sheet(path: Path) -> dict[str, GdcSample]:
    """Read the sample sheet of a download: file name -> its project and sample type.

    Raises:
        UserError: it cannot be read, or is another file of the GDC.
    """
    try:
        table = read_sheet_file(path, wanted=("File Name", "Project ID"))
    except UserError as error:
        raise UserError(
            f"--sample-sheet {error} A sample sheet has the columns File Name, Project ID, "
            "Sample Type and others; the GDC's button Sample Sheet makes it."
        ) from None
    kinds = _optional(table, "Sample Type", "Tissue Type")
    rows = zip(table.column("File Name"), table.column("Project ID"), kinds, strict=True)
    return {name: GdcSample(name, project, kind) for name, project, kind in rows}


def file_problems(
    paths: Sequence[Path], listed: Iterable[GdcFile], *, md5: bool = True, threads: int = 1
) -> tuple[dict[Path, str], tuple[Path, ...]]:
    """Compare files with the manifest, and return what is wrong with some, and those not in it.

    Args:
        paths: the files.
        listed: lines of the manifest.
        md5: compare the contents too, which reads every file; else the sizes alone.
        threads: files that are read at the same time.
    """
    by_name = defaultdict(list)
    for one in listed:
        by_name[one.name].append(one)
    expected = {path: _meant(path, by_name[path.name]) for path in paths if by_name[path.name]}

    def check(path: Path) -> str:
        return _difference(path, expected[path], md5)

    with ThreadPoolExecutor(threads) as pool:
        done = pool.map(check, expected)
        try:
            words = [*tqdm(done, "checking files", len(expected), unit="file", disable=None)]
        except BaseException:  # Ctrl-C does not wait for the files to come
            pool.shutdown(cancel_futures=True)
            raise
    problems = {path: problem for path, problem in zip(expected, words, strict=True) if problem}
    return problems, tuple(path for path in paths if path not in expected)


def _meant(path: Path, lines: Sequence[GdcFile]) -> GdcFile:
    """Return the line whose id is the file's folder, as gdc-client makes it, else the first."""
    return next((one for one in lines if one.id == path.parent.name), lines[0])


def _difference(path: Path, one: GdcFile, md5: bool) -> str:
    if problem := path_problem(path):
        return problem
    try:
        size = path.stat().st_size
        if size != one.size_bytes:
            return f"has {size:,} bytes, and {one.size_bytes:,} by the manifest; {AGAIN}"
        if md5:
            with path.open("rb") as stream:
                found = hashlib.file_digest(
                    stream, lambda: hashlib.md5(usedforsecurity=False)
                ).hexdigest()
            if found != one.md5:
                return f"has the MD5 {found}, and {one.md5} by the manifest; {AGAIN}"
    except OSError as error:
        return f"cannot be read ({error.strerror}); {AGAIN}"
    return ""


def _optional(table: SheetTable, *names: str) -> list[str]:
    return [""] * len(table.rows) if table.find(*names) is None else table.column(*names)
