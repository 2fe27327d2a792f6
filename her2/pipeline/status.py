"""Beside every stage: done, running and failed jobs of a run, from the jobs' events."""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from her2.core.events import Event, events_path, read_events
from her2.core.files import parse_json
from her2.core.pace import seconds_left
from her2.pipeline.endings import last_line
from her2.pipeline.record import Job, RunRecord

State = Literal["done", "running", "failed", "waiting"]

SILENT = (
    "it ended without a message and Snakemake gave no reason either: killed, or out of memory or "
    "time. Rerun the same command: it continues from what was finished."
)


@dataclass(slots=True)
class JobProgress:
    """The progress of a job, with the reason of a failure.

    `began` is the start of its latest attempt (seconds since 1970), `tiles_of` the number of tiles
    it has to embed, once they are cut, and `last` the slide or fold that it finished last.
    """

    job: Job
    state: State = "waiting"
    slides: int = 0
    tiles: int = 0
    tiles_of: int = 0
    began: float | None = None
    reason: str = ""
    last: str = ""
    bytes_read: int = field(default=0, repr=False)

    def add(self, event: Event) -> None:
        """Take an event into account."""
        if event.kind == "began":  # a new attempt starts over
            self.state, self.began, self.reason, self.last = "running", event.time, "", ""
            self.slides = self.tiles = 0
        elif event.kind == "ended":
            self.state, self.slides = "done", self.job.slides
        elif event.kind == "failed":
            self.state, self.reason = "failed", event.reason
        elif event.kind == "trained":
            self.last = event.name
        elif event.kind in ("tiled", "embedded", "left_out"):
            self.last = event.name
            self.slides += 1
            self.tiles += event.tiles if event.kind == "embedded" else 0


@dataclass(frozen=True, slots=True)
class Stage:
    """The jobs of one rule; slides and tiles are 0 of 0 where the stage has none."""

    rule: str
    up_to_date: int
    jobs: tuple[JobProgress, ...]

    def count(self, state: State) -> int:
        """Return the number of jobs of this run in a state."""
        return sum(job.state == state for job in self.jobs)

    @property
    def slides(self) -> tuple[int, int]:
        """Return the numbers of slides handled and in total."""
        return sum(job.slides for job in self.jobs), sum(job.job.slides for job in self.jobs)

    @property
    def tiles(self) -> tuple[int, int]:
        """Return the numbers of tiles embedded (or found in the cache) and in total."""
        return sum(job.tiles for job in self.jobs), sum(job.tiles_of for job in self.jobs)

    def seconds_left(self, now: float) -> float | None:
        """Estimate the time left from the pace since the first job began; None before any."""
        began = min((job.began for job in self.jobs if job.began is not None), default=None)
        done, total = self.count("done"), len(self.jobs)
        if all(job.tiles_of for job in self.jobs):
            done, total = self.tiles
        elif self.slides[1]:  # the tiles of some jobs are not cut yet
            done, total = self.slides
        return None if began is None else seconds_left(now - began, done, total)


class RunProgress:
    """The jobs of a run and their progress; `update` reads only what was written since."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        # Results that were moved are looked at from where their folder is now.
        self.folder = folder if (folder := Path(record.folder)).is_dir() else Path.cwd()
        self.jobs = [JobProgress(job) for job in record.jobs]

    def update(self) -> list[Stage]:
        """Read the new events and return the stages in their order."""
        found: dict[str, list[JobProgress]] = {rule: [] for rule in self.record.rules}
        for job in self.jobs:
            found[job.job.rule].append(job)
            if job.state != "done":
                _update(job, self.folder)
        return [
            Stage(rule, self.record.up_to_date.get(rule, 0), tuple(jobs))
            for rule, jobs in found.items()
        ]

    def close(self) -> list[Stage]:
        """Read the new events of a run that has ended; jobs still running count as failed.

        If the run succeeded, all its jobs did, also those that write no events: other rules that
        include this workflow have such jobs.
        """
        found, finished = self.update(), set(self.record.finished)
        for index, job in enumerate(self.jobs):
            if self.record.succeeded or index in finished:
                job.state, job.slides, job.reason = "done", job.job.slides, ""
                continue
            log = self.folder / job.job.log
            # A job that could not even start the program leaves a log but no event.
            logged = bool(job.job.log) and _newer(log, self.record.began_on_disk)
            began = job.state == "waiting" and logged
            # Snakemake may refuse the output of a job that ended well.
            blamed = index in self.record.reasons and job.state != "failed"
            if job.state == "running" or began or blamed:
                job.reason = _reason(job, self.record.reasons.get(index, ""), log)
                job.state = "failed"
        return found


def _reason(job: JobProgress, said: str, log: Path) -> str:
    """Return why a job failed that gave no reason itself, with what else is known."""
    reason = said or SILENT
    if job.state == "done":
        return reason
    if job.last:
        return f"{reason} It had finished {job.last}."
    if job.began is None and (line := last_line(log)):  # the program did not start
        return f"{reason} Its log ends: {line}"
    return reason


def failures(found: Iterable[Stage]) -> list[JobProgress]:
    """Return the failed jobs."""
    return [job for stage in found for job in stage.jobs if job.state == "failed"]


def disk_usage(folder: Path, *, without: Path | None = None) -> int:
    """Return the bytes of the files below a folder; hard links, also into `without`, count once."""
    shared = set() if without is None else _sizes(without).keys()
    return sum(size for inode, size in _sizes(folder).items() if inode not in shared)


def _sizes(folder: Path) -> dict[tuple[int, int], int]:
    """Return (device, inode) -> bytes of the files below a folder."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # deleted meanwhile, or a link to nothing
                stat = Path(parent, name).stat(follow_symlinks=False)
                found[stat.st_dev, stat.st_ino] = stat.st_size
    return found


def _update(job: JobProgress, folder: Path) -> None:
    path = events_path(folder / job.job.log)
    try:
        events: list[Event] = []
        if path.stat().st_size > job.bytes_read:
            events, job.bytes_read = read_events(path, job.bytes_read)
    except OSError:  # not written yet, or not readable: the progress of other jobs is still shown
        events = []
    for event in events:
        job.add(event)
    if job.job.tiles is not None:
        job.tiles_of = max(job.tiles, _tiles_of(folder / job.job.tiles))


def _newer(path: Path, than: float) -> bool:
    try:
        return path.stat().st_mtime >= than
    except OSError:
        return False


def _tiles_of(path: Path) -> int:
    """Return the number of tiles that an embedding job has to embed, once they are cut."""
    try:
        return _tiles_in(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return 0


@cache  # called for thousands of jobs every few seconds
def _tiles_in(path: Path, mtime_ns: int) -> int:
    entries = parse_json(path.read_bytes()).values()
    return sum(entry["tiles"] for entry in entries if entry["status"] == "ok")
