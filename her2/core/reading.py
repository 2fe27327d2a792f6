"""Every stage: files that others made are looked at before they are opened.

A file may be anything: a named pipe (reading it waits for ever), a pointer of Git LFS in place of
the file, a text of any size. `file_problem` finds what needs no knowledge of the format.
"""

import errno
import os
import stat
from pathlib import Path
from typing import Any

from her2.core.errors import UserError, first_line
from her2.core.files import parse_json
from her2.core.sharing import check_readable

JSON_BYTES = 1 << 30
"""Largest JSON file that is read."""

LFS_POINTER = (
    "is a Git LFS pointer, not the file itself; run `git lfs pull` in the folder it was cloned to"
)
AGAIN = (
    "Delete it and run snakemake again; `her2 cache verify --quarantine` finds all damaged files "
    "of the cache and moves them aside."
)
"""What mends a damaged file that her2 made."""

_POINTER = b"version https://git-lfs"
_POINTER_BYTES = 1024
"""Git LFS makes pointers that are shorter than this."""


def file_problem(path: Path, *, limit_bytes: int | None = None) -> str | None:
    """Return why a file cannot be what it is taken for, or None: reading it is safe to try.

    Args:
        path: the file; a link is followed.
        limit_bytes: largest size that makes sense for such a file.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return "is a folder, not a file"
        if not stat.S_ISREG(status.st_mode):
            return "is a named pipe or device, not a file"
        if limit_bytes is not None and status.st_size > limit_bytes:
            found, limit = status.st_size / 1e9, limit_bytes / 1e9
            return f"has {found:,.1f} GB, more than the {limit:,.1f} GB that are allowed"
        if is_lfs_pointer(path):
            return LFS_POINTER
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def is_lfs_pointer(path: Path) -> bool:
    """Tell whether a file is a pointer of Git LFS; only files of that size are read.

    Raises:
        OSError: the file cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size >= _POINTER_BYTES:
        return False
    return path.read_bytes().startswith(_POINTER)


def check_regular(path: Path) -> None:
    """Raise an OSError unless a path is that of a file; to open a named pipe could wait for ever.

    Raises:
        OSError: it does not exist, or is a folder, a named pipe, a device or a pointer of Git LFS.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a named pipe or device, not a file", str(path))
    if is_lfs_pointer(path):
        raise OSError(errno.EINVAL, f"it {LFS_POINTER}", str(path))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is absent, damaged, too large or nested too deeply, has a key twice, or
            may not be read.
    """
    check_readable(path)
    problem = file_problem(path, limit_bytes=JSON_BYTES)
    if problem is None:
        try:
            return parse_json(path.read_bytes())
        except (OSError, ValueError, RecursionError, MemoryError) as error:
            problem = f"cannot be read ({first_line(error)})"
    raise UserError(f"{path}: {problem}. {AGAIN}")
