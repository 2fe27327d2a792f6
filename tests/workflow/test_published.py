"""Two presets from the download to the report, on drawn slides and with a tiny encoder."""

import html
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from her2.importing.preset import FOLDER
from tests.unit import published
from tests.workflow.project import Project, Run

CASES = 5
TINY = {"source": "random", "model": "timm/resnet10t", "mpp": 0.5, "size": 64}


def small(config: dict[str, Any], **folds: int) -> dict[str, Any]:
    """The preset with a tiny encoder, two epochs, one seed and few folds, and else as it is."""
    config["encoders"] = {"tiny": TINY}
    config["training"] = {**config.get("training", {}), "seeds": 1, "epochs": 2, "bag_size": 16}
    config["folds"] = {**config.get("folds", {}), **folds}
    config["evaluation"] = {**config.get("evaluation", {}), "bootstrap": 100, "permutations": 100}
    config["heatmaps"] = {"slides": 0, "faithfulness_slides": 0}
    return config


def imported(project: Project, *arguments: str) -> None:
    done = project.her2("import", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def run(project: Project, preset: Path, **folds: int) -> Run:
    config = small(yaml.safe_load(preset.read_text()), **folds)
    (project.folder / "small.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return project.snakemake(config="small.yaml")


@pytest.fixture(scope="module")
def herohe(warm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Run]:
    project = Project(tmp_path_factory.mktemp("herohe"), warm)
    published.herohe(project.folder / "data", published.tissue, training=16, test=8)
    imported(project, "herohe", "data")
    return project, run(project, project.folder / "herohe/herohe.yaml")


@pytest.fixture(scope="module")
def yale(warm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Run]:
    project = Project(tmp_path_factory.mktemp("yale"), warm)
    data = project.folder / "data"
    sites = published.TCGA_SITES[:5]
    clinical = published.tcga_brca(data / "tcga-brca", published.tissue, sites)
    published.yale(data / "yale", published.tissue, cases=CASES, responses=0)
    imported(project, "tcga-brca", "data/tcga-brca", "--clinical", str(clinical))
    imported(project, "yale", "data/yale")
    return project, run(project, FOLDER / "tcga-to-yale.yaml", number=2, repeats=1)


def test_herohe_is_tested_on_its_official_test_set_alone(herohe: tuple[Project, Run]) -> None:
    project, done = herohe
    assert done.code == 0, done.output
    results = project.folder / "herohe/results"
    for task in ("score", "status"):
        path = results / "evaluation" / task / "tiny/abmil/predictions.parquet"
        roles = pl.read_parquet(path).select("slide_id", "role")
        tested = set(roles.filter(pl.col("role") == "test")["slide_id"])
        assert tested == {f"test-{case}" for case in range(1, 9)}
    slides = pl.read_csv(results / "cohort/slides.csv")
    assert set(slides["status"]) == {"ok"}
    assert slides["mpp_x"].to_list() == pytest.approx([0.2425] * 24)


def test_yale_is_predicted_by_models_of_tcga_with_its_own_truth(yale: tuple[Project, Run]) -> None:
    project, done = yale
    assert done.code == 0, done.output
    results = project.folder / "results/tcga-to-yale"
    found = pl.read_parquet(
        results / "validation/yale/evaluation/status/tiny/abmil/predictions.parquet"
    )
    labelled = found.filter(pl.col("role") == "test")
    assert dict(labelled.select("slide_id", "target").iter_rows()) == {
        f"Her2{side}_Case_{case:02}": target
        for side, target in (("Pos", 1), ("Neg", 0))
        for case in range(1, CASES + 1)
    }
    metrics = pl.read_parquet(
        results / "validation/yale/evaluation/status/tiny/abmil/metrics.parquet"
    )
    assert metrics.filter(pl.col("metric") == "auc")["value"].is_not_null().any()


@pytest.mark.parametrize("cohort", ["herohe", "yale"])
def test_the_run_of_a_preset_ends_with_a_report(
    cohort: str, request: pytest.FixtureRequest
) -> None:
    project, _ = request.getfixturevalue(cohort)
    (page,) = project.folder.glob("*/*/report/report.html")
    text = page.read_text()
    config = yaml.safe_load((project.folder / "small.yaml").read_text())
    assert html.escape(config["report"]["title"]) in text
    assert json.loads((project.folder / cohort / "import.json").read_text())["n_slides"] > 0
