"""Beside every stage: the jobs that the latest run of Snakemake planned, and its state.

The Snakefile's hooks write `results/run.json` when a run begins and ends. Only `her2 status`, the
progress lines and the closing list of failed jobs read it.
"""

import os
import socket
import time
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from her2.core.errors import UserError
from her2.core.events import events_path
from her2.core.files import write_json
from her2.pipeline.claim import is_alive, read_claim, seconds_silent
from her2.pipeline.job_table import COHORT, values_in_words
from her2.pipeline.plan import Plan

RECORD_NAME = "run.json"

RunState = Literal["running", "finished", "failed", "stopped", "killed", "elsewhere"]
"""stopped: ended without recording it and left no lock. killed: ended and left its lock.
elsewhere: the lock belongs to another machine, where it may be running."""


@dataclass(frozen=True, slots=True)
class Job:
    """A planned job; `slides` is the number it handles, `tiles` the entries file of their tiles."""

    rule: str
    name: str
    log: str
    slides: int = 0
    tiles: str | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One call of Snakemake, with times in seconds since 1970.

    `rules` are in the order of the stages; `up_to_date` counts jobs by rule. `began_on_disk` is by
    the clock of the results' file system, which may not be this machine's. Logs are newer.
    At its end, `reasons` are Snakemake's for jobs that failed and `finished` are those that did
    not, by their positions in `jobs`.
    """

    host: str
    pid: int
    folder: str
    began: float
    began_on_disk: float
    rules: tuple[str, ...]
    up_to_date: dict[str, int]
    jobs: tuple[Job, ...]
    ended: float | None = None
    succeeded: bool | None = None
    reasons: dict[int, str] = field(default_factory=dict)
    finished: tuple[int, ...] = ()


def planned_jobs(workflow: Any, plan: Plan) -> list[tuple[Job, Any]]:
    """Return the jobs that a run of Snakemake will do, in order, each with Snakemake's own."""
    found = [
        (_job(job, plan), job)
        for job in workflow.dag.jobs
        if not job.rule.norun and workflow.dag.needrun(job)
    ]
    return sorted(found, key=lambda pair: (pair[0].rule, pair[0].name))


def begin_run(workflow: Any, results: Path, planned: tuple[Job, ...]) -> RunRecord:
    """Record the jobs of a run that begins, for the Snakefile's `onstart`.

    The events of earlier runs of the same jobs are deleted.
    """
    dag = workflow.dag
    done: dict[str, int] = {}
    for job in dag.jobs:
        if not job.rule.norun and not dag.needrun(job):
            done[job.rule.name] = done.get(job.rule.name, 0) + 1
    record = RunRecord(
        host=socket.gethostname(),
        pid=os.getpid(),
        folder=str(Path.cwd()),
        began=time.time(),
        began_on_disk=0.0,
        rules=tuple(
            rule.name
            for rule in workflow.rules
            if rule.name in done or any(job.rule == rule.name for job in planned)
        ),
        up_to_date=done,
        jobs=planned,
    )
    for planned_job in record.jobs:
        if planned_job.log:  # rules that include this workflow may have none
            events_path(Path(planned_job.log)).unlink(missing_ok=True)
    _write(results, record)
    clock = (results / RECORD_NAME).stat().st_mtime
    record = replace(record, began_on_disk=clock)
    _write(results, record)
    return record


def end_run(record: RunRecord, results: Path) -> None:
    """Record the end of a run, for `onsuccess` and `onerror`."""
    _write(results, record)


def read_run(results: Path) -> RunRecord:
    """Read the record of the latest run.

    Raises:
        UserError: there was no run, or its record cannot be read or is from another version.
    """
    path = results / RECORD_NAME
    try:
        return _record_type().validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{results}: no run of snakemake has started here yet.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValidationError:
        raise UserError(
            f"{path}: is damaged, or from another version of her2. You can delete it; it is only a "
            "record, and the next run with jobs replaces it."
        ) from None


def run_state(record: RunRecord, results: Path) -> RunState:
    """Return whether the run continues, and if not how it ended."""
    locked = any(Path(record.folder, ".snakemake", "locks").glob("*"))
    if record.ended is not None and not locked:
        return "finished" if record.succeeded else "failed"
    claim = read_claim(results)
    if claim is not None and (claim.host, claim.pid) == (record.host, record.pid):
        alive = is_alive(claim, seconds_silent(results))
    elif record.host != socket.gethostname():
        return "elsewhere" if locked else "stopped"
    else:
        alive = _alive(record.pid)
    if alive:
        return "running"
    return "killed" if locked else "stopped"


@cache  # not at the start of every job, which imports this module
def _record_type() -> TypeAdapter[RunRecord]:
    return TypeAdapter(RunRecord)


def _job(job: Any, plan: Plan) -> Job:
    bucket, part = (job.wildcards_dict.get(name, "") for name in ("bucket", COHORT))
    embeds = job.rule.name == "embed_bucket"
    return Job(
        rule=job.rule.name,
        name=values_in_words(job.wildcards_dict.values()),
        log=next(map(str, job.log), ""),
        slides=len(plan.of(part).by_bucket[bucket]) if bucket else 0,
        tiles=str(job.input.tiles) if embeds else None,
    )


def _write(results: Path, record: RunRecord) -> None:
    write_json(results / RECORD_NAME, asdict(record))


def _alive(pid: int) -> bool:
    """Return whether a process with this id is a running Snakemake (ids are reused)."""
    try:
        return b"snakemake" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
