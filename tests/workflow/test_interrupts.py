"""Whatever stops a run, the same command continues from there and repeats no finished work."""

import os
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.workflow.project import WEIGHTS, Project, Run


@pytest.fixture
def busy(project: Project) -> Project:
    """A project with all of stage 1 before it: another um/px."""
    project.edit(encoders={"tiny": {**WEIGHTS, "mpp": 0.9}})
    return project


def stop_in_embedding(project: Project, stop: str) -> tuple[int, str, list[str]]:
    """Run stage 1 and stop it when the first slide is embedded.

    Args:
        project: to run.
        stop: `interrupt` (Ctrl-C: the whole process group), `kill stage` (the embedding processes
            alone) or `kill all`.

    Returns:
        The exit code, the output, and the slides that were embedded.
    """
    process = project.start("features")
    try:
        deadline = time.monotonic() + 300
        while not (embedded := project.work()["embedded"]):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if stop == "kill stage":
            for child in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):  # the parent of a job takes its child along
                    if {"her2", "embed"} <= set(child.cmdline()):
                        child.kill()
        else:
            os.killpg(process.pid, signal.SIGINT if stop == "interrupt" else signal.SIGKILL)
        output, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output, project.work()["embedded"] or embedded


def her2_status(project: Project) -> str:
    """Return the output of `her2 status` for a project."""
    done = project.her2("status")
    assert done.returncode == 0, done.stderr
    return done.stdout


def temporary_files(project: Project) -> list[Path]:
    return [
        path for name in ("cache", "results") for path in (project.folder / name).rglob("*.tmp.*")
    ]


def assert_finishes(project: Project, before: list[str]) -> Run:
    """The same command ends well, and embeds no slide that was embedded before."""
    run = project.snakemake("features")
    assert run.code == 0, run.output
    assert max(Counter([*before, *run.work["embedded"]]).values()) == 1
    slides = {row.split(",")[0] for row in project.rows()}
    assert set(project.features()) == slides
    verify = project.her2("cache", "verify")
    assert verify.returncode == 0, verify.stdout
    return run


def test_ctrl_c_leaves_nothing_to_clean_up(busy: Project) -> None:
    code, output, embedded = stop_in_embedding(busy, "interrupt")
    assert code != 0
    assert temporary_files(busy) == []
    assert not any((busy.folder / ".snakemake/locks").glob("*")), output
    assert "Traceback" not in busy.log_text()
    assert "--unlock" not in her2_status(busy)
    assert_finishes(busy, embedded)


def test_a_killed_stage_is_named_and_the_next_call_just_works(busy: Project) -> None:
    code, output, embedded = stop_in_embedding(busy, "kill stage")
    assert code != 0
    last = output[output.index("job(s) failed:") :]
    assert "embed_bucket tiny/" in last
    assert "it was killed (signal SIGKILL)" in last
    assert f"It had finished {embedded[-1]}." in last or len(embedded) > 1
    assert "log: results/logs/embed_bucket/tiny/" in last
    assert "ended with failed jobs" in her2_status(busy)
    assert_finishes(busy, embedded)


def test_a_killed_snakemake_asks_for_one_unlock(busy: Project) -> None:
    _, _, embedded = stop_in_embedding(busy, "kill all")
    assert "was killed and left the folder locked. Run `snakemake --unlock`" in her2_status(busy)
    refused = busy.snakemake("features")
    assert refused.code != 0
    assert "--unlock" in refused.output
    assert busy.snakemake("features", "--unlock").code == 0
    assert "--unlock" not in her2_status(busy)
    assert_finishes(busy, embedded)
