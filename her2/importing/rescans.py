"""Several files of one glass: copies, which are one slide, and re-scans, which a person chooses."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from her2.core.crashes import reading
from her2.core.errors import SlideError
from her2.core.spelling import folded
from her2.importing.matching import RESCAN, scan_group
from her2.slides.fingerprint import fingerprint

Choice = Literal["first", "last", "all"]


@dataclass(frozen=True, slots=True)
class ScanGroup:
    """Files of one case whose names differ only in what scanners and copies add.

    Attributes:
        name: the name without these marks.
        files: the files, in the order of their numbers: a name without a mark is the first.
        numbers: the number of each file.
    """

    name: str
    files: tuple[Path, ...]
    numbers: tuple[int, ...]

    def chosen(self, choice: Choice) -> tuple[Path, ...]:
        """Return the files that a choice keeps; several of one number if it is not clear which."""
        if choice == "all":
            return self.files
        wanted = self.numbers[0 if choice == "first" else -1]
        return tuple(
            path for path, number in zip(self.files, self.numbers, strict=True) if number == wanted
        )


def scan_number(path: Path) -> int:
    """Return the number of a scan by its name: 0 without a mark, 1 for `_rescan`, 2 for `(2)`."""
    number, name = 0, path.stem
    while (mark := RESCAN.search(name)) and mark[0]:
        digits = re.findall(r"\d+", mark[0])
        number += int(digits[-1]) if digits else 1
        rest = f"{name[: mark.start()]}{name[mark.end() :]}".strip()
        if not rest:
            break
        name = rest
    return number


def scan_groups(files: Mapping[str, Sequence[Path]]) -> list[ScanGroup]:
    """Return the glasses with several scans.

    Args:
        files: name of a case (or slide) -> its files, without copies.
    """
    found = []
    for paths in files.values():
        groups: dict[str, list[Path]] = defaultdict(list)
        for path in paths:
            groups[folded(scan_group(path))].append(path)
        for same in groups.values():
            # Equal names in two folders, or with two suffixes, are no re-scans by their names.
            if len({path.stem for path in same}) > 1:
                ordered = sorted(same, key=lambda path: (scan_number(path), path))
                numbers = tuple(map(scan_number, ordered))
                found.append(ScanGroup(scan_group(ordered[0]), tuple(ordered), numbers))
    return found


def copies_of(files: Sequence[Path]) -> list[list[Path]]:
    """Return the groups of files with the same content, each with the plainest name first.

    Only files of equal size are read. A file that cannot be read is a copy of none.
    """
    sizes: dict[int, list[Path]] = defaultdict(list)
    for path in files:
        sizes[path.stat().st_size if path.is_file() else -1].append(path)
    contents: dict[str, list[Path]] = defaultdict(list)
    for size, same in sizes.items():
        if size <= 0 or len(same) < 2:
            continue
        for path in same:
            try:
                with reading(str(path)):
                    contents[fingerprint(path)].append(path)
            except SlideError:  # its opening says so later
                continue
    return [
        sorted(same, key=lambda path: (scan_number(path), len(path.name), path))
        for same in contents.values()
        if len(same) > 1
    ]
