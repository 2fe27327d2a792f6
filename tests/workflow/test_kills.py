"""Fifty kills at seeded moments of whole runs: nothing is lost, nothing half done believed."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from her2.core.events import read_events
from her2.core.files import file_digest
from tests.workflow.project import Project

pytestmark = [pytest.mark.nightly, pytest.mark.campaign]

KILLS = 50
SEED = 14
RULES_HIT = 6
"""Least number of rules that were at work at some kill; which ones is a matter of the machine."""


def digests(project: Project) -> dict[str, str]:
    """Return file -> digest of the tables and pages that a run made, without times and logs."""
    folder = project.folder / "results"
    skipped = ("logs", "benchmarks", "run.json", "features")  # stores have seconds inside
    return {
        str(path.relative_to(folder)): file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.relative_to(folder).parts[0] not in skipped
        and path.suffix in (".parquet", ".csv", ".json", ".txt")
        and "throughput" not in path.name
        and path.name != "build_report.json"  # the stamp has the digest of the page with them
    }


def killed(project: Project, seconds: float) -> tuple[bool, set[str]]:
    """Run and kill everything after a while; return whether the run was over, and rules at work."""
    process = project.start()
    try:
        process.communicate(timeout=seconds)
        assert process.returncode == 0
        return True, set()
    except subprocess.TimeoutExpired:
        at_work = set()
        for path in (project.folder / "results/logs").rglob("*.jsonl"):
            if not {"ended", "failed"} & {event.kind for event in read_events(path)[0][-1:]}:
                at_work.add(path.relative_to(project.folder / "results/logs").parts[0])
        return False, {name.removesuffix(".jsonl") for name in at_work}
    finally:
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
        process.wait()


def start_over(project: Project) -> None:
    for name in ("results", "cache", ".snakemake"):
        shutil.rmtree(project.folder / name, ignore_errors=True)


def test_fifty_kills_leave_results_with_the_same_bytes(project: Project, tmp_path: Path) -> None:
    """Each time all processes are killed at once, as by a machine that goes down."""
    start_over(project)
    begin = time.monotonic()
    assert project.snakemake(prefix=("env",)).code == 0
    whole = time.monotonic() - begin
    expected = digests(project)
    start_over(project)
    moments = random.Random(SEED)
    hit: Counter[str] = Counter()
    number = 0
    while number < KILLS:
        over, at_work = killed(project, moments.uniform(2.0, max(8.0, whole / 3)))
        hit.update(at_work)
        if over:
            assert digests(project) == expected
            start_over(project)
            continue
        number += 1
        assert project.snakemake("--unlock").code == 0
    run = project.snakemake(prefix=("env",))
    assert run.code == 0, run.output
    assert digests(project) == expected
    assert project.her2("cache", "verify", "--config", "config.yaml").returncode == 0
    assert len(hit) >= RULES_HIT, hit
