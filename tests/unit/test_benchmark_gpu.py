"""The benchmark of a GPU runs to its end in small on a CPU, so that one at hand is not wasted."""

import ast
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = [sys.executable, str(REPOSITORY / "benchmarks" / "gpu.py")]
# Without `two`, which is three times `embed`, and `compile`, which compiles for a minute.
SECTIONS = ["card", "agreement", "alone", "embed", "training", "memory"]


def run(*options: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SCRIPT, *options], cwd=folder, capture_output=True, text=True, timeout=900, check=False,
        env={**os.environ, "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": "", **variables},
    )  # fmt: skip


@pytest.mark.parametrize(
    "script", sorted((REPOSITORY / "benchmarks").glob("*.py")), ids=lambda one: one.name
)
def test_benchmarks_import_names_that_the_project_has(script: Path) -> None:
    """They import inside of functions, so that a renamed one shows only when they are run."""
    for node in ast.walk(ast.parse(script.read_text())):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != "her2":
            continue
        module = importlib.import_module(str(node.module))
        for name in (alias.name for alias in node.names):
            inside = importlib.util.find_spec(str(node.module)).submodule_search_locations
            there = hasattr(module, name) or (
                inside and importlib.util.find_spec(f"{node.module}.{name}")
            )
            assert there, f"{node.module} has no {name}, line {node.lineno}"


@pytest.mark.parametrize(
    ("what", "small", "status"),
    [("failed", True, 1), ("stopped", True, 1), ("cosine", True, 0), ("cosine", False, 1)],
)
def test_the_exit_status_is_of_figures_and_in_small_of_sections(
    what: str, small: bool, status: int
) -> None:
    gpu = importlib.import_module("benchmarks.gpu")
    assert gpu.status([gpu.Row("alone", what, 0.1, met=False)], small=small) == status


@pytest.mark.nightly
def test_every_section_says_its_figures_in_small(tmp_path: Path) -> None:
    done = run("--small", "--json", "found.json", "--only", *SECTIONS, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "found.json").read_text())
    found = {(row["section"], row["what"]): row for row in rows}
    assert not [row for row in rows if row["what"] in ("failed", "stopped", "left out")]
    assert {row["section"] for row in rows} == set(SECTIONS)
    assert all(row["figure"] > 0.999 for row in rows if row["unit"] == "cosine")
    assert found["training", "AUC of a fold, GPU and CPU at most apart"]["met"]
    for name in ("alone", "embed", "memory"):
        assert any(row["unit"].startswith("patches/s") for row in rows if row["section"] == name)
    assert not list(Path("/dev/shm").glob("her2-gpu-*"))
    for row in rows:
        assert f"| {row['section']} | {row['what']} | {row['figure']} |" in done.stdout


@pytest.mark.nightly
def test_a_section_without_time_is_left_out_and_said(tmp_path: Path) -> None:
    done = run("--small", "--minutes", "0.1", "--only", "two", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| two | left out | no time left |" in done.stdout


@pytest.mark.nightly
def test_without_a_device_the_full_benchmark_says_so(tmp_path: Path) -> None:
    done = run(folder=tmp_path)
    assert done.returncode == 1
    assert "no CUDA device; --small runs on a CPU" in done.stderr
