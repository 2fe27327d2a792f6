"""The benchmark of waiting threads runs to its end, and leaves no process behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from her2.core.hardware import SPIN_COUNT

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.nightly
def test_the_benchmark_says_every_way_of_waiting_alone_and_beside() -> None:
    command = ["--seconds", "0.1", "--rounds", "1", "--size", "32", "--batch-size", "2"]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks" / "threads.py"), *command],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = {line[:14].strip(): line[14:].split() for line in done.stdout.splitlines()[3:]}
    assert rows.keys() == {"OpenMP's own", "asleep", f"{SPIN_COUNT} turns", "one thread"}
    assert all(len(row) == 6 and min(map(float, row)) >= 0 for row in rows.values())
    assert rows["OpenMP's own"][1] == rows["OpenMP's own"][4] == "1.00"
