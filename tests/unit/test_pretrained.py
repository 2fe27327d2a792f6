"""The pre-training stage without its loop: source slides of the patches, downloads, folders."""

import time
from pathlib import Path

import huggingface_hub
import huggingface_hub.errors
import pytest
import safetensors.torch
import torch

from her2.config import EncoderSection, PatchesSection
from her2.config.catalogue import row
from her2.core.errors import UserError
from her2.encoders import stage
from her2.encoders.backbones import build_backbone
from her2.encoders.fetching import fetch
from her2.pretraining.stage import slide_fingerprints
from her2.slides.fingerprint import fingerprint
from tests.unit.products import materialise


def section(slides: Path) -> PatchesSection:
    return PatchesSection(format="folders", path=slides.parent, slides=slides)


def test_the_slides_behind_the_patches_are_known_by_content(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_bytes(b"one")
    (tmp_path / "b.svs").write_bytes(b"two")
    (tmp_path / "slides.csv").write_text("path\na.svs\nb.svs\n")
    expected = sorted(fingerprint(tmp_path / name) for name in ("a.svs", "b.svs"))
    assert slide_fingerprints(section(tmp_path / "slides.csv")) == expected


def test_all_missing_slides_are_named(tmp_path: Path) -> None:
    (tmp_path / "slides.csv").write_text("path\na.svs\nb.svs\n")
    with pytest.raises(UserError, match="2 problem") as caught:
        slide_fingerprints(section(tmp_path / "slides.csv"))
    assert "a.svs" in str(caught.value)
    assert "b.svs" in str(caught.value)


def encoder(checkpoint: Path) -> EncoderSection:
    return EncoderSection(
        source="checkpoint", model="timm/resnet10t", mpp=1.0, size=32, domain="he",
        checkpoint=checkpoint,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["weights.safetensors", "model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_weights_is_a_checkpoint(tmp_path: Path, name: str) -> None:
    torch.manual_seed(3)
    backbone = build_backbone("timm", "resnet10t", feature="pooled", arguments={})
    folder = tmp_path / "downloaded"
    folder.mkdir()
    if name.endswith(".bin"):
        torch.save(backbone.state_dict(), folder / name)
    else:
        safetensors.torch.save_file(backbone.state_dict(), folder / name)
    card = materialise(encoder(folder), 1, tmp_path / "encoder")
    assert card.weights_sha256 == stage.weights_digest(backbone.state_dict())
    assert card.provenance["file"] == name


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weights\.safetensors or model\.safetensors"):
        materialise(encoder(tmp_path), 1, tmp_path / "encoder")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.mark.usefixtures("patient")
def test_a_download_that_breaks_off_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def flaky(hub: str, file: str, revision: str | None = None) -> str:
        calls.append((hub, file))
        if len(calls) < 3:
            raise ConnectionError("connection reset")
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", flaky)
    uni = row("uni")
    assert fetch(uni) == tmp_path / str(uni.file)
    assert calls == [(uni.hub, uni.file)] * 3


@pytest.mark.usefixtures("patient")
def test_no_network_names_the_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    def down(hub: str, file: str, revision: str | None = None) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", down)
    with pytest.raises(UserError, match="`checkpoint: PATH` to a downloaded"):
        fetch(row("uni"))


def test_a_gated_model_names_the_page_to_ask_at(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def gated(hub: str, file: str, revision: str | None = None) -> str:
        calls.append(hub)
        raise huggingface_hub.errors.GatedRepoError.__new__(huggingface_hub.errors.GatedRepoError)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", gated)
    uni = row("uni")
    with pytest.raises(UserError, match=str(uni.ask_at)) as caught:
        fetch(uni)
    assert "HF_TOKEN" in str(caught.value)
    assert len(calls) == 1  # asking again would not open it
