"""Beside every stage: modification times that clocks which disagree have left behind.

Snakemake refuses the output of a job that is older than one of its inputs, deletes it and fails the
job. That happens to results that a machine with a clock ahead made, for ever, and on a cluster
whose nodes disagree, to short jobs on the nodes that are behind.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snakemake.dag import DAG
    from snakemake.jobs import Job

_FOLDER_TIME = ".snakemake_timestamp"


def set_back(paths: Iterable[Path], present_ns: int) -> list[Path]:
    """Give files from the future the time `present_ns` (ns since 1970), and return them.

    All get the same time, which makes none of them newer than another. A link is set, not what it
    points to, and of a folder also the file in which Snakemake notes its time. What is absent, or
    belongs to somebody else, stays as it is.
    """
    found = []
    for path in paths:
        for one in (path, path / _FOLDER_TIME):
            with suppress(OSError):
                stat = one.stat(follow_symlinks=False)
                if stat.st_mtime_ns > present_ns:
                    times = (min(stat.st_atime_ns, present_ns), present_ns)
                    os.utime(one, ns=times, follow_symlinks=False)
                    found.append(one)
    return found


def accept_clock_skew() -> None:
    """Let Snakemake give an output that is older than an input the input's time.

    A job's output was written after its inputs had been read, so an older time is an error of the
    clock, not of the job. Snakemake has no option for this (9.27).
    """
    from snakemake.dag import DAG

    DAG.check_output_mtime = _catch_up


async def _catch_up(dag: "DAG", job: "Job", expanded_output: list[Any]) -> None:
    """Set outputs that are older than the newest input to its time."""
    inputs = [await _time(path) for path in job.input if await path.exists_local()]
    newest = max(inputs, default=0.0)
    for output in expanded_output:
        if await output.exists_local() and await _time(output) < newest:
            output.touch(times=(newest, newest))


async def _time(path: Any) -> float:
    """Return the time that Snakemake takes for a file's, also of a link or a folder."""
    found: float = (await path.mtime_uncached(skip_storage=True)).local()
    return found
