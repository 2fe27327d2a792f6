"""Bundles of tiles that a tissue segmenter chose: they name its weights and accept no other."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import nn
from typer.testing import CliRunner, Result

from her2.cli.main import app
from her2.config import TilingSection
from her2.config.jobs import SegmenterSpec
from her2.core.errors import UserError
from her2.frozen.bundle import segmenters
from her2.frozen.bundle.read import Bundle, read_bundle
from her2.frozen.bundle.schema import SegmenterFacts
from her2.frozen.bundle.segmenters import check_tiled_with, segmenter_folder, tissue_segmenter
from her2.prediction.of_bundle import SEGMENTERS
from her2.segmenters import Segmenter
from her2.tiling.segmenter import fetch_segmenter
from her2.tiling.segmenter_card import read_segmenter_card
from tests.unit.bundle_makers import Parts, parts
from tests.unit.test_segmenters import convolutions, save_weights, small

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(autouse=True)
def small_hest(monkeypatch: pytest.MonkeyPatch) -> Segmenter:
    """In place of hest a network of two layers; and no network to fetch weights by."""

    def offline(*_: object, **__: object) -> str:
        raise OSError("Name or service not known")

    one = small()
    for module in ("her2.tiling.segmenter", "her2.tiling.segmenter_card"):
        monkeypatch.setattr(f"{module}.segmenter", lambda name: one)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return one


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Return results whose job has fetched the segmenter."""
    weights = save_weights(tmp_path / "weights.ckpt")
    folder = tmp_path / "results" / "segmenters" / "hest"
    fetch_segmenter(SegmenterSpec(segmenter="hest", weights=weights), folder)
    return tmp_path / "results"


@pytest.fixture
def bundle(made: Parts, results: Path, tmp_path: Path) -> Bundle:
    options = TilingSection(segmenter="hest", min_tiles=1, min_tissue=0.1)
    facts = tissue_segmenter(results, options)
    tiling = {
        "options": options, "seed": None, "max_failed_tiles": 0.0, "annotated": 0,
        "tissue": {"segmenter hest, weights 0": 3}, "segmenter": facts,
    }  # fmt: skip
    return read_bundle(made.with_body(tiling=tiling).write(tmp_path / "her2.bundle"))


def other_network() -> nn.Module:
    network = convolutions()
    with torch.no_grad():
        network[1].bias.add_(0.25)
    return network


def predicted(bundle: Path, out: Path, *arguments: object) -> Result:
    given = ["predict", "--bundle", bundle, "--out", out, "--cache", out.parent / "cache"]
    return CliRunner().invoke(app, [str(one) for one in (*given, *arguments)])


def test_a_bundle_says_which_weights_found_the_tissue_and_has_none(
    bundle: Bundle, results: Path
) -> None:
    card = read_segmenter_card(results / "segmenters" / "hest", "hest")
    found = bundle.schema.tiling.segmenter
    assert found is not None
    assert (found.name, found.weights_sha256) == ("hest", card.weights_sha256)
    assert found.licence == "CC-BY-NC-SA-4.0"
    readme = (bundle.path / "README.md").read_text()
    assert "`--segmenter PATH`" in readme
    assert not [path for path in bundle.path.iterdir() if "seg" in path.name]


def test_a_bundle_of_tissue_by_colour_says_nothing_of_a_segmenter(
    made: Parts, tmp_path: Path
) -> None:
    found = read_bundle(made.write(tmp_path / "a.bundle"))
    values = json.loads((found.path / "bundle.json").read_text())
    assert "segmenter" not in values["tiling"]
    assert tissue_segmenter(tmp_path, TilingSection()) is None
    assert found.segmenter_folder(tmp_path) is None
    with pytest.raises(UserError, match="finds tissue by its colour; leave it out"):
        found.segmenter_folder(tmp_path, given=tmp_path)


@pytest.mark.parametrize("known", [True, False])
def test_a_segmenter_and_its_weights_are_named_together(made: Parts, known: bool) -> None:
    facts = SegmenterFacts(
        name="hest", architecture="", licence="", weights_sha256="0" * 64, digest="1" * 64
    )
    tiling = made.body.tiling.model_dump()
    tiling |= {"segmenter": facts} if known else {"options": TilingSection(segmenter="hest")}
    with pytest.raises(ValidationError, match="name the segmenter"):
        made.with_body(tiling=tiling)


def test_without_a_network_the_error_names_segmenter_digest_and_option(
    bundle: Bundle, drawn_slide: Path, tmp_path: Path
) -> None:
    done = predicted(bundle.path, tmp_path / "out.csv", drawn_slide)
    assert isinstance(done.exception, UserError)
    said = str(done.exception)
    facts = bundle.schema.tiling.segmenter
    assert facts is not None
    for words in (str(bundle.path), "the tissue segmenter hest", "Name or service not known",
                  "--segmenter PATH", facts.weights_sha256, "results/segmenters/hest"):  # fmt: skip
        assert words in said
    assert not (tmp_path / "out.csv").exists()
    assert not list((tmp_path / "cache" / SEGMENTERS).glob("*/*"))


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_given_weights_predict_and_serve_the_next_call_from_the_cache(
    bundle: Bundle, results: Path, drawn_slide: Path, tmp_path: Path, kind: str
) -> None:
    folder = results / "segmenters" / "hest"
    given = folder if kind == "folder" else tmp_path / "weights.ckpt"
    out = tmp_path / "out.csv"
    done = predicted(bundle.path, out, drawn_slide, "--segmenter", given)
    assert done.exit_code == 0, done.output
    (row,) = pl.read_csv(out).filter(level="slide").iter_rows(named=True)
    assert row["status"] == "ok"
    again = bundle.segmenter_folder(tmp_path / "cache" / SEGMENTERS, given=given)
    assert again is not None
    assert (
        read_segmenter_card(again, "hest").weights_sha256
        == read_segmenter_card(folder, "hest").weights_sha256
    )
    if kind == "file":
        (tmp_path / "weights.ckpt").unlink()
        assert predicted(bundle.path, out, drawn_slide).exit_code == 0


@pytest.mark.parametrize("kind", ["folder", "file", "hub"])
def test_other_weights_are_refused_with_both_digests(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    file = save_weights(tmp_path / "other.ckpt", network=other_network())
    own = fetch_segmenter(SegmenterSpec(segmenter="hest", weights=file), tmp_path / "other")
    given: Any = {"folder": tmp_path / "other", "file": file, "hub": None}[kind]
    if kind == "hub":
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(file))
    with pytest.raises(UserError) as caught:
        bundle.segmenter_folder(tmp_path / "into", given=given)
    facts = bundle.schema.tiling.segmenter
    assert facts is not None
    assert facts.weights_sha256 in str(caught.value)
    assert own.weights_sha256 in str(caught.value)
    assert not list(tmp_path.glob("into/*/*"))


def test_weights_that_are_run_otherwise_by_this_version_are_refused(
    bundle: Bundle, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = small(margin_px=4, version=2)
    monkeypatch.setattr("her2.tiling.segmenter_card.segmenter", lambda name: changed)
    with pytest.raises(UserError, match="as another version of her2 runs it"):
        bundle.segmenter_folder(tmp_path / "into", given=results / "segmenters" / "hest")


def test_a_segmenter_that_this_version_lacks_is_named(bundle: Bundle, tmp_path: Path) -> None:
    facts = bundle.schema.tiling.segmenter
    assert facts is not None
    later = facts.model_copy(update={"name": "segmenter9"})
    with pytest.raises(UserError, match="segmenter9, which this version of her2 does not have"):
        segmenter_folder(later, bundle.path, tmp_path)


def test_a_folder_in_the_cache_with_swapped_weights_is_refused(
    bundle: Bundle, results: Path, drawn_slide: Path, tmp_path: Path
) -> None:
    out, given = tmp_path / "out.csv", tmp_path / "weights.ckpt"
    assert predicted(bundle.path, out, drawn_slide, "--segmenter", given).exit_code == 0
    (folder,) = (tmp_path / "cache" / SEGMENTERS).iterdir()
    (folder / "weights.safetensors").unlink()
    state = other_network().state_dict()
    safetensors.torch.save_file(state, folder / "weights.safetensors")
    done = predicted(bundle.path, out, drawn_slide)
    assert isinstance(done.exception, UserError)
    assert "holds other weights than its card says" in str(done.exception)


def test_results_without_the_card_make_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a valid card of a segmenter"):
        segmenters.tissue_segmenter(tmp_path, TilingSection(segmenter="hest"))


def test_weights_that_were_fetched_after_the_slides_were_tiled_make_no_bundle(
    results: Path,
) -> None:
    facts = tissue_segmenter(results, TilingSection(segmenter="hest"))
    assert facts is not None
    own = f"segmenter hest, weights {facts.weights_sha256[:12]}"
    check_tiled_with(facts, ["detected", "mask file", own])
    for other in ("segmenter hest, weights 000000000000", own.replace("hest", "grandqc")):
        with pytest.raises(UserError, match=f"tiled by the {other}.*run snakemake again"):
            check_tiled_with(facts, [own, other])
