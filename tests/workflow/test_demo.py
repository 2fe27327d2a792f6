"""The demo as a new user runs it: a fresh copy of what git tracks, the default config, no flags."""

import csv
import random
import re
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest
import yaml

from tests.workflow.project import REPOSITORY, Project, Run

pytestmark = pytest.mark.nightly


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


def macro_auc(
    project: Project, results: str, task: str = "score", encoder: str = "random"
) -> dict[str, float]:
    path = project.folder / results / f"evaluation/{task}/{encoder}/abmil/metrics.parquet"
    return pl.read_parquet(path).row(
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
    assert len(run.work["embedded"]) == 5 * (60 + 24)  # both cohorts, for each encoder


def test_the_demos_second_run_has_nothing_to_do(demo: tuple[Project, Run]) -> None:
    run = demo[0].snakemake(config=None)
    assert run.idle, run.output


def test_a_deleted_slide_is_drawn_again_by_one_job(demo: tuple[Project, Run]) -> None:
    project, _ = demo
    slides = project.folder / "resources/demo/slides"
    kept = {path.name for path in slides.iterdir()}
    slide = slides / "demo-001-a.svs"
    aside = slide.rename(project.folder / slide.name)
    try:
        run = project.snakemake("--dry-run", str(slide.relative_to(project.folder)), config=None)
    finally:
        aside.rename(slide)
    assert len(re.findall(r"^rule draw_slides_\w+:", run.output, re.MULTILINE)) == 1, run.output
    assert run.output.count("jobid: ") == 1, run.output
    assert {path.name for path in slides.iterdir()} == kept


def test_the_true_labels_clear_chance(demo: tuple[Project, Run]) -> None:
    """Those of the encoder that was pre-trained on the planted signal."""
    figure = macro_auc(demo[0], "results", encoder="he-morphology")
    assert figure["low"] > 0.55


def test_shuffled_labels_do_not(demo: tuple[Project, Run]) -> None:
    """The same features, the scores permuted over patients: only the labels' meaning is gone.

    One permutation in twenty is outside its own 95 % interval by chance, so there are five.
    """
    project, _ = demo
    with (project.folder / "workflow/demo/slides.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    scores = {row["patient_id"]: row["her2"] for row in rows}
    patients = sorted(scores)
    names = [f"shuffled{seed}" for seed in range(5)]
    for seed, name in enumerate(names):
        permuted = random.Random(seed).sample([scores[p] for p in patients], len(patients))
        by_patient = dict(zip(patients, permuted, strict=True))
        for row in rows:
            row[name] = by_patient[row["patient_id"]]
    with (project.folder / "shuffled.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    config = yaml.safe_load((project.folder / "config.yaml").read_text())
    config["cohort"] |= {"slides": "shuffled.csv", "synthetic": False}
    config["tasks"] = {name: {**config["tasks"]["score"], "label": name} for name in names}
    config["encoders"] = {"random": config["encoders"]["random"]}
    config["heatmaps"] = {"slides": 0}
    del config["validation"]  # its labels are those of the scores
    config["results"] = "shuffled"
    (project.folder / "shuffled.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    run = project.snakemake("compare_encoders", config="shuffled.yaml")
    assert run.code == 0, run.output
    logs = "".join(p.read_text() for p in Path(project.folder / "shuffled/logs").rglob("*.log"))
    assert "patches embedded" not in logs
    figures = [macro_auc(project, "shuffled", name) for name in names]
    assert sum(figure["low"] < 0.5 < figure["high"] for figure in figures) >= 4, figures
    assert abs(sum(figure["value"] for figure in figures) / 5 - 0.5) < 0.08, figures
