"""Every stage: the events a job reports, for `her2 status` and the progress lines.

Beside its log `x.log` a job writes `x.jsonl`, one JSON object per event. Rules send stderr to the
log, so the job finds the file by its own stderr. Without such a log (at a terminal) nothing is
written. Each event is one append of one line, so it survives if the job is killed right after. The
attempts of a job that is retried follow each other, and each starts with its own `began`.

A command that runs several stages itself hears their events with `hearing`.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from her2.core.logs import redacted

Kind = Literal["began", "tiled", "encoded", "embedded", "trained", "left_out", "ended", "failed"]
"""began, ended and failed concern the job; tiled, embedded and left_out one of its slides; trained
one of its folds. encoded is a batch of a slide's tiles, and only heard, not written."""

log = logging.getLogger(__name__)

_STDERR = Path("/proc/self/fd/2")
_output: int | None = None
_listener: "Callable[[Event], None] | None" = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a job: to a slide or fold `name`, which may come from the cache.

    `reason` is why a slide is left out or a job failed, and `time` is in seconds since 1970.
    """

    kind: Kind
    name: str = ""
    cached: bool = False
    tiles: int = 0
    reason: str = ""
    time: float = field(default_factory=time.time)


_EVENT = TypeAdapter(Event)


def events_path(log: Path) -> Path:
    """Return the path of the events file that belongs to a job's log."""
    return log.with_suffix(".jsonl")


def begin_events() -> None:
    """Write events from now on if stderr goes to a log, starting with `began`."""
    resume_events()
    write_event("began")


def resume_events() -> None:
    """Write events from now on, after those of a process that has ended."""
    global _output
    try:
        stderr = _STDERR.readlink()
    except OSError:  # not Linux
        return
    if stderr.suffix != ".log" or not stderr.is_file():
        return
    try:
        _output = os.open(events_path(stderr), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:  # for example another user's file
        log.warning("no events are written, so `her2 status` is incomplete: %s", error)


def write_event(
    kind: Kind, name: str = "", *, cached: bool = False, tiles: int = 0, reason: str = ""
) -> None:
    """Append an event to the job's file, or do nothing if it has none.

    The reason is `redacted`, since it may quote an address.
    """
    global _output
    if _output is None and _listener is None:
        return
    event = Event(kind, name, cached, tiles, redacted(reason))
    if _listener is not None:
        _listener(event)
    if _output is None:
        return
    line = json.dumps(asdict(event))
    try:
        os.write(_output, f"{line}\n".encode())  # one call: lines stay whole
    except OSError as error:  # a full disk: the job itself fails if it needs it
        log.warning("no more events are written, so `her2 status` is incomplete: %s", error)
        _output = None


def count_encoded(name: str, tiles: int) -> None:
    """Tell who hears events, if anybody does, that some tiles of a slide are encoded."""
    if _listener is not None:
        _listener(Event("encoded", name, tiles=tiles))


@contextmanager
def hearing(listener: Callable[[Event], None]) -> Iterator[None]:
    """Call a function with each event of this process while the block runs, from any thread."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def read_events(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """Read the events from byte `offset` on, and return them with the offset to continue from.

    An incomplete last line is left for the next call.
    """
    with path.open("rb") as stream:
        stream.seek(offset)
        lines, end, _ = stream.read().rpartition(b"\n")
    found = []
    for line in lines.splitlines():
        # A line may be cut short where the machine went down during an earlier attempt.
        with suppress(ValueError):
            found.append(_EVENT.validate_json(line, strict=True))
    return found, offset + len(lines) + len(end)
