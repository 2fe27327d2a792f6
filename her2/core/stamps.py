"""Every stage: the stamp of a job, which says what it was asked for, what it read and wrote.

The stamp lies in the results, at `stamps/<rule>/<wildcards>.json`, so that it is copied and
moved with them. A later run compares it with the config and the files of that day
(`her2.pipeline.current`). It therefore does not depend on Snakemake's own records in a hidden
folder, nor on the order of modification times, which a copy may change.

The readers and writers of results (`her2.core.tables`, `her2.storage.entries` and others) note the
files of the running job. Only files inside the results folder are kept: products in the cache are
named by keys in these files, and the state of users' files is a part of the spec.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from her2.core.files import MADE, WRITTEN, digest, file_digest, write_json

if TYPE_CHECKING:
    from pydantic import TypeAdapter

FOLDER = "stamps"
_DIGITS = 16
"""Digits of a file's digest. They tell a changed file from the same one, not a forged one."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a job was asked for, and path in the results -> content of what it read and wrote.

    `job` is the rule and the values of its wildcards, as in the stamp's path: a stamp that was
    copied to another job's place is not that job's. Of texts and tables the content is a digest, of
    pictures and weights the size.
    """

    job: str
    spec: dict[str, Any]
    read: dict[str, str]
    made: dict[str, str]


@dataclass(slots=True)
class _Job:
    root: Path
    read: dict[Path, str] = field(default_factory=dict)

    def name(self, path: Path) -> str | None:
        """Return the path inside the results, or None for a file elsewhere."""
        absolute = path.absolute()
        return str(absolute.relative_to(self.root)) if absolute.is_relative_to(self.root) else None


_job: _Job | None = None


@contextmanager
def writing_stamp(path: Path | None, spec: str) -> Iterator[None]:
    """Run a job, and write its stamp if the block succeeds, unless `path` is None.

    An earlier stamp is deleted first: a job that is killed leaves none.
    """
    global _job
    if path is None:
        yield
        return
    path.unlink(missing_ok=True)
    # No task, encoder or head may have this name (`her2.config.reserved`).
    folder = next(parent for parent in path.absolute().parents if parent.name == FOLDER)
    _job = job = _Job(folder.parent)
    WRITTEN.clear()
    MADE.clear()
    try:
        yield
    finally:
        _job = None
    written = {
        name: file
        for file in {*WRITTEN, *MADE}
        if (name := job.name(file)) and file.is_file() and file != path
    }
    stamp = Stamp(
        job=job_name(path, folder),
        spec=json.loads(spec),
        read={name: seen for file, seen in job.read.items() if (name := job.name(file))},
        made={
            name: short_digest(file) if file in WRITTEN else file_size(file)
            for name, file in written.items()
        },
    )
    write_json(path, asdict(stamp))


def noted(path: Path) -> Path:
    """Note that the running job reads a file, and return its path."""
    if _job is not None and path not in _job.read and path.is_file():
        _job.read[path] = short_digest(path)
    return path


def read_stamp(path: Path) -> Stamp | None:
    """Read a stamp; None if there is none, or if it cannot be read."""
    try:
        if not path.is_file():
            return None
        return _stamp_type().validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


@cache  # not at the start of every job
def _stamp_type() -> "TypeAdapter[Stamp]":
    from pydantic import TypeAdapter

    return TypeAdapter(Stamp)


def job_name(path: Path, folder: Path) -> str:
    """Return the rule and the wildcards' values of the job whose stamp has a path."""
    return str(path.absolute().relative_to(folder.absolute()).with_suffix(""))


def file_size(path: Path) -> str:
    """Return what a stamp has of a file that is too large to be digested every time."""
    return f"{path.stat().st_size} bytes"


def short_digest(path: Path) -> str:
    """Return the digest that a stamp has of a file."""
    return file_digest(path)[:_DIGITS]


def files_state(paths: Iterable[Path], start: Path) -> str:
    """Return the digest of the places, sizes and modification times of users' files.

    Places are relative to `start`, so that a project may move.

    Times are only compared with themselves, so it does not matter whether they lie in the future
    or disagree between machines. The content is left to the job, which finds its product in the
    cache if the content is the same.
    """
    return digest([_state(path, start) for path in paths])


def _state(path: Path, start: Path) -> list[Any]:
    place = os.path.relpath(path, start)
    try:
        found = path.stat()
    except OSError:
        return [place]
    return [place, found.st_size, found.st_mtime_ns]
