"""Names in a sheet and files in a folder: which slide is meant."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from her2.core.spelling import folded, folded_id
from her2.importing.labels import without_accents

SLIDE_SUFFIXES = frozenset(
    (".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".ndpis", ".mrxs", ".scn", ".svslide",
     ".bif", ".czi", ".dcm", ".jpg", ".jpeg", ".png")
)  # fmt: skip
"""Suffixes of files that can be slides. Whether one is, is seen when it is opened."""
UNFINISHED = (".partial", ".part", ".crdownload", ".tmp", ".download", ".aria2")
RESCAN = re.compile(
    r"(?i)[ _.\-]*(?:\((?P<copy>\d+)\)|re-?scan[ _.\-]?(?P<scan>\d*)|(?P<word>kopie|copy|copie)"
    r"(?: \(?\d+\)?)?)$|^(?:kopie von|copy of|copie de) +"
)
"""What scanners and copies add to a file's name."""


@dataclass(frozen=True, slots=True)
class Matched:
    """Name -> its files, the names without a file, and the files without a name."""

    files: dict[str, list[Path]]
    without: tuple[str, ...]
    unnamed: tuple[Path, ...]


def slide_files(folder: Path, suffixes: Iterable[str] = SLIDE_SUFFIXES) -> list[Path]:
    """Return the files below a folder that can be slides, sorted, without hidden ones.

    What lies in the folder beside a MIRAX slide (`A.mrxs`, `A/`) is a part of the slide.
    """
    wanted = frozenset(suffixes)
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        mirax = {Path(name).stem for name in names if name.lower().endswith(".mrxs")}
        folders[:] = sorted(one for one in folders if one not in mirax and not one.startswith("."))
        found += [
            Path(parent, name)
            for name in names
            if Path(name).suffix.lower() in wanted and not name.startswith(".")
        ]
    return sorted(found)


def unfinished_files(folder: Path) -> list[Path]:
    """Return the files below a folder that a download has not finished, sorted."""
    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(UNFINISHED)
    )


def scan_group(path: Path) -> str:
    """Return the name that the scans of one glass have in common: without `_rescan`, `(2)`."""
    before, name = "", path.stem
    while before != name:
        before, name = name, RESCAN.sub("", name).strip()
    return name or path.stem


def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a name, as compared with others: `H23-007 Ä1` is h23, 7, ae1."""
    words = re.split(r"[\W_]+", folded(without_accents(name)))
    return tuple(folded_id(word) for word in words if word)


def match_by_name(names: Iterable[str], files: Iterable[Path]) -> Matched:
    """Return the files that each name of a sheet means.

    A file belongs to a name that is its whole stem, as written or spelt alike (case, spaces,
    zeros, umlauts); else to the longest name that its words begin with: `H2301234_A1_HE.svs` to
    `H2301234 A1` rather than `H2301234`. What scanners and copies add to a stem does not count.
    """
    listed = list(dict.fromkeys(names))
    exact: dict[str, str] = {}
    for key in (str, folded, folded_id):
        for name in listed:
            exact.setdefault(key(name), name)
    by_words: dict[tuple[str, ...], str] = {}
    for name in listed:
        by_words.setdefault(words_of(name), name)
    found: dict[str, list[Path]] = {name: [] for name in listed}
    unnamed = []
    for path in files:
        stems = dict.fromkeys((path.stem, scan_group(path)))
        owner = next(
            (
                exact[key]
                for stem in stems
                for key in (stem, folded(stem), folded_id(stem))
                if key in exact
            ),
            None,
        )
        if owner is None:
            owner = next(
                (
                    by_words[words[:count]]
                    for words in map(words_of, stems)
                    for count in range(len(words), 0, -1)
                    if words[:count] in by_words
                ),
                None,
            )
        if owner is None:
            unnamed.append(path)
        else:
            found[owner].append(path)
    return Matched(
        {name: paths for name, paths in found.items() if paths},
        tuple(name for name, paths in found.items() if not paths),
        tuple(unnamed),
    )
