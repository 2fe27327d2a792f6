"""Every stage: folders for temporary files, which no killed process leaves behind for ever."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def swept_folder(root: Path, prefix: str) -> Iterator[Path]:
    """Yield a new folder in `root`, removed when the block ends.

    Folders of the same prefix whose processes were killed are removed first.

    Raises:
        OSError: `root` is not a writable folder.
    """
    _sweep(root, prefix)
    with (
        tempfile.TemporaryDirectory(prefix=prefix, dir=root, ignore_cleanup_errors=True) as name,
        (Path(name) / "lock").open("w") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the process ends
        yield Path(name)


def _sweep(root: Path, prefix: str) -> None:
    for lock in root.glob(f"{prefix}*/lock"):
        try:
            with lock.open("w") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:  # in use, or owned by another user
            continue
