"""Stage 1, embed: slides copied to the node's local disk, one slide ahead of reading.

OpenSlide reads a slide in many small pieces, which a network disk serves slowly, while copying the
file first is one long read. Copying changes neither the slide's fingerprint nor its features.
"""

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from her2.core.errors import UserError
from her2.core.paths import filled_in
from her2.core.scratch import swept_folder
from her2.slides.backends import slide_files
from her2.slides.slide import Slide

log = logging.getLogger(__name__)

PREFIX = "her2-slides-"
RESERVE_BYTES = 256 << 20
"""Space left free on the scratch disk for the job's other files."""


class Stager:
    """The slides of a job, opened in order, each from a local copy if there is room for one."""

    def __init__(self, folder: Path, paths: Sequence[Path]) -> None:
        self._folder = folder
        self._next = dict(pairwise(paths))
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="stager")
        self._copies: dict[Path, Future[Path | None]] = {}
        self._number = self._opened = self._copied = 0
        self._lock = threading.Lock()

    def open(self, path: Path) -> Slide:
        """Open a slide, and start to copy the next one.

        Raises:
            SlideError: it cannot be opened, or files are missing.
        """
        with self._lock:
            ahead = self._copies.pop(path, None)
            copy = ahead.result() if ahead is not None else None
            if copy is None:  # the first slide, or no room while the previous one was open
                copy = self._copier.submit(self._copy, path, last=True).result()
            after = self._next.get(path)
            if after is not None and after not in self._copies:
                self._copies[after] = self._copier.submit(self._copy, after, last=False)
            self._opened += 1
            self._copied += copy is not None
            return Slide(path) if copy is None else _Copy(copy)

    def close(self) -> None:
        """Stop copying and log how many slides were copied; `staged` removes the folder."""
        self._copier.shutdown(wait=True, cancel_futures=True)
        log.info("scratch disk %s: %d of %d slides were read from copies there",
                 self._folder.parent, self._copied, self._opened)  # fmt: skip

    def _copy(self, path: Path, *, last: bool) -> Path | None:
        """Copy a slide and return the copy, or None if the slide is read in place."""
        self._number += 1
        target = self._folder / str(self._number)
        try:
            if _same_disk(path, self._folder):
                return None
            files = slide_files(path)
            size = sum(file.stat().st_size for file in files)
            free = shutil.disk_usage(self._folder).free - RESERVE_BYTES
            if size > free:
                if last:
                    log.warning(
                        "%s: read in place: the slide has %.1f GB, and the scratch disk (%s) %.1f "
                        "GB free", path.name, size / 1e9, self._folder, max(0, free) / 1e9,
                    )  # fmt: skip
                return None
            for file in files:
                goal = target / file.relative_to(path.parent)
                goal.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, goal)
        except OSError as error:  # a quota or a vanished file: opening it reports the cause
            shutil.rmtree(target, ignore_errors=True)
            if last:
                log.warning("%s: read in place: it cannot be copied to the scratch disk (%s): %s",
                            path.name, self._folder, error)  # fmt: skip
            return None
        return target / path.name


class _Copy(Slide):
    """A slide that is deleted when it is closed."""

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.path.parent, ignore_errors=True)


@contextmanager
def staged(scratch: str | None, paths: Sequence[Path]) -> Iterator[Stager | None]:
    """Yield a stager with its own folder on the scratch disk, removed when the block ends.

    Folders of killed jobs are removed when the next job starts. `scratch` may contain variables of
    this machine (`$TMPDIR`); None stages nothing. `paths` are in the order of opening.

    Raises:
        UserError: the folder does not exist or is not writable.
    """
    if scratch is None:
        yield None
        return
    with swept_folder(scratch_folder(scratch), PREFIX) as folder:
        stager = Stager(folder, paths)
        try:
            yield stager
        finally:
            stager.close()


def scratch_folder(scratch: str) -> Path:
    """Return the folder that `embedding.scratch` names on this machine.

    Raises:
        UserError: a variable in it is not set, or it is not a writable folder.
    """
    node = os.uname().nodename
    # If TMPDIR is not set, the system's folder for temporary files is meant.
    variables = {**os.environ, "TMPDIR": os.environ.get("TMPDIR") or tempfile.gettempdir()}
    try:
        path = Path(filled_in(scratch, variables))
    except ValueError as problem:
        raise UserError(f"embedding.scratch: {problem} (on {node}).") from None
    if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
        raise UserError(
            f"embedding.scratch: {scratch!r} is {str(path)!r} on {node}, which is not a writable "
            "folder. Set one that exists on every node, such as $TMPDIR."
        )
    return path


def _same_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev
