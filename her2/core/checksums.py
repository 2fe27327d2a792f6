"""Every stage: digests of large files, computed once for each state of the files.

An index is a folder of small JSON files, one for each path. It only saves time: it may be deleted,
and a folder that cannot be written to is the same as none.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from her2.core.errors import UserError
from her2.core.files import atomic_path

FOLDER = "checksums"
"""Name of the index in a cache."""
SETTLED_SECONDS = 2.0
"""A file that was written to later than this ago may change again without another time, because
some file systems count whole seconds. Its digest is not kept."""

State = list[list[int]]
"""Of each file: size, time of modification (ns), inode and, if asked for, time of change (ns)."""


def state_of(files: Iterable[Path], *, changes: bool) -> State:
    """Return the state of files, which is another one after they were written to or replaced.

    With `changes`, the time of the inode's change counts too. A copy that keeps times and is
    written over a file gives it the time of modification of its source, but cannot give it that
    one. It also changes with another hard link to the file, so it is of no use for products.

    Raises:
        OSError: a file is absent.
    """
    found = (path.stat() for path in files)
    return [
        [one.st_size, one.st_mtime_ns, one.st_ino, *([one.st_ctime_ns] if changes else [])]
        for one in found
    ]


def recall(index: Path, path: Path, state: State) -> str | None:
    """Return the digest that was kept for this state of a path, or None."""
    try:
        found = json.loads(_place(index, path).read_text(encoding="utf-8"))
        return str(found["sha256"]) if found["state"] == state else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def keep(index: Path, path: Path, state: State, sha256: str) -> None:
    """Keep the digest of a state of a path."""
    try:
        with atomic_path(_place(index, path), sync=False) as temporary:
            temporary.write_text(json.dumps({"state": state, "sha256": sha256}), encoding="utf-8")
    except UserError:  # e.g. the cache of a colleague, who lets others only read it
        return


def digest_of(index: Path, path: Path, state: State, compute: Callable[[], str]) -> str:
    """Return the digest of a path in a state: the kept one, or else it is computed.

    It is then kept, unless the files were written to just now.
    """
    found = recall(index, path, state)
    if found is not None:
        return found
    found = compute()
    latest = max((max(one[1], *one[3:]) for one in state), default=0)
    if time.time_ns() - latest > SETTLED_SECONDS * 1e9:
        keep(index, path, state, found)
    return found


def _place(index: Path, path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()
    return index / name[:2] / f"{name}.json"
