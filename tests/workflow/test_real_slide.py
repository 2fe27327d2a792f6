"""A real Aperio slide goes through stage 1 as a user's own cohort."""

from pathlib import Path

import polars as pl
import pytest
import yaml

from her2.storage.features import open_store, read_coords
from tests.workflow.project import CONFIG, REPOSITORY, Project

SLIDE = REPOSITORY.parent / "shared" / "slides" / "cmu-1-small-region.svs"


@pytest.mark.skipif(not SLIDE.exists(), reason="the folder of real slides is not here")
def test_a_real_slide_is_tiled_and_embedded_at_its_own_scale(tmp_path: Path) -> None:
    project = Project(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    project.edit(encoders={"tiny": {"source": "random", "model": "timm/resnet10t", "mpp": 0.5,
                                    "size": 224}})  # fmt: skip
    project.write_rows([f"cmu-1,{SLIDE},cmu,2+,x"])
    run = project.snakemake("features")
    assert run.code == 0, run.output
    row = pl.read_parquet(tmp_path / "results/cohort/slides.parquet").row(0, named=True)
    assert (row["mpp_x"], row["mpp_y"], row["mpp_source"]) == (0.499, 0.499, "metadata")
    store = tmp_path / "results/features/tiny/cmu-1.zarr.zip"
    # 0.60 mm2 of tissue is the area of 48 tiles of 112 x 112 um; with those of its border that hold
    # three tenths of tissue there are a few more.
    area = row["tissue_mm2"] / 0.112**2
    assert area == pytest.approx(48, abs=1)
    assert area <= row["tiles"] <= 1.25 * area
    assert len(open_store(store)) == row["tiles"]
    assert set(read_coords(store)[:, 0]) <= {int(i * 224 * 0.5 / 0.499) for i in range(9)}
