"""Beside every stage: what Snakemake says during a run, kept for the jobs that it is about."""

import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from snakemake.logging import LogEvent

from her2.pipeline.endings import job_reason
from her2.pipeline.record import Job

_LOGGER = "snakemake.logging"
_UNLOCKED = "Unlocked working directory."
_JOBS_FAILED = "At least one job did not complete successfully"
_RULE = re.compile(r"\b(?:in|for) rule (\w+)")


class RunLog(logging.Handler):
    """A listener to Snakemake's messages, in its main process.

    Snakemake says why a job failed before, and apart from, its "Error in rule": in the same thread
    (a command that failed), or without any such line (its output is refused afterwards).

    Attributes:
        reasons: of jobs of which an attempt failed, by their index among the planned jobs.
        error: Snakemake's latest error that belongs to no job.
    """

    def __init__(self, closed: Callable[[], None], unlocked: Callable[[], None]) -> None:
        super().__init__(logging.INFO)
        self._on_close, self._on_unlock = closed, unlocked
        self._ids: dict[int, int] = {}
        self._outputs: dict[str, int] = {}
        self._jobs: list[Job] = []
        self._said: dict[int | None, str] = {}
        self.reasons: dict[int, str] = {}
        self.error = ""

    def listen(self) -> None:
        """Hear what Snakemake says from now on. It closes the listener when it ends."""
        logging.getLogger(_LOGGER).addHandler(self)

    def follow(self, jobs: Iterable[tuple[Job, int, Iterable[str]]]) -> None:
        """Begin with these planned jobs: each with Snakemake's number for it, and its outputs."""
        for index, (job, number, outputs) in enumerate(jobs):
            self._jobs.append(job)
            self._ids[number] = index
            self._outputs.update(dict.fromkeys(map(str, outputs), index))

    def emit(self, record: logging.LogRecord) -> None:
        """Take a message of Snakemake into account; called with this handler's lock."""
        try:
            self._hear(record)
        except Exception:  # whatever a version of Snakemake says must not end the run
            self.handleError(record)

    def close(self) -> None:
        """Snakemake has ended, in whatever way."""
        super().close()
        on_close, self._on_close = self._on_close, lambda: None  # logging closes it once more
        on_close()

    def _hear(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        if event == LogEvent.JOB_ERROR:
            self._add_failed_job(record)
        elif event == LogEvent.ERROR:
            self._add_error(record)
        elif event is None and record.msg == _UNLOCKED:
            self._on_unlock()

    def _add_failed_job(self, record: logging.LogRecord) -> None:
        fields = vars(record)
        before = self._said.pop(record.thread, "")
        if before == self.error:
            self.error = ""
        index = self._ids.get(fields.get("jobid", -1))
        if index is None:
            return
        others = [Path(log) for log in fields.get("log", ()) if log != self._jobs[index].log]
        reason = job_reason(str(fields.get("rule_msg") or before), others)
        self.reasons[index] = reason or self.reasons.get(index, "")

    def _add_error(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if _JOBS_FAILED in said:  # they are known
            return
        self._said[record.thread] = said
        index = self._refused_job(said)
        if index is None:
            self.error = said
        else:
            self.reasons[index] = job_reason(said)

    def _refused_job(self, said: str) -> int | None:
        """Return the job of the rule that a message names, whose output it names too."""
        rule = _RULE.search(said)
        found = {
            index
            for output, index in self._outputs.items()
            if rule and self._jobs[index].rule == rule[1] and output in said
        }
        return found.pop() if len(found) == 1 else None
