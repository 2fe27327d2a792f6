"""A cache made by an earlier version serves a later one: nothing in it is made again."""

import shutil
from pathlib import Path

import pytest

from tests.workflow.project import REPOSITORY, Project

ARCHIVE = REPOSITORY / "tests/data/cache-0.1.0.tar.xz"
"""Eight slides of 256 px, a config, and the cache that version 0.1.0 (commit 4f4f78e) made of them
with `snakemake train`; the encoder's weights are made here by `write_even_weights`."""

SLIDES = [f"s{number}" for number in range(8)]


def write_even_weights(path: Path) -> None:
    """Weights by arithmetic: the same on every machine, and not worth keeping in a file."""
    import safetensors.torch  # here, since it is slow and every test beside this one does without
    import timm
    import torch

    state = {
        name: (((torch.arange(values.numel()) * 7919) % 201 - 100).float() / 2000).reshape(
            values.shape
        )
        for name, values in timm.create_model("test_vit", num_classes=0, img_size=64)
        .state_dict()
        .items()
    }
    safetensors.torch.save_file(state, path)


@pytest.fixture
def earlier(tmp_path: Path, warm: Path) -> Project:
    """The project as version 0.1.0 left it, without its results."""
    shutil.unpack_archive(ARCHIVE, tmp_path)
    write_even_weights(tmp_path / "weights.safetensors")
    return Project(tmp_path, warm)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_products_of_an_earlier_version_are_found_and_not_made_again(earlier: Project) -> None:
    before = files(earlier.folder / "cache")
    run = earlier.snakemake("train")
    assert run.code == 0, run.output
    assert run.work == {"tiled": [], "embedded": [], "trained": []}
    assert sorted(earlier.features()) == SLIDES
    assert files(earlier.folder / "cache") == before


def test_products_of_an_earlier_version_pass_verification(earlier: Project) -> None:
    done = earlier.her2("cache", "verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "26 products read, 0 broken" in done.stderr


def test_a_changed_option_is_not_served_from_the_earlier_cache(earlier: Project) -> None:
    earlier.edit(heads={"abmil": {"hidden": 4, "attention": 5}}, tiling={"min_tissue": 0.9})
    run = earlier.snakemake("train")
    assert run.code == 0, run.output
    assert run.work["tiled"] == SLIDES
    assert run.work["trained"] == ["r0f0", "r0f1"]
