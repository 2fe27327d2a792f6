"""Every stage: what a job reports of itself, for `her2 status` and the lines of progress.

Beside its log `x.log` a job writes `x.jsonl`, one JSON object per event. Rules send stderr to the
log, so the job finds the file by its own stderr; without such a log (at a terminal) nothing is
written. Each event is one append of one line: it survives a kill of the next instant, and the
attempts of a job that is tried again follow each other, each from its own `began`.
"""

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

Kind = Literal["began", "tiled", "embedded", "trained", "left_out", "ended", "failed"]
"""Of a job: began, ended, failed. Of one of its slides: tiled, embedded, left_out. Of one of its
folds: trained."""

log = logging.getLogger(__name__)

_STDERR = Path("/proc/self/fd/2")
_output: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a job.

    `name` is the slide or the fold, `cached` says that the cache had it, `tiles` counts those of a
    slide, `reason` is why a slide is left out or a job failed, `time` is in seconds since 1970.
    """

    kind: Kind
    name: str = ""
    cached: bool = False
    tiles: int = 0
    reason: str = ""
    time: float = field(default_factory=time.time)


def events_path(log: Path) -> Path:
    """Return where a job with this log writes its events."""
    return log.with_suffix(".jsonl")


def begin_events() -> None:
    """Write events from now on, if stderr goes to a log; the first is `began`."""
    global _output
    try:
        stderr = _STDERR.readlink()
    except OSError:  # no Linux
        return
    if stderr.suffix == ".log" and stderr.is_file():
        _output = os.open(events_path(stderr), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        write_event("began")


def write_event(
    kind: Kind, name: str = "", *, cached: bool = False, tiles: int = 0, reason: str = ""
) -> None:
    """Append an event to the job's file; nothing happens where there is none."""
    global _output
    if _output is None:
        return
    line = json.dumps(asdict(Event(kind, name, cached, tiles, reason)))
    try:
        os.write(_output, f"{line}\n".encode())  # in one call: threads and a kill leave whole lines
    except OSError as error:  # the disk is full: the job itself says so, if it has to write there
        log.warning("no more events are written: %s", error)
        _output = None


def read_events(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """Read the events from a byte of the file on, and where the next ones will begin.

    A line that has no end yet is left for later.
    """
    with path.open("rb") as stream:
        stream.seek(offset)
        whole = stream.read().rpartition(b"\n")
    return list(_parsed(whole[0].splitlines())), offset + len(whole[0]) + len(whole[1])


def _parsed(lines: Iterable[bytes]) -> Iterator[Event]:
    for line in lines:
        try:
            yield Event(**json.loads(line))
        except (
            ValueError,
            TypeError,
        ):  # cut short when the machine went down, and the next attempt followed
            continue
