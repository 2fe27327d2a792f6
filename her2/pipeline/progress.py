"""Beside every stage: the progress lines that the terminal shows during a run."""

import sys
import threading
import time
from collections.abc import Iterable
from typing import Any, TextIO

from her2.pipeline.plan import Plan
from her2.pipeline.record import begin_run, end_run
from her2.pipeline.status import JobProgress, RunProgress, Stage, failures

EVERY_SECONDS = 20.0


class ProgressPrinter:
    """A printer of a run's progress, driven by the hooks of the Snakefile.

    On a terminal it prints a line per stage at work, every few seconds and from a thread of its
    own. Redirected output gets no such lines. At the end it lists the jobs that failed.
    """

    def __init__(
        self, plan: Plan, stream: TextIO = sys.stderr, *, every: float = EVERY_SECONDS
    ) -> None:
        self._plan, self._stream, self._every = plan, stream, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)
        self._run: RunProgress | None = None

    def begin(self, workflow: Any) -> None:
        """Record the jobs of the run, and follow it."""
        self._run = RunProgress(begin_run(workflow, self._plan))
        if self._stream.isatty():
            self._thread.start()

    def end(self, *, succeeded: bool) -> None:
        """Record the end of the run, and print failed jobs with their reasons and logs."""
        if self._run is None:
            return
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()  # it shares the read positions of the event files
        end_run(self._run.record, self._plan.config.results, succeeded=succeeded)
        if not succeeded and (failed := failures(self._run.close())):
            lines = ["", f"{len(failed)} job(s) failed:", *failure_lines(failed)]
            print("\n".join(lines), file=self._stream, flush=True)

    def _follow(self) -> None:
        assert self._run is not None
        shown: list[str] = []
        while not self._over.wait(self._every):
            lines = working_lines(self._run.update(), time.time())
            if lines != shown:
                print("\n".join(lines), file=self._stream, flush=True)
                shown = lines


def working_lines(found: Iterable[Stage], now: float) -> list[str]:
    """Return one line per stage that has begun and not ended."""
    return [
        stage_line(stage, now)
        for stage in found
        if 0 < len(stage.jobs) != stage.count("done") and stage.count("waiting") < len(stage.jobs)
    ]


def stage_line(stage: Stage, now: float) -> str:
    """Return `embed_bucket: 3 of 20 jobs, 96 of 300 slides, 12,345 of 60,000 tiles, 8 min left`."""
    parts = [f"{stage.count('done'):,} of {len(stage.jobs):,} jobs"]
    for (done, total), what in ((stage.slides, "slides"), (stage.tiles, "tiles")):
        if total:
            parts.append(f"{done:,} of {total:,} {what}")
    if failed := stage.count("failed"):
        parts.append(f"{failed:,} failed")
    left = stage.seconds_left(now)
    if left is not None and stage.count("done") < len(stage.jobs):
        parts.append(f"{duration(left)} left")
    return f"{stage.rule}: {', '.join(parts)}"


def duration(seconds: float) -> str:
    """Return `40 s`, `8 min` or `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def failure_lines(failed: Iterable[JobProgress]) -> list[str]:
    """Return, for each failed job, its name, the reason (with the slide, if known) and its log."""
    lines = []
    for job in failed:
        reason = job.reason.replace("\n", "\n    ")
        lines += [f"{job.job.rule} {job.job.name}: {reason}", f"    log: {job.job.log}"]
    return lines
