"""One tiny cohort, drawn and run once a session; each test works on its own copy."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from her2.synthetic import demo_manifest, draw_slide
from tests.workflow.project import CONFIG, WEIGHTS, Project
from tests.workflow.warm import Warm


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder whose `python` starts jobs without importing anything."""
    server = Warm(tmp_path_factory.mktemp("warm"))
    yield server.bin
    server.close()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, warm: Path) -> Project:
    """12 patients in the manifest, a 13th drawn beside it, and everything run once."""
    project = Project(tmp_path_factory.mktemp("finished"), warm)
    rows = demo_manifest(12, seed=7)
    rows.append({**rows[0], "slide_id": "spare-a", "patient_id": "spare", "her2": "0"})
    rows[-1]["path"] = "slides/spare-a.svs"
    for row in [*rows, *elsewhere()]:
        draw_slide(
            **{name: row[name] for name in ("slide_id", "patient_id", "her2", "site")},
            seed=7,
            slide_path=project.folder / row["path"],
            mask_path=project.folder / "masks" / f"{row['slide_id']}.png",
            side_px=768,
        )
    project.write_rows([",".join(row.values()) for row in rows[:-1]])
    write_weights(project.folder / "weights.safetensors", seed=1)
    config = {**CONFIG, "encoders": {"tiny": WEIGHTS}}
    (project.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    run = project.snakemake()
    assert run.code == 0, run.output
    return project


def elsewhere() -> list[dict[str, str]]:
    """The rows of another hospital's slides, the last of which is drawn and in no manifest."""
    return [
        {
            "slide_id": f"east-{number}",
            "path": f"slides/east-{number}.svs",
            "patient_id": f"e{number}",
            "her2": score,
            "site": "east",
        }
        for number, score in enumerate(("0", "1+", "2+", "3+", "3+"))
    ]


def add_validation(project: Project) -> list[str]:
    """Name the slides of the other hospital as an external cohort; returns their ids."""
    rows = elsewhere()[:-1]
    project.write_rows([",".join(row.values()) for row in rows], "east.csv")
    project.edit(validation={"east": {"slides": "east.csv"}})
    return [row["slide_id"] for row in rows]


@pytest.fixture(scope="session")
def validated(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The finished project after a run with an external cohort."""
    project = copy(finished, tmp_path_factory.mktemp("validated") / "project")
    add_validation(project)
    run = project.snakemake()
    assert run.code == 0, run.output
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished project, times and all."""
    return copy(finished, tmp_path / "project")


def copy(finished: Project, folder: Path) -> Project:
    """`cp -a`: what a user gets who moves a project."""
    shutil.copytree(finished.folder, folder, copy_function=shutil.copy2, symlinks=True)
    return Project(folder, finished.warm)


def write_weights(path: Path, seed: int) -> None:
    """Random weights of the tests' encoder."""
    import safetensors.torch
    import timm
    import torch

    torch.manual_seed(seed)
    safetensors.torch.save_file(timm.create_model("resnet10t").state_dict(), path)
