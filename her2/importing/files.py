"""Files of a data set wherever they lie in it, and names in a sentence."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from her2.core.errors import UserError
from her2.core.spelling import printable

_OPEN_IN_OFFICE = "~$"
"""Begins the name of what a spreadsheet program puts beside a workbook while it is open."""


def files_below(folder: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """Return the files below a folder with names that are wanted, sorted, without hidden ones.

    Unlike `matching.slide_files`, this also looks into the folders that MIRAX slides consist of.

    Raises:
        UserError: a folder cannot be read, so that files would be missed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(
            f"{error.filename}: cannot be read ({error.strerror}), so its files would be missed; "
            "change its permissions or move it elsewhere."
        ) from None

    found, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        status = Path(parent).stat()
        if (place := (status.st_dev, status.st_ino)) in seen:  # a link into a folder above
            folders.clear()
            continue
        seen.add(place)
        # A folder before the links to it, so that its files have their own paths.
        folders.sort(key=lambda name: (Path(parent, name).is_symlink(), name))
        found += [
            Path(parent, name)
            for name in names
            if wanted(name) and not name.startswith((".", _OPEN_IN_OFFICE))
        ]
    return sorted(found)


def listed(names: Iterable[str], *, shown: int = 8) -> str:
    """Return the first of some names, joined by commas, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - shown} more" if len(every) > shown else ""
    return printable(", ".join(every[:shown])) + more
