"""Names in a sheet and files in a folder: which slide is meant."""

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from her2.core.listing import files_below
from her2.core.spelling import SPELLINGS, words_of

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
    return sorted(path for path in files_below(folder, "slides") if path.suffix.lower() in wanted)


def unfinished_files(folder: Path) -> list[Path]:
    """Return the files below a folder that a download has not finished, sorted."""
    return sorted(
        path for path in files_below(folder, "slides") if path.name.lower().endswith(UNFINISHED)
    )


def scan_group(path: Path) -> str:
    """Return the name that the scans of one glass have in common: without `_rescan`, `(2)`."""
    before, name = "", path.stem
    while before != name and name:
        before, name = name, RESCAN.sub("", name).strip()
    return name or path.stem


def match_by_name(names: Iterable[str], files: Iterable[Path]) -> Matched:
    """Return the files that each name of a sheet means.

    A file belongs to a name that is its whole stem, as written or spelt alike (case, spaces and
    other signs, leading zeros of numbers, umlauts); else to that of its stem without what a rescan
    or a copy adds; else to the name of the most words that its stem begins with:
    `H2301234 A1 HE.svs` to `H2301234 A1` rather than `H2301234`.
    """
    listed = list(dict.fromkeys(names))
    spelt = [_by_key(listed, key) for key in SPELLINGS]
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
        for key, names in zip(SPELLINGS, spelt, strict=True):
            if owners := names.get(key(stem)):
                return owners
    for words in map(words_of, stems):
        for count in range(len(words) - 1, 0, -1):
            if owners := spelt[-1].get(words[:count]):
                return owners
    return []
