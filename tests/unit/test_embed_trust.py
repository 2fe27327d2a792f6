"""The cache stays valid whatever happens to the jobs that fill it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Moments are what this is about: beside other tests a job is done before the kill reaches it.
pytestmark = [pytest.mark.nightly, pytest.mark.alone]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def happened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run all jobs of `embed_nursery` once, and return their results."""
    folder = tmp_path_factory.mktemp("nursery") / "material"
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.embed_nursery", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_job_killed_at_twenty_moments_leaves_no_false_store(happened: dict[str, Any]) -> None:
    found = happened["kills"]
    assert found["kills"] == 20
    assert found["problems"] == []
    assert found["partial"] >= 2  # something was at stake; how often hangs on the machine


def test_a_job_killed_at_twenty_moments_does_nothing_finished_again(
    happened: dict[str, Any],
) -> None:
    assert happened["kills"]["redone"] == 0
    assert happened["kills"]["cohorts"] >= 1


def test_two_jobs_that_embed_the_same_slides_at_once_both_end_well(
    happened: dict[str, Any],
) -> None:
    found = happened["twins"]
    assert found["codes"] == [0, 0]
    assert found["manifests"] == 1
    assert found["problems"] == []
    assert found["left"] == 0
    assert found["stores"] == happened["slides"]
    assert found["embedded"] > happened["slides"]  # or they were not at once


@pytest.mark.parametrize("case", ["starved", "starved spool"])
def test_a_full_disk_stops_the_job_with_path_and_space_and_the_cache_stays_true(
    happened: dict[str, Any], case: str
) -> None:
    found = happened[case]
    assert found["code"] == 1
    error = next(line for line in found["log"].splitlines() if "UserError: " in line)
    assert "File too large" in error
    assert f"{found['root']}/features/" in error
    assert "0.1 MB are needed there" in error
    assert found["problems"] == []
    assert found["left"] == 0
    assert (found["again"], found["stores"]) == (0, happened["slides"])
