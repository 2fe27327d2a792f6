"""Weights files that are bad, at every door by which somebody's file comes in."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from her2.config import EncoderSection, TilingSection
from her2.config.catalogue import CatalogueRow, row
from her2.config.jobs import SegmenterSpec
from her2.core.errors import UserError
from her2.frozen.bundle.read import read_bundle
from her2.frozen.bundle.segmenters import segmenter_facts
from her2.tiling.segmenter import fetch_segmenter
from tests.unit import test_artefact_segmenters as of_artefacts
from tests.unit.bundle_makers import Parts, parts
from tests.unit.products import materialise
from tests.unit.segmenter_makers import put
from tests.unit.test_segmenters import convolutions, save_weights, small

pytestmark = pytest.mark.usefixtures("one_thread")

Door = Callable[[Path], object]


class Payload:
    """An object whose pickle creates a file when a plain unpickler loads it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.target}",))


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def small_row(monkeypatch: pytest.MonkeyPatch, architecture: str, pin: str | None) -> None:
    """Put a row of timm's smallest transformer into the catalogue, with this pin."""
    known = row("vit-small").model_dump() | {
        "name": "small", "architecture": architecture, "arguments": {"img_size": 32}, "size": 32,
        "dimension": 64, "sha256": pin, "unpinned": None if pin else "a test",
        "revision": "1" * 40 if pin else None,
    }  # fmt: skip
    rows = {"small": CatalogueRow(**known)}
    monkeypatch.setattr("her2.config.catalogue.catalogue", lambda: rows)


def of_row(path: Path, **more: Any) -> EncoderSection:
    return EncoderSection(
        source="catalogue", model="small", size=32, mpp=0.5, checkpoint=path, **more
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return parts(tmp_path_factory.mktemp("parts"))


DOORS = (
    "checkpoint", "row, stated digest", "row, its own digest", "row without a digest",
    "row of the library", "segmenter", "artefact segmenter", "bundle's encoder",
    "bundle's segmenter",
)  # fmt: skip


@pytest.fixture(params=DOORS)
def door(
    request: pytest.FixtureRequest, made: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Door:
    """Return what takes a weights file."""
    for one in (small(), of_artefacts.small()):
        put(monkeypatch, one)
    out, name = tmp_path / "out", request.param
    if name == "checkpoint":
        return lambda path: materialise(
            EncoderSection(
                source="checkpoint", model="timm/test_vit", checkpoint=path, mpp=0.5, size=32,
                domain="none",
            ), 0, out,
        )  # fmt: skip
    if name.startswith("row"):

        def take(path: Path) -> object:
            pin = digest_of(path) if name in ("row, its own digest", "row of the library") else None
            pin = "0" * 64 if "stated" in name else pin
            small_row(monkeypatch, "test_vit.r160_in1k" if "library" in name else "test_vit", pin)
            stated = {"sha256": digest_of(path)} if "stated" in name else {}
            return materialise(of_row(path, **stated), 0, out)

        return take
    if name == "segmenter":
        return lambda path: fetch_segmenter(SegmenterSpec(segmenter="hest", weights=path), out)
    if name == "artefact segmenter":
        return lambda path: fetch_segmenter(
            SegmenterSpec(segmenter="grandqc", artefacts=True, weights=path), out
        )
    if name == "bundle's encoder":
        own = made.with_encoder(source="checkpoint", included=False, why="no licence is stated")
        bundle = read_bundle(own.write(tmp_path / "a.bundle"))
        return lambda path: bundle.encoder_folder(out, given=path)
    good = save_weights(tmp_path / "good.ckpt")
    fetch_segmenter(
        SegmenterSpec(segmenter="hest", weights=good), tmp_path / "results/segmenters/hest"
    )
    options = TilingSection(segmenter="hest")
    tiling: dict[str, Any] = {
        "options": options, "seed": None, "max_failed_tiles": 0.0, "annotated": 0, "tissue": {},
        "segmenters": segmenter_facts(tmp_path / "results", options),
    }  # fmt: skip
    bundle = read_bundle(made.with_body(tiling=tiling).write(tmp_path / "a.bundle"))
    return lambda path: bundle.segmenter_folders(out, given={"segmenter": path})


def good_state(name: str) -> dict[str, torch.Tensor]:
    if "artefact" in name:
        return of_artefacts.colours().state_dict()
    if "segmenter" in name:
        return convolutions().state_dict()
    return timm.create_model("test_vit", num_classes=0, img_size=32).state_dict()


@pytest.mark.parametrize("fault", ["truncated", "code", "another architecture", "a page of HTML"])
def test_a_bad_file_is_refused_by_name_and_nothing_in_it_is_run(
    door: Door, fault: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path, ran = tmp_path / "weights.pt", tmp_path / "ran"
    state = good_state(request.node.callspec.params["door"])
    if fault == "code":
        torch.save({"state_dict": state, "hyper_parameters": Payload(ran)}, path)
    elif fault == "another architecture":
        torch.save({"stem.weight": torch.ones(7, 3, 3, 3), "stem.bias": torch.ones(7)}, path)
    else:
        torch.save(state, path)
        content = path.read_bytes()
        kept = content[: len(content) // 2]
        path.write_bytes(b"<html>sign in</html>" if "HTML" in fault else kept)
    with pytest.raises(UserError) as caught:
        door(path)
    said = str(caught.value)
    assert str(path) in said
    assert not ran.exists()
    assert not (tmp_path / "out" / "card.json").exists()
    words = {
        "code": ["code in a weights file is never run"],
        "another architecture": [
            "missing",
            "unexpected",
            "stem.weight: unexpected, of shape (7, 3, 3, 3)",
        ],
    }.get(fault, ["is not a weights file"])
    assert all(one in said for one in words), said


def test_an_encoder_at_an_untrained_scale_is_made_and_its_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "weights.pt"
    torch.save(good_state("row"), path)
    small_row(monkeypatch, "test_vit", digest_of(path))
    known = row("small").model_copy(update={"mpp": 0.5, "mpp_basis": "stated"})
    monkeypatch.setattr("her2.config.catalogue.catalogue", lambda: {"small": known})
    for mpp, said in ((0.5, False), (2.0, True)):
        caplog.clear()
        section = of_row(path).model_copy(update={"mpp": mpp})
        materialise(section, 0, tmp_path / f"out{mpp}")
        assert ("small was trained at 0.5 um/px but gets patches at 2 um/px" in caplog.text) == said
