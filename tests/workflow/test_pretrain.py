"""An encoder pre-trained on patches, and what happens when it saw the cohort's patients."""

import json

import pytest

from her2.synthetic.patches import draw_patch_set
from tests.workflow.project import Project


@pytest.fixture
def pretrained(project: Project) -> Project:
    """A project with a second encoder, trained for one epoch on 48 patches."""
    table = draw_patch_set(
        "natural", project.folder / "patches", n_per_class=8, size_px=64, mpp=1.0, seed=1
    )
    patient = project.rows()[0].split(",")[2]
    table.write_text(table.read_text().replace(",photo-0001\n", f",{patient}\n"))
    trained = {"source": "pretrain", "model": "timm/resnet10t", "data": "set", "init": "random",
               "domain": "natural", "mpp": 1.0, "size": 64}  # fmt: skip
    project.edit(
        patches={"set": {"format": "csv", "path": "patches/labels.csv"}},
        pretraining={"epochs": 1, "batch_size": 16},
        encoders={"trained": trained},
    )
    return project


def test_a_shared_case_stops_the_run_and_names_the_patient(pretrained: Project) -> None:
    patient = pretrained.rows()[0].split(",")[2]
    run = pretrained.snakemake()
    assert run.code != 0
    assert f"patient {patient}: case '{patient}'" in run.output
    assert "allow_overlap: true" in run.output
    assert not (pretrained.folder / "results/evaluation/score/trained").exists()


def test_an_allowed_overlap_marks_every_figure_of_the_encoder(pretrained: Project) -> None:
    patient = pretrained.rows()[0].split(",")[2]
    pretrained.edit(
        encoders={
            "trained": {"source": "pretrain", "model": "timm/resnet10t", "data": "set",
                        "init": "random", "domain": "natural", "mpp": 1.0, "size": 64,
                        "allow_overlap": True}
        }
    )  # fmt: skip
    run = pretrained.snakemake()
    assert run.code == 0, run.output
    assert len(run.work["embedded"]) == 12  # the new encoder's; the other's are in the cache
    found = json.loads((pretrained.folder / "results/encoders/trained/overlap.json").read_text())
    assert found["patients"] == [patient]
    page = (pretrained.folder / "results/report/report.html").read_text()
    assert "†" in page
    assert "its results are optimistic" in page
    again = pretrained.snakemake()
    assert again.idle, again.output
