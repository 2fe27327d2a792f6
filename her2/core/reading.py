"""Every stage: files and folders are looked at before they are opened or written.

A file may be anything: a named pipe (reading it waits for ever), a pointer of Git LFS in place of
the file, a text of any size. `path_problem` finds what needs no knowledge of the format.
"""

import errno
import os
import stat
from pathlib import Path
from typing import Any, Literal

from her2.core.errors import UserError, first_line
from her2.core.files import parse_json
from her2.core.sharing import check_readable

JSON_BYTES = 1 << 30
"""Largest JSON file that is read."""

LFS_POINTER = (
    "is a Git LFS pointer, not the file itself; run `git lfs pull` in the folder it was cloned to"
)
MAKE_AGAIN = (
    "Delete it and run snakemake again; `her2 cache verify --quarantine` finds all damaged files "
    "of the cache and moves them aside."
)
"""What mends a damaged file that her2 made."""

ABSENT = "does not exist"
"""What `path_problem` says where there is nothing."""

Kind = Literal["file", "folder", "file or folder"]

_KINDS = {
    stat.S_IFIFO: "is a named pipe",
    stat.S_IFSOCK: "is a socket",
    stat.S_IFCHR: "is a device",
    stat.S_IFBLK: "is a device",
}
_POINTER = b"version https://git-lfs"
_POINTER_BYTES = 1024
"""Git LFS makes pointers that are shorter than this."""


def path_problem(path: Path, kind: Kind = "file", *, limit_bytes: int | None = None) -> str | None:
    """Return why a path cannot be read as what it should be, with the fix; None if it can.

    The first link or folder that is in the way is named. `limit_bytes` is the largest size that
    makes sense for such a file.
    """
    try:
        found = path.stat()
    except PermissionError:
        return f"is in a folder that may not be entered ({_closed_folder(path)}); ask its owner"
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            return f"is a link to {str(path.readlink())!r}, which does not exist"
        return ABSENT
    except (OSError, ValueError) as error:
        return f"cannot be looked up ({getattr(error, 'strerror', None) or error})"
    if stat.S_IFMT(found.st_mode) in _KINDS:
        return f"{_KINDS[stat.S_IFMT(found.st_mode)]}, not a {kind}"
    if stat.S_ISDIR(found.st_mode):
        if kind == "file":
            return "is a folder, not a file"
        if not os.access(path, os.R_OK | os.X_OK):
            return "is a folder that may not be read; change its permissions or ask its owner"
        return None
    if kind == "folder":
        return "is a file, not a folder"
    if not os.access(path, os.R_OK):
        return "may not be read; change its permissions or ask its owner"
    if limit_bytes is not None and found.st_size > limit_bytes:
        size, limit = found.st_size / 1e9, limit_bytes / 1e9
        return f"has {size:,.1f} GB, more than the {limit:,.1f} GB that are allowed"
    try:
        return LFS_POINTER if is_lfs_pointer(path) else None
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _closed_folder(path: Path) -> Path:
    """Return the outermost folder above `path` that this user may not enter."""
    above = reversed(path.absolute().parents)
    return next((folder for folder in above if not os.access(folder, os.X_OK)), path.parent)


def write_problem(folder: Path) -> str | None:
    """Return why a folder cannot be written, or made where it is not yet; None if it can."""
    for path in (folder, *folder.absolute().parents):
        try:
            mode = path.lstat().st_mode
        except PermissionError:
            return f"is in a folder that may not be entered ({_closed_folder(path)})"
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            return f"cannot be looked up ({error.strerror})"
        if stat.S_ISLNK(mode) and not path.exists():
            return f"cannot be written: {path} is a link to an absent {str(path.readlink())!r}"
        if not path.is_dir():
            return f"cannot be written: {path} is not a folder"
        if not os.access(path, os.W_OK | os.X_OK):
            return f"cannot be written: {path} may not be written; change its permissions"
        return None
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
        raise OSError(errno.EINVAL, f"it {_KINDS[stat.S_IFMT(mode)]}, not a file", str(path))
    if is_lfs_pointer(path):
        raise OSError(errno.EINVAL, f"it {LFS_POINTER}", str(path))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is absent, damaged, too large or nested too deeply, has a key twice, or
            may not be read.
    """
    check_readable(path)
    problem = path_problem(path, limit_bytes=JSON_BYTES)
    if problem is None:
        try:
            return parse_json(path.read_bytes())
        except (OSError, ValueError, RecursionError, MemoryError) as error:
            problem = f"cannot be read ({first_line(error)})"
    raise UserError(f"{path}: {problem}. {MAKE_AGAIN}")
