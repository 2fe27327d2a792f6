"""Names in a sheet and files in a folder: which slide is meant."""

import os
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from her2.core.errors import UserError
from her2.core.spelling import folded, folded_id
from her2.importing.labels import without_accents

SLIDE_SUFFIXES = frozenset(
    (".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".ndpis", ".mrxs", ".scn", ".svslide",
     ".bif", ".czi", ".dcm", ".jpg", ".jpeg", ".png")
)  # fmt: skip
"""Suffixes of files that can be slides. Whether one is, is seen when it is opened."""
UNFINISHED = (".partial", ".part", ".crdownload", ".tmp", ".download", ".aria2")
RESCAN = re.compile(
    r"[ _.\-–]*\(\d+\)$|[ _.\-–]+(?:re-?scan[ _.\-]?\d*|(?:kopie|copy|copie|copia)(?: ?\d+)?)$"
    r"|^(?:kopie von|copy of|copie de|c[oó]pia de) +",
    re.IGNORECASE,
)
"""What scanners and copies add to a file's name."""


@dataclass(frozen=True, slots=True)
class Matched:
    """Which files the names of a sheet mean.

    Attributes:
        files: name -> its files, for names that have some.
        without: the names without a file.
        unnamed: the files without a name.
        ambiguous: file -> the names that it spells equally well, and so belongs to none.
    """

    files: dict[str, list[Path]]
    without: tuple[str, ...]
    unnamed: tuple[Path, ...]
    ambiguous: dict[Path, tuple[str, ...]] = field(default_factory=dict)


def slide_files(folder: Path, suffixes: Iterable[str] = SLIDE_SUFFIXES) -> list[Path]:
    """Return the files below a folder that can be slides, sorted, without hidden ones.

    What lies in the folder beside a MIRAX slide (`A.mrxs`, `A/`) is a part of the slide. Links are
    followed, and a folder that several lead to is looked through once.
    """
    wanted = frozenset(suffixes)
    return sorted(path for path in _files(folder) if path.suffix.lower() in wanted)


def unfinished_files(folder: Path) -> list[Path]:
    """Return the files below a folder that a download has not finished, sorted."""
    return sorted(path for path in _files(folder) if path.name.lower().endswith(UNFINISHED))


def scan_group(path: Path) -> str:
    """Return the name that the scans of one glass have in common: without `_rescan`, `(2)`."""
    before, name = "", path.stem
    while before != name and name:
        before, name = name, RESCAN.sub("", name).strip()
    return name or path.stem


def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a name, as compared with others: `H23-007 Ä1` is h23, 7, ae1."""
    words = re.split(r"[\W_]+", folded(without_accents(name)))
    return tuple(folded_id(word) for word in words if word)


def match_by_name(names: Iterable[str], files: Iterable[Path]) -> Matched:
    """Return the files that each name of a sheet means.

    A file belongs to a name that is its whole stem, as written or spelt alike (case, spaces and
    other signs, leading zeros of numbers, umlauts); else to that of its stem without what a rescan
    or a copy adds; else to the name of the most words that its stem begins with:
    `H2301234 A1 HE.svs` to `H2301234 A1` rather than `H2301234`.
    """
    listed = list(dict.fromkeys(names))
    spelt = [_by_key(listed, key) for key in _SPELLINGS]
    found: dict[str, list[Path]] = {name: [] for name in listed}
    unnamed, ambiguous = [], {}
    for path in files:
        owners = _owners(path, spelt)
        if len(owners) == 1:
            found[owners[0]].append(path)
        elif owners:
            ambiguous[path] = tuple(owners)
        else:
            unnamed.append(path)
    return Matched(
        {name: paths for name, paths in found.items() if paths},
        tuple(name for name, paths in found.items() if not paths),
        tuple(unnamed),
        ambiguous,
    )


_SPELLINGS: tuple[Callable[[str], Hashable], ...] = (str, folded, folded_id, words_of)
"""How far two spellings of a name may differ, the strictest first."""


def _by_key(names: Iterable[str], key: Callable[[str], Hashable]) -> dict[Hashable, list[str]]:
    found: dict[Hashable, list[str]] = {}
    for name in names:
        if words_of(name):
            found.setdefault(key(name), []).append(name)
    return found


def _owners(path: Path, spelt: Sequence[dict[Hashable, list[str]]]) -> list[str]:
    """Return the names that a file spells best; several if it spells them equally well."""
    stems = dict.fromkeys((path.stem, scan_group(path)))
    for stem in stems:
        for key, names in zip(_SPELLINGS, spelt, strict=True):
            if owners := names.get(key(stem)):
                return owners
    for words in map(words_of, stems):
        for count in range(len(words) - 1, 0, -1):
            if owners := spelt[-1].get(words[:count]):
                return owners
    return []


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder; not hidden ones, nor those that a MIRAX slide consists of.

    Raises:
        UserError: a folder cannot be read, so that slides would be missed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(
            f"{error.filename}: cannot be read ({error.strerror}), so its slides would be missed; "
            "change its permissions or move it elsewhere."
        ) from None

    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        status = Path(parent).stat()
        if (place := (status.st_dev, status.st_ino)) in seen:
            folders.clear()
            continue
        seen.add(place)
        mirax = {Path(name).stem for name in names if name.lower().endswith(".mrxs")}
        kept = (one for one in folders if one not in mirax and not one.startswith("."))
        folders[:] = sorted(kept, key=lambda name: (Path(parent, name).is_symlink(), name))
        yield from (Path(parent, name) for name in names if not name.startswith("."))
