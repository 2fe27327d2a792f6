"""The benchmark of stage 2 runs to its end, so that its figures are available at any time."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_benchmark_runs_in_small_and_says_every_figure(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks" / "mil.py"), "--small"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1",
             "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for figure in (
        "waiting for data", "one chunk per row", "contiguous", "USS at the peak",
        "full-bag inference",
    ):  # fmt: skip
        assert any(figure in line and "| " in line for line in done.stdout.splitlines()), figure
    assert not list(tmp_path.glob("her2-*"))  # 8 GB in the real run
