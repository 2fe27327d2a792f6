"""`her2 doctor`: published weights, of encoders and of segmenters, and room for them."""

import hashlib
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors as hub_errors
import pytest

from her2.cli.doctor import base, weights
from her2.cli.doctor.base import Finding, Situation, findings
from her2.cli.doctor.checks import all_checks
from her2.config import load_config
from her2.segmenters import artefact_segmenter, segmenter
from her2.segmenters.base import Segmenter
from her2.tiling.segmenter_card import SegmenterCard, write_segmenter_card
from tests.unit.test_doctor import write_config

pytestmark = pytest.mark.usefixtures("one_thread")

ALEXNET = {"source": "catalogue", "model": "alexnet", "mpp": 1.0}
PHIKON = {"source": "catalogue", "model": "phikon"}
SEGMENTERS = (segmenter("hest"), artefact_segmenter("grandqc"))
KEYS = [one.key for one in SEGMENTERS]


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In an empty folder, with a hub that answers and grants, and nothing downloaded before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HER2_CACHE", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "auth_check", lambda *_: None)
    monkeypatch.setattr(base, "_answer", lambda _: 200)
    return tmp_path / "hf"


def down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def found(title: str, folder: Path, encoder: dict[str, Any] | None = None, **more: Any):
    path = write_config(folder, None if encoder is None else {"own": encoder}, **more)
    check = next(one for one in all_checks() if one.title == title)
    return findings(check, Situation(path, load_config(path)))


def segmented(folder: Path, one: Segmenter, **tiling: Any) -> list[Finding]:
    return found("segmenters", folder, tiling={one.key: one.name, **tiling})


# ----------------------------------------------------------------------------- damaged files


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    path = tmp_path / "torch" / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    path.parent.mkdir(parents=True)
    return path


def blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, name: str) -> Path:
    """Put a file into the hub's cache, which links from its name to that of its digest."""
    kept = tmp_path / "hf" / "blobs" / name
    kept.parent.mkdir(parents=True)
    kept.write_bytes(content)
    link = tmp_path / "model.safetensors"
    link.symlink_to(kept)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(link))
    return kept


def test_a_damaged_file_of_torch_hub_is_named_with_its_mend(tmp_path: Path, kept: Path) -> None:
    kept.write_bytes(b"half a file")
    (one,) = found("encoders", tmp_path, ALEXNET)
    assert one.level == "bad"
    assert f"{kept} is damaged" in one.text
    assert one.mend.startswith(f"Delete {kept} and rerun")


def test_a_damaged_file_of_the_hub_is_named_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = hashlib.sha256(b"whole").hexdigest()
    path = blob(tmp_path, monkeypatch, b"whole", whole)
    assert [one.level for one in found("encoders", tmp_path, PHIKON)] == ["ok"]
    for one in SEGMENTERS:
        assert [told.level for told in segmented(tmp_path, one)] == ["ok", "note"]
    path.write_bytes(b"half")
    told = [segmented(tmp_path, one)[0] for one in SEGMENTERS]
    for one in (found("encoders", tmp_path, PHIKON)[0], *told):
        assert one.level == "bad"
        assert one.mend.startswith(f"Delete {path} and rerun")


def test_a_small_file_of_the_hub_is_not_taken_for_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are kept in git are named by git's digest, of 40 digits."""
    blob(tmp_path, monkeypatch, b"whole", "a" * 40)
    assert [one.level for one in found("encoders", tmp_path, PHIKON)] == ["ok"]


def test_a_file_that_is_too_large_to_compare_in_time_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Path
) -> None:
    def forever(*_: object) -> None:
        raise TimeoutError

    kept.write_bytes(b"half a file")
    monkeypatch.setattr(weights, "within", forever)
    (one,) = found("encoders", tmp_path, ALEXNET)
    assert (one.level, "too large to compare" in one.text) == ("ok", True)


# ----------------------------------------------------------------------------- the segmenters


def test_without_a_segmenter_there_is_nothing_to_look_for(tmp_path: Path) -> None:
    assert [one.level for one in found("segmenters", tmp_path)] == ["ok"]
    check = next(one for one in all_checks() if one.title == "segmenters")
    assert [one.level for one in findings(check, Situation(None, None))] == ["ok"]


@pytest.mark.parametrize("one", SEGMENTERS, ids=KEYS)
def test_a_segmenter_says_where_its_weights_come_from_and_what_its_licence_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: Segmenter
) -> None:
    weights, licence = segmented(tmp_path, one)
    assert (weights.level, one.hub in weights.text) == ("ok", True)
    assert (licence.level, one.licence in licence.text) == ("note", True)
    assert f"`{one.key}`" in licence.mend
    down(monkeypatch)
    lost = segmented(tmp_path, one)[0]
    assert lost.level == "bad"
    assert f"hf download {one.hub} {one.file}" in lost.mend
    assert f"`{one.path_key}`" in lost.mend


def test_all_segmenters_of_the_config_are_looked_at(tmp_path: Path) -> None:
    tissue, artefacts = SEGMENTERS
    both = segmented(tmp_path, tissue, **{artefacts.key: artefacts.name})
    assert [one.level for one in both] == ["ok", "note"] * 2
    assert [one.kind in finding.text for one, finding in zip(SEGMENTERS, both[::2], strict=True)]
    together = found("segmenters", tmp_path, tiling={one.key: "grandqc" for one in SEGMENTERS})
    assert len({finding.text for finding in together}) == 4  # two networks have that name


@pytest.mark.parametrize("one", SEGMENTERS, ids=KEYS)
def test_a_segmenter_behind_a_gate_says_whom_to_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: Segmenter
) -> None:
    def refuse(*_: object) -> None:
        raise hub_errors.GatedRepoError.__new__(hub_errors.GatedRepoError)

    monkeypatch.setattr(huggingface_hub.HfApi, "auth_check", refuse)
    weights = segmented(tmp_path, one)[0]
    assert weights.level == "bad"
    assert (one.ask_at or one.card) in weights.mend


@pytest.mark.parametrize("one", SEGMENTERS, ids=KEYS)
def test_weights_of_a_segmenter_that_are_here_need_no_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: Segmenter
) -> None:
    down(monkeypatch)
    given = tmp_path / "seg.ckpt"
    given.write_bytes(b"")
    digest = hashlib.sha256(b"").hexdigest()
    own = {one.path_key: str(given), one.digest_key: digest}
    assert segmented(tmp_path, one, **own)[0].level == "ok"
    assert segmented(tmp_path, one, **{**own, one.digest_key: "a" * 64})[0].level == "bad"
    given.unlink()
    lost = segmented(tmp_path, one, **{one.path_key: str(given)})[0]
    assert (lost.level, lost.mend) == ("bad", f"correct tiling.{one.path_key}")
    folder = tmp_path / "results" / "segmenters" / one.folder
    folder.mkdir(parents=True)
    fetched = {"hub": one.hub, "sha256": digest}
    write_segmenter_card(folder, SegmenterCard(one.name, one.architecture, "", "0", fetched))
    assert segmented(tmp_path, one)[0].level == "ok"
    (folder / "card.json").write_text("{}")
    broken = segmented(tmp_path, one)[0]
    assert (broken.level, broken.mend) == ("bad", f"delete {folder}")


@pytest.mark.parametrize("key", KEYS)
def test_a_segmenter_without_its_library_keeps_a_run_from_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    lacking = found("segmenters", tmp_path, tiling={key: "grandqc"})[0]
    assert lacking.level == "bad"
    assert lacking.text.startswith(f"{key}: grandqc ")
    assert "not installed" in lacking.text
    assert "pip install" in lacking.mend


# ----------------------------------------------------------------------------- room for downloads


@pytest.mark.parametrize(
    ("encoder", "tiling", "folder", "variable"),
    [
        (PHIKON, {}, "hf", "HF_HOME"),
        (ALEXNET, {}, "torch/hub", "TORCH_HOME"),
        (None, {"segmenter": "hest"}, "hf", "HF_HOME"),
        (None, {"artefact_segmenter": "grandqc"}, "hf", "HF_HOME"),
        ({"source": "timm", "model": "resnet18.a1_in1k", "mpp": 0.5, "size": 224}, {}, "hf",
         "HF_HOME"),
    ],
    ids=["hub", "torch.hub", "segmenter", "artefact segmenter", "timm"],
)  # fmt: skip
def test_room_is_told_where_weights_are_yet_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Any, tiling: Any, folder: str,
    variable: str,
) -> None:  # fmt: skip
    (told,) = (
        one for one in found("disk", tmp_path, encoder, tiling=tiling) if "weights" in one.text
    )
    assert told.text.startswith(f"weights {tmp_path / folder}: ")
    assert "inodes" in told.text
    (tmp_path / folder).parent.mkdir(exist_ok=True)
    (tmp_path / folder).write_text("a file")
    (full,) = (
        one for one in found("disk", tmp_path, encoder, tiling=tiling) if "weights" in one.text
    )
    assert full.level == "bad"
    assert f"set {variable} to a folder with room" in full.mend


def test_no_room_is_asked_for_what_is_here_or_needs_no_download(tmp_path: Path, kept: Path) -> None:
    kept.write_bytes(b"")
    for encoder in (ALEXNET, None):
        told = [one.text for one in found("disk", tmp_path, encoder)]
        assert not [text for text in told if text.startswith("weights")]


@pytest.mark.parametrize("one", SEGMENTERS, ids=KEYS)
def test_weights_that_a_run_made_of_another_file_are_not_those_of_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: Segmenter
) -> None:
    """It would make them again, so what is said is where from."""
    down(monkeypatch)
    given, other = tmp_path / "a.pth", tmp_path / "b.pth"
    given.write_bytes(b"a")
    other.write_bytes(b"b")
    digest, changed = (hashlib.sha256(name).hexdigest() for name in (b"a", b"b"))
    folder = tmp_path / "results" / "segmenters" / one.folder
    folder.mkdir(parents=True)
    made = {"file": "a.pth", "sha256": digest}
    write_segmenter_card(folder, SegmenterCard(one.name, one.architecture, "", "0", made))

    def says(path: Path, sha256: str) -> str:
        found = segmented(tmp_path, one, **{one.path_key: str(path), one.digest_key: sha256})[0]
        return f"{found.level} {found.text}"

    assert f"its weights are in {folder}" in says(given, digest)
    assert says(other, changed).startswith(f"ok {one.kind} {one.name}: from {other}")
    assert says(given, changed).startswith(f"bad {one.kind} {one.name}: {given}: has the SHA-256")
    assert segmented(tmp_path, one)[0].level == "bad"  # the published ones, which nothing can fetch
