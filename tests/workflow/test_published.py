"""Every source from the download to features, two of them to the report.

Slides are drawn, and the encoder is tiny.
"""

import html
import json
from contextlib import chdir
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from her2.importing.preset import FOLDER
from tests.unit import published
from tests.unit.test_cli import command
from tests.unit.test_presets import confirm
from tests.workflow.project import Project, Run

CASES = 5
TABLE_LABEL = "her2=Score HER2"
TINY = {"source": "random", "model": "timm/resnet10t", "mpp": 1.0, "size": 32}


def small(config: dict[str, Any], **folds: int) -> dict[str, Any]:
    """The preset with a tiny encoder, two epochs, one seed and few folds, and else as it is."""
    config["encoders"] = {"tiny": TINY}
    config["training"] = {**config.get("training", {}), "seeds": 1, "epochs": 2, "bag_size": 16}
    config["folds"] = {**config.get("folds", {}), **folds}
    config["evaluation"] = {**config.get("evaluation", {}), "bootstrap": 100, "permutations": 100}
    config["heatmaps"] = {"slides": 0, "faithfulness_slides": 0}
    return config


def imported(project: Project, *arguments: str) -> None:
    with chdir(project.folder):
        done = command("import", *arguments)
    assert done.exit_code == 0, f"{done.output}{done.exception}"


def run(
    project: Project,
    preset: Path,
    *targets: str,
    validation: dict[str, Any] | None = None,
    **folds: int,
) -> Run:
    config = small(yaml.safe_load(preset.read_text()), **folds)
    if validation:
        config["validation"] = validation
    (project.folder / "small.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return project.snakemake(*targets, config="small.yaml")


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


@pytest.fixture(scope="module")
def features(warm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Run]:
    """One run to the features: BCNB's own config, and two cohorts to test its models on."""
    project = Project(tmp_path_factory.mktemp("features"), warm)
    data = project.folder / "data"
    published.bcnb(data / "BCNB", published.tissue, 12)
    published.warwick(data / "warwick", published.tissue, cases=3)
    published.export(data / "export.xlsx", data / "scans", published.tissue, cases=3)
    imported(project, "bcnb", "data/BCNB", "--mpp", "0.5")
    imported(project, "warwick", "data/warwick", "--external")
    table = ["table", "data/export.xlsx", "--slides", "data/scans", "--column", TABLE_LABEL]
    table += ["--column", "patient=Fallnummer", "--external"]
    with chdir(project.folder):
        assert "labels.csv" in str(command("import", *table).exception)
        confirm(Path("table/labels.csv"))
    imported(project, *table)
    external = {
        "warwick": {"slides": "warwick/slides.csv", "root": "data/warwick"},
        "table": {"slides": "table/slides.csv", "root": "data/scans"},
    }
    return project, run(project, project.folder / "bcnb/bcnb.yaml", "features", validation=external)


@pytest.mark.parametrize(
    ("cohort", "place", "n_slides"),
    [("bcnb", "", 12), ("warwick", "validation/warwick", 3), ("table", "validation/table", 3)],
)
def test_every_imported_slide_has_features(
    cohort: str, place: str, n_slides: int, features: tuple[Project, Run]
) -> None:
    project, done = features
    assert done.code == 0, done.output
    rows = pl.read_csv(project.folder / cohort / "slides.csv")
    assert len(rows) == n_slides
    entries: dict[str, Any] = {}
    for path in (project.folder / "bcnb/results" / place / "features/tiny").glob("*-of-*.json"):
        entries |= json.loads(path.read_text())
    assert sorted(entries) == sorted(rows["slide_id"])
    assert {one["status"] for one in entries.values()} == {"ok"}
    assert all(one["tiles"] >= 4 for one in entries.values())


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
