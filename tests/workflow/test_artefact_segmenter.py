"""A run with a network that finds artefacts, and back to the cache of before."""

import json

import polars as pl
import torch

from her2.segmenters import artefact_segmenter
from tests.workflow.project import Project

TABLE = "results/cohort/slides.csv"


def test_a_run_fetches_the_network_and_the_cache_of_before_stays_valid(project: Project) -> None:
    """With drawn weights, so that no tile may be rejected by what it finds."""
    project.write_rows(project.rows()[:4])
    assert project.snakemake(TABLE).code == 0
    before = pl.read_csv(project.folder / TABLE)
    assert not [name for name in before.columns if "artefact" in name]

    torch.manual_seed(0)
    torch.save(artefact_segmenter("grandqc").build().state_dict(), project.folder / "w.pth")
    limits = dict.fromkeys(("fold", "dark_spot", "pen", "edge", "out_of_focus"), 1)
    project.edit(
        tiling={
            "artefact_segmenter": "grandqc",
            "artefact_segmenter_weights": "w.pth",
            "artefact_limits": limits,
        }
    )
    run = project.snakemake(TABLE)
    assert run.code == 0, run.output
    assert run.rules["fetch_segmenter"] == 1
    assert len(run.work["tiled"]) == 4
    found = pl.read_csv(project.folder / TABLE)
    source = found["artefact_source"].unique().to_list()
    assert len(source) == 1
    assert source[0].startswith("segmenter grandqc, weights ")
    assert {f"artefact_{name}" for name in limits} < set(found.columns)
    assert found["rejected_artefact_pen"].to_list() == [0] * 4
    assert found["tiles"].to_list() == before["tiles"].to_list()
    assert not set(found["key"]) & set(before["key"])
    assert project.snakemake(TABLE).idle
    stamps = (project.folder / "results/stamps/tile_bucket").rglob("*.json")
    written = [json.loads(path.read_text()) for path in stamps]
    read = [one["read"] for one in written if one["spec"]["tiling"].get("artefact_segmenter")]
    assert read
    assert all("segmenters/artefacts-grandqc/card.json" in names for names in read)

    slide = project.rows()[0].split(",")[0]
    explained = project.her2("explain", slide)
    assert "now   the same key, in the cache" in explained.stdout, explained.stderr

    off = dict.fromkeys(("artefact_segmenter", "artefact_segmenter_weights", "artefact_limits"))
    project.edit(tiling=off)
    again = project.snakemake(TABLE)
    assert again.code == 0, again.output
    assert again.work["tiled"] == []
    assert pl.read_csv(project.folder / TABLE).equals(before)
