"""Files of a data set wherever they lie in it, and names in a sentence."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from her2.core.errors import UserError
from her2.core.spelling import printable


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

    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder, onerror=refuse)
        for name in names
        if wanted(name) and not name.startswith(".")
    )


def listed(names: Iterable[str], *, shown: int = 8) -> str:
    """Return the first of some names, joined by commas, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - shown} more" if len(every) > shown else ""
    return printable(", ".join(every[:shown])) + more
