"""The workflow as a part of another one, and as Snakemake's own tools see it."""

import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.workflow.conftest import copy
from tests.workflow.project import REPOSITORY, Project

OUTER = f"""
module scoring:
    snakefile:
        {str(REPOSITORY / "Snakefile")!r}
    config:
        config["scoring"]


use rule * from scoring as her2_*


rule summary:
    default_target: True
    input:
        rules.her2_build_report.output,
    output:
        "summary.txt",
    shell:
        "wc -c {{input}} > {{output}}"
"""


def test_another_snakefile_uses_the_workflow_as_a_module(project: Project) -> None:
    (project.folder / "Snakefile").write_text(OUTER)
    config = (project.folder / "config.yaml").read_text()
    nested = "".join(f"  {line}\n" for line in config.splitlines())
    (project.folder / "config.yaml").write_text(f"scoring:\n{nested}")
    (project.folder / "results/report/report.html").unlink()
    run = project.snakemake("--rerun-triggers", "mtime", "params", "input", "code")
    assert run.code == 0, run.output
    assert run.rules == {"her2_build_report": 1, "summary": 1}
    assert "report.html" in (project.folder / "summary.txt").read_text()


@pytest.mark.parametrize("name", ["own.zip", "own.html"])
def test_snakemakes_own_report_has_our_captions_and_categories(
    validated: Project, tmp_path: Path, name: str
) -> None:
    project = copy(validated, tmp_path / "project")
    run = project.snakemake("--report", name)
    assert run.code == 0, run.output
    index = (project.folder / name).read_bytes()
    if name.endswith(".zip"):
        with ZipFile(project.folder / name) as archive:
            (page,) = (name for name in archive.namelist() if name.count("/") == 1)
            index = archive.read(page)
    shown = " ".join(index.decode("utf-8").replace("\\n", " ").split())
    for category in (
        "Report",
        "Performance",
        "Controls",
        "Explanation",
        "Cohort",
        "External validation",
    ):
        assert f'"{category}"' in shown
    captions = sorted((REPOSITORY / "workflow/report").glob("*.rst"))
    assert len(captions) > 20
    for caption in captions:  # each is the caption of some output, and was parsed
        plain = re.split(r"[`\"&<>'*|]", " ".join(caption.read_text("utf-8").split()))
        assert max(plain, key=len).strip() in shown, caption.name
    assert not re.search(r'(src|href)="https?:', shown)


def test_the_linter_finds_nothing() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("snakemake")), "--lint"],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Congratulations" in done.stdout + done.stderr
