"""Cohorts and features of others: the files below a folder."""

import os
from collections.abc import Iterator
from pathlib import Path

from her2.core.errors import UserError


def files_below(folder: Path, what: str) -> Iterator[Path]:
    """Yield the files below a folder; not hidden ones, nor those that a MIRAX slide consists of.

    Links are followed, and a folder that several lead to is looked through once.

    Raises:
        UserError: a folder cannot be read, so that `what` (slides) would be missed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(
            f"{error.filename}: cannot be read ({error.strerror}), so its {what} would be missed; "
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
