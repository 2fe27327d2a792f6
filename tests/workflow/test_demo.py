"""The demo as a new user runs it: a fresh copy of what git tracks, the default config, no flags."""

import csv
import random
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest
import yaml

from tests.workflow.project import REPOSITORY, Project, Run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("demo")]

HEADLINE = "evaluation/score/random/abmil/metrics.parquet"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Run]:
    folder = tmp_path_factory.mktemp("clone")
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, tracked):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    project = Project(folder)
    return project, project.snakemake(config=None)


def macro_auc(project: Project, results: str) -> dict[str, float]:
    table = pl.read_parquet(project.folder / results / HEADLINE)
    return table.row(
        by_predicate=(pl.col("level") == "patient")
        & (pl.col("metric") == "auc")
        & (pl.col("class") == "macro"),
        named=True,
    )


def test_the_demo_ends_with_a_report(demo: tuple[Project, Run]) -> None:
    project, run = demo
    assert run.code == 0, run.output
    page = (project.folder / "results/report/report.html").read_text()
    assert "ynthetic" in page
    assert len(run.work["embedded"]) == 5 * 60  # each encoder of the comparison


def test_the_demos_second_run_has_nothing_to_do(demo: tuple[Project, Run]) -> None:
    run = demo[0].snakemake(config=None)
    assert run.idle, run.output


def test_the_true_labels_clear_chance(demo: tuple[Project, Run]) -> None:
    figure = macro_auc(demo[0], "results")
    assert figure["low"] > 0.55


def test_shuffled_labels_do_not(demo: tuple[Project, Run]) -> None:
    """The same features, the scores permuted over patients: only the labels' meaning is gone."""
    project, _ = demo
    with (project.folder / "workflow/demo/slides.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    scores = {row["patient_id"]: row["her2"] for row in rows}
    patients = sorted(scores)
    permuted = dict(zip(patients, random.Random(5).sample([scores[p] for p in patients], 48),
                        strict=True))  # fmt: skip
    with (project.folder / "shuffled.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "her2": permuted[row["patient_id"]]} for row in rows)
    config = yaml.safe_load((project.folder / "config.yaml").read_text())
    config["cohort"] |= {"slides": "shuffled.csv", "synthetic": False}
    config["encoders"] = {"random": config["encoders"]["random"]}
    config["results"] = "shuffled"
    (project.folder / "shuffled.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    run = project.snakemake(config="shuffled.yaml")
    assert run.code == 0, run.output
    logs = "".join(p.read_text() for p in Path(project.folder / "shuffled/logs").rglob("*.log"))
    assert "patches embedded" not in logs
    figure = macro_auc(project, "shuffled")
    assert figure["low"] < 0.5 < figure["high"]
