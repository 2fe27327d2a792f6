"""The jobs that Snakemake plans, as data."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from her2.core.errors import UserError
from her2.pipeline.current import spec_changes
from her2.pipeline.explain import planned_jobs, views_now

SNAKEFILE = """\
rule all:
    input:
        "b.txt",
        "late.txt",

rule upper:
    input:
        "a.txt",
    output:
        "b.txt",
    params:
        spec=config["spec"],
    shell:
        "tr a-z A-Z < {input} > {output}"

rule copy:
    input:
        "b.txt",
    output:
        "{name}.txt",
    wildcard_constraints:
        name="late",
    params:
        spec="the same",
    shell:
        "cp {input} {output}"
"""
BEFORE = '{"rows":"aa","tiling":{"min_tissue":0.3,"overlap":0.0},"version":1}'
NOW = '{"rows":"bb","tiling":{"min_tissue":0.31,"overlap":0.0},"version":2}'


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workflow of two jobs, run once."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "Snakefile").write_text(SNAKEFILE)
    (folder / "a.txt").write_text("a")
    configure(BEFORE, folder)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--configfile", "config.yaml"]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return folder


@pytest.fixture
def workflow(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Snakefile of a copy of it, in the working directory."""
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return Path("Snakefile")


def configure(spec: str, folder: Path = Path()) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump({"spec": spec}))


def files() -> set[Path]:
    """All files but Snakemake's cache of file times, which a dry run leaves behind."""
    found = (path for path in Path().rglob("*") if path.is_file())
    return {path for path in found if path.name != "latest.pkl"}


def test_a_changed_spec_is_said_key_by_key_and_what_follows_comes_after(workflow: Path) -> None:
    configure(NOW)
    upper, copy = planned_jobs(workflow, Path("config.yaml"))
    assert (upper.rule, upper.wildcards) == ("upper", {})
    assert upper.reason == "Params have changed since last execution"
    assert [*spec_changes(json.loads(BEFORE), json.loads(NOW))] == [
        "rows of the manifest: other rows, or other values in them",
        "tiling.min_tissue: 0.3 -> 0.31",
        "version: 1 -> 2",
    ]
    assert (copy.rule, copy.wildcards) == ("copy", {"name": "late"})
    assert copy.reason == "Input files updated by another job: b.txt"


def test_a_finished_workflow_has_nothing_to_run_and_planning_leaves_no_trace(
    workflow: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = files()
    assert planned_jobs(workflow, Path("config.yaml")) == []
    configure(NOW)
    assert len(planned_jobs(workflow, Path("config.yaml"))) == 2
    assert files() == before
    assert capfd.readouterr() == ("", "")


def test_the_profile_says_what_is_a_reason(workflow: Path) -> None:
    Path("profiles/default").mkdir(parents=True)
    Path("profiles/default/config.yaml").write_text("rerun-triggers: [mtime]\n")
    configure(NOW)
    assert planned_jobs(workflow, Path("config.yaml")) == []


def test_a_long_reason_is_cut(workflow: Path) -> None:
    long = [f"{i:02}{'w' * 40}.txt" for i in range(10)]
    for name in long:
        Path(name).touch()
    changed = SNAKEFILE.replace('"a.txt",', f'"a.txt", {", ".join(map(repr, long))},')
    workflow.write_text(changed)
    assert len(planned_jobs(workflow, Path("config.yaml"))[0].reason) < 200


def test_what_cannot_be_planned_is_said_in_snakemake_s_words(workflow: Path) -> None:
    Path("a.txt").unlink()
    Path("b.txt").unlink()
    with pytest.raises(UserError, match=r"cannot plan:[\s\S]*upper[\s\S]*a.txt"):
        planned_jobs(workflow, Path("config.yaml"))


def test_views_that_a_slide_lacks_are_told_with_their_cost() -> None:
    assert views_now(1, 0) == "and 1 augmented view for training, in the cache"
    words = (
        "and 4 augmented views for training: 3 would be embedded, each at the cost of the features"
    )
    assert views_now(4, 3) == words
