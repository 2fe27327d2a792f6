"""Beside every stage: what is done, running and failed, from a run's record and its jobs' logs."""

import datetime
import json
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from her2.pipeline.record import Job, RunRecord

State = Literal["done", "running", "failed", "waiting"]

_SLIDE_LINES = {
    "tile_bucket": re.compile(r": (\d+) tiles (?:cut|from the cache)$"),
    "embed_bucket": re.compile(r": (\d+) (?:patches embedded|features from the cache)"),
}
_LEFT_OUT = re.compile(r"WARNING \S+: (?:excluded|failed): ")
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ ")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is; `reason` is why it failed, `began` its first log line (seconds)."""

    job: Job
    state: State
    slides: int = 0
    tiles: int = 0
    tiles_of: int = 0
    began: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """The jobs of one rule. Slides and tiles are 0 of 0 where the stage has none."""

    rule: str
    up_to_date: int
    jobs: tuple[Progress, ...]

    def count(self, state: State) -> int:
        """Jobs of this run in a state."""
        return sum(job.state == state for job in self.jobs)

    @property
    def slides(self) -> tuple[int, int]:
        """Slides handled, of how many."""
        return sum(job.slides for job in self.jobs), sum(job.job.slides for job in self.jobs)

    @property
    def tiles(self) -> tuple[int, int]:
        """Tiles embedded (or found in the cache), of how many."""
        return sum(job.tiles for job in self.jobs), sum(job.tiles_of for job in self.jobs)

    def seconds_left(self, now: float) -> float | None:
        """At the pace since the stage's first job began; None before anything is done."""
        began = min((job.began for job in self.jobs if job.began is not None), default=None)
        done, total = self.count("done"), len(self.jobs)
        if all(job.tiles_of for job in self.jobs):
            done, total = self.tiles
        elif self.slides[1]:  # of some jobs the tiles are not cut yet
            done, total = self.slides
        if began is None or not done:
            return None
        return (now - began) * (total - done) / done


def stages(record: RunRecord, *, over: bool) -> list[Stage]:
    """The stages of a run, in the order of the work.

    Args:
        record: the run.
        over: nothing of it runs any more, so that a job which is not done has failed.
    """
    found: dict[str, list[Progress]] = {rule: [] for rule in record.rules}
    for job in record.jobs:
        found[job.rule].append(progress(job, record, over=over))
    return [Stage(r, record.up_to_date.get(r, 0), tuple(jobs)) for r, jobs in found.items()]


def progress(job: Job, record: RunRecord, *, over: bool) -> Progress:
    """How far a job is: its output says done, its log the rest."""
    text = _new_text(Path(record.folder, job.log), record.began_on_disk) if job.log else None
    done = _newer(Path(record.folder, job.output), record.began_on_disk)
    tiles_of = _tiles_of(Path(record.folder, job.tiles) if job.tiles else None)
    if text is None:
        return Progress(job, "done" if done else "waiting", tiles_of=tiles_of)
    slides, tiles = _counts(job, text)
    reason = "" if done else failure(text)
    if done:
        state: State = "done"
    else:
        state = "failed" if over or reason else "running"
    return Progress(
        job,
        state,
        slides=job.slides if done else slides,
        tiles=tiles,
        tiles_of=max(tiles, tiles_of),
        began=_began(text, Path(record.folder, job.log)),
        reason=(reason or "it ended without a word: killed, or out of memory or time")
        if state == "failed"
        else "",
    )


def failures(found: Iterable[Stage]) -> list[Progress]:
    """The failed jobs."""
    return [job for stage in found for job in stage.jobs if job.state == "failed"]


def failure(log: str) -> str:
    """Why a job failed, from its log: the message it ended with, or an exception's last line."""
    lines = log.rstrip().splitlines()
    last = max((i for i, line in enumerate(lines) if line.startswith("her2: ")), default=None)
    if last is not None:
        return "\n".join([lines[last].removeprefix("her2: "), *lines[last + 1 :]])
    if any(line.startswith("Traceback (") for line in lines):
        return lines[-1]
    return ""


def disk_usage(folder: Path, *, without: frozenset[tuple[int, int]] = frozenset()) -> int:
    """Bytes of the files below a folder; each inode once, and none of those in `without`."""
    seen = set(without)
    total = 0
    for path in _files(folder):
        stat = path.stat(follow_symlinks=False)
        if (stat.st_dev, stat.st_ino) not in seen:
            seen.add((stat.st_dev, stat.st_ino))
            total += stat.st_size
    return total


def inodes(folder: Path) -> frozenset[tuple[int, int]]:
    """What the files below a folder are to the filesystem: names linked to one file agree."""
    stats = (path.stat(follow_symlinks=False) for path in _files(folder))
    return frozenset((stat.st_dev, stat.st_ino) for stat in stats)


def _files(folder: Path) -> Iterable[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.exists():
                yield path


def _newer(path: Path, than: float) -> bool:
    try:
        return path.stat().st_mtime >= than
    except OSError:
        return False


def _new_text(log: Path, since: float) -> str | None:
    """The log, if it is of this run."""
    return log.read_text(encoding="utf-8", errors="replace") if _newer(log, since) else None


def _counts(job: Job, text: str) -> tuple[int, int]:
    """Slides a job has finished with, and tiles of them."""
    pattern = _SLIDE_LINES.get(job.rule)
    if pattern is None:
        return 0, 0
    found = [int(m[1]) for line in text.splitlines() if (m := pattern.search(line))]
    left_out = sum(bool(_LEFT_OUT.search(line)) for line in text.splitlines())
    return len(found) + left_out, sum(found) if job.tiles else 0


def _tiles_of(manifest: Path | None) -> int:
    """Tiles that an embedding job has before it, once they are cut."""
    if manifest is None:
        return 0
    try:
        return _tiles_in(manifest, manifest.stat().st_mtime_ns)
    except (OSError, ValueError):
        return 0


@cache  # thousands of jobs are looked at every few seconds
def _tiles_in(manifest: Path, mtime_ns: int) -> int:
    entries = json.loads(manifest.read_text(encoding="utf-8")).values()
    return sum(entry["tiles"] for entry in entries if entry["status"] == "ok")


def _began(text: str, log: Path) -> float:
    """When a job said its first word; one that says nothing opened its log when it began."""
    found = _STAMP.search(text)
    if found is None:
        return log.stat().st_mtime
    return time.mktime(datetime.datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S").timetuple())
