"""Features of other programs: from a folder and a CSV to the report, as docs/features.md says."""

import csv
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from tests.unit.exchange_makers import write_trident, write_trident_slide
from tests.workflow.project import REPOSITORY, Project

pytestmark = pytest.mark.xdist_group("workflow")

PAGE = REPOSITORY / "docs/features.md"
SLIDES = 10
BAD = "A-003"
SMALL = {
    "training": {"bag_size": 16, "epochs": 2, "patience": 2},
    "folds": {"number": 2},
    "evaluation": {"bootstrap": 100, "permutations": 100},
    "cohort": {"slides": "slides.csv", "max_excluded": 0.2},
}
"""What keeps the run short; all else is the page's."""


def block(language: str) -> str:
    """The page's only block of a language, without its indentation."""
    found = re.findall(rf"(?ms)^ *```{language}\n(.*?)^ *```", PAGE.read_text())
    assert len(found) == 1, language
    indent = len(found[0]) - len(found[0].lstrip())
    return "".join(line[indent:] + "\n" for line in found[0].splitlines())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, warm: Path) -> Project:
    """A newcomer's folder: features of TRIDENT, vectors of a slide encoder, a CSV, no slide."""
    project = Project(tmp_path_factory.mktemp("features"), warm)
    rng = np.random.default_rng(4)
    names = [row["slide_id"] for row in csv.DictReader(block("csv").splitlines())]
    assert names == ["A-001", "A-002"]
    rows = []
    for folder in ("features_uni", "features_titan"):
        (project.folder / folder).mkdir()
    for number in range(1, SLIDES + 1):
        name, high = f"A-{number:03d}", number % 2
        rows.append(f"{name},P-{number},{'3+' if high else '0'}")
        tiles = rng.normal(size=(30, 8)).astype(np.float32)
        tiles[:10, 0] += 4 * high
        write_trident(project.folder / f"features_uni/{name}.h5", tiles)
        write_trident_slide(project.folder / f"features_titan/{name}.h5", tiles.mean(axis=0))
    (project.folder / f"features_uni/{BAD}.h5").write_bytes(b"a copy that was broken off")
    header = block("csv").splitlines()[0]
    (project.folder / "slides.csv").write_text("\n".join([header, *rows]) + "\n")
    config = yaml.safe_load(block("yaml"))
    config["encoders"]["titan"] = {
        "source": "features", "path": "features_titan", "identity": "TITAN, TRIDENT 0.3.1",
    }  # fmt: skip
    config["heads"] = {"logistic": {}, "mlp": {"layers": [8]}}
    (project.folder / "features.yaml").write_text(yaml.safe_dump({**config, **SMALL}))
    return project


def test_a_newcomer_with_features_and_a_csv_gets_a_report(project: Project) -> None:
    check, run = block("bash").splitlines()
    assert run == "snakemake --cores 8 --configfile features.yaml"
    checked = project.her2(*check.split()[1:])
    assert checked.returncode == 1
    assert f"slide {BAD!r}, encoder uni: {BAD}.h5: " in checked.stderr
    done = project.snakemake(config="features.yaml")
    assert done.code == 0, done.output
    assert f"{SLIDES} of {SLIDES} slides are absent" in done.output
    assert {"tile_bucket", "embed_bucket", "materialise_encoder"}.isdisjoint(done.rules)
    assert len(done.work["embedded"]) == 2 * SLIDES - 1
    results = project.folder / "results"

    metrics = pl.read_parquet(results / "evaluation/score/titan/mlp/metrics.parquet")
    assert metrics.filter(level="patient", metric="auc", **{"class": "macro"})["value"].item() > 0
    predicted = pl.read_parquet(results / "evaluation/score/uni/logistic/predictions.parquet")
    assert set(predicted["slide_id"]) == {f"A-{n:03d}" for n in range(1, SLIDES + 1)} - {BAD}

    methods = (results / "report/methods.txt").read_text()
    assert "UNI, TRIDENT 0.3.1, as stated by the user; 8 features per tile, of patches" in methods
    assert "TITAN, TRIDENT 0.3.1, as stated by the user; 8 features per slide" in methods
    assert "were not computed here, but taken from files of another program" in methods
    assert "Slides were cut" not in methods
    page = (results / "report/report.html").read_text()
    for words in (
        "uni: its features were not computed here. They are UNI, TRIDENT 0.3.1",
        "(form trident)",
        "(form vector)",
        "No slide was tiled here",
        f"{SLIDES} of {SLIDES} slides are absent",
        "1 slide failed at the take stage (given-uni)",
    ):
        assert words in page, words
    assert list((results / "heatmaps/score/uni/mlp").rglob("*.png")) == []
    encoders = pl.read_csv(results / "report/tables/encoders.csv")
    assert encoders["precision_used"].to_list() == ["not recorded"] * 2

    again = project.snakemake(config="features.yaml")
    assert again.idle, again.output


def test_the_questions_about_a_run_know_features_from_elsewhere(project: Project) -> None:
    if not (project.folder / "results/report").exists():
        pytest.skip("the run before this test failed")
    (project.folder / "config.yaml").symlink_to("features.yaml")
    status = project.her2("status")
    assert f"{BAD}: failed: {BAD}.h5: " in status.stdout, status.stderr
    asked = ("explain", "A-001", "--snakefile", str(project.snakefile))
    explained = project.her2(*asked)
    assert "features_uni/A-001.h5, UNI, TRIDENT 0.3.1, not computed here" in explained.stdout
    assert explained.stdout.count("the same key, in the cache") == 2
    model = ("--encoder", "uni", "--head", "mlp")
    heatmaps = project.her2("heatmaps", "results", *model, "--out", "pictures", "--slides", "A-001")
    assert "A-001: there is no slide (column 'path')" in heatmaps.stderr
    bundle = project.her2("bundle", "results", *model, "--out", "bundle")
    assert "its features were computed elsewhere (UNI, TRIDENT 0.3.1)" in bundle.stderr
