"""The catalogue's pins: the bits of a row are those of its digest, wherever they come from."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors as hub_errors
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from pydantic import ValidationError

from her2.config import EncoderSection
from her2.config.catalogue import CatalogueRow, catalogue, row
from her2.core.errors import UserError
from her2.encoders import fetching
from her2.encoders.fetching import checked_digest, fetch
from her2.encoders.stage import weights_digest
from tests.unit.products import materialise

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = catalogue()
REVISION = "1" * 40


def small_row(**changed: Any) -> CatalogueRow:
    """A row of timm's smallest transformer, as a hub would publish it."""
    return CatalogueRow(
        **{
            "name": "small", "title": "small", "library": "timm", "architecture": "test_vit",
            "hub": "somebody/small", "file": "model.safetensors", "revision": REVISION,
            "sha256": "0" * 64, "arguments": {"img_size": 32}, "size": 32, "mpp": 0.5,
            "mpp_basis": "stated", "feature": "class_token", "dimension": 64, "mean": (0.5,) * 3,
            "std": (0.5,) * 3, "precision": "float32", "domain": "he", "licence": "MIT",
            "commercial": "yes", "card": "https://example.org", "checked": "here", **changed,
        }
    )  # fmt: skip


Publish = Callable[..., CatalogueRow]


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Put a row into the catalogue whose file lies in a hub, by default with that file's pin."""

    def publish(state: dict[str, torch.Tensor], **changed: Any) -> CatalogueRow:
        folder = tmp_path / "hub" / REVISION
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "model.safetensors"
        safetensors.torch.save_file(state, path)
        own = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        made = small_row(**(own | changed))
        monkeypatch.setattr("her2.config.catalogue.catalogue", lambda: {"small": made})

        def download(hub: str, file: str, revision: str | None = None) -> str:
            assert (hub, file) == (made.hub, made.file)
            asked.append(revision)
            return str(path)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        return made

    asked: list[str | None] = []
    publish.asked = asked  # type: ignore[attr-defined]
    return publish


def weights(seed: int = 3, **more: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return timm.create_model("test_vit", num_classes=0, img_size=32, **more).state_dict()


def section(**changed: Any) -> EncoderSection:
    return EncoderSection(**({"source": "catalogue", "model": "small"} | changed))


# ----------------------------------------------------------------------------- the rows


UNPINNED = {"kaiko-vits16", "kaiko-vits8", "kaiko-vitb16", "kaiko-vitb8"}
IN_PART = {"gigapath-flash"}


def test_every_row_is_pinned_as_far_as_its_digest_is_known() -> None:
    assert {name for name, item in ROWS.items() if item.sha256 is None} == UNPINNED
    short = {name for name, item in ROWS.items() if item.sha256 and len(item.sha256) != 64}
    assert short == IN_PART
    whole = {n for n, i in ROWS.items() if i.hub and i.revision and len(i.revision) == 40}
    assert whole == set(ROWS) - UNPINNED - IN_PART - {"alexnet"}


def test_no_two_rows_have_the_same_bits() -> None:
    digests = [item.sha256 for item in ROWS.values() if item.sha256]
    assert len(set(digests)) == len(digests)


def test_the_pin_of_alexnet_agrees_with_the_name_that_torchvision_checks() -> None:
    url = torchvision.models.AlexNet_Weights.DEFAULT.url
    assert f"-{str(ROWS['alexnet'].sha256)[:8]}." in url


@pytest.mark.parametrize("name", ["virchow", "virchow2", "phikon", "h-optimus-1"])
def test_safetensors_are_preferred_where_they_are_published(name: str) -> None:
    assert ROWS[name].file == "model.safetensors"


def test_a_row_accepts_its_own_bits_and_those_of_its_other_files_only() -> None:
    two = small_row(sha256="a" * 64, also_sha256={"pytorch_model.bin": "b" * 12})
    assert two.pins("a" * 64)
    assert two.pins("b" * 12 + "c" * 52)
    assert not two.pins("a" * 63 + "b")
    assert small_row(sha256=None, unpinned="nobody says", revision=None).pins("f" * 64)


# ----------------------------------------------------------------------------- materialising


def test_weights_are_fetched_at_the_rows_revision_and_their_bits_are_checked(
    published: Publish, tmp_path: Path
) -> None:
    made = published(weights())
    card = materialise(section(), 0, tmp_path / "out")
    assert published.asked == [REVISION]  # type: ignore[attr-defined]
    assert card.provenance == {
        "catalogue": "small", "hub": "somebody/small", "revision": REVISION,
        "file": "model.safetensors", "sha256": made.sha256,
    }  # fmt: skip
    assert card.weights_sha256 == weights_digest(weights())


@pytest.mark.parametrize("digits", [64, 12])
def test_other_bits_under_the_pinned_name_are_refused_with_both_digests(
    published: Publish, tmp_path: Path, digits: int
) -> None:
    made = published(weights(), sha256="0" * digits)
    with pytest.raises(UserError) as caught:
        materialise(section(), 0, tmp_path / "out")
    said = str(caught.value)
    own = hashlib.sha256((tmp_path / "hub" / REVISION / str(made.file)).read_bytes()).hexdigest()
    for words in (own, "0" * digits + ("..." if digits == 12 else ""), REVISION, "sha256:"):
        assert words in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", [b"", b"\x80\x04text", b"version https://git-lfs"])
def test_a_truncated_or_foreign_file_is_refused_before_anything_reads_it(
    published: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bytes
) -> None:
    published(weights())
    path = tmp_path / "model.safetensors"
    path.write_bytes(broken)
    monkeypatch.setattr("her2.encoders.stage.load_weights", None)
    with pytest.raises(UserError, match="is not the published model.safetensors of small"):
        materialise(section(checkpoint=path), 0, tmp_path / "out")


def test_a_local_file_of_a_row_is_checked_likewise_and_needs_no_network(
    published: Publish, tmp_path: Path
) -> None:
    published(weights())
    copied = tmp_path / "copied"
    copied.mkdir()
    safetensors.torch.save_file(weights(), copied / "model.safetensors")
    card = materialise(section(checkpoint=copied), 0, tmp_path / "out")
    assert published.asked == []  # type: ignore[attr-defined]
    assert card.weights_sha256 == weights_digest(weights())


def test_other_bits_serve_a_user_who_states_their_digest(
    published: Publish, tmp_path: Path
) -> None:
    published(weights())
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file(weights(seed=4), other)
    with pytest.raises(UserError, match="is not the published"):
        materialise(section(checkpoint=other), 0, tmp_path / "out")
    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    meant = section(checkpoint=other, sha256=digest.upper())
    assert materialise(meant, 0, tmp_path / "out").provenance["sha256"] == digest
    with pytest.raises(UserError, match=f"has the SHA-256 {digest}, but the config's"):
        checked_digest(other, None, "1" * 64)


def test_a_stated_digest_without_a_file_is_a_mistake() -> None:
    with pytest.raises(ValidationError, match="`sha256` is that of the file of `checkpoint`"):
        section(model="uni", sha256="0" * 64)


def test_a_digest_that_is_not_stated_is_in_no_spec() -> None:
    assert "sha256" not in section(model="uni").model_dump()


# ----------------------------------------------------------------------------- by the library


def test_weights_that_timm_publishes_are_read_by_timm_from_the_pinned_file(
    published: Publish, tmp_path: Path
) -> None:
    """Positions for 160 px, as the file has them, are resampled as timm does it for itself."""
    torch.manual_seed(5)
    origin = timm.create_model("test_vit", num_classes=1000).state_dict()
    path = tmp_path / "own.safetensors"
    safetensors.torch.save_file(origin, path)
    expected = timm.create_model(
        "test_vit.r160_in1k", pretrained=True, num_classes=0, img_size=32,
        pretrained_cfg_overlay={"file": str(path), "custom_load": False},
    ).state_dict()  # fmt: skip
    assert origin["pos_embed"].shape != expected["pos_embed"].shape
    made = published(origin, architecture="test_vit.r160_in1k")
    assert made.by_library
    card = materialise(section(), 0, tmp_path / "out")
    assert card.weights_sha256 == weights_digest(expected)
    assert card.arguments == {"img_size": 32}  # and no file's name, which is in no identity
    assert card.provenance["sha256"] == made.sha256


# ----------------------------------------------------------------------------- the hub's answers


def answer(kind: type[Exception]) -> Exception:
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (hub_errors.GatedRepoError, ["Request it at https://huggingface.co/MahmoodLab/UNI"]),
        (hub_errors.RepositoryNotFoundError, ["has no repository MahmoodLab/UNI", "renamed"]),
        (hub_errors.RevisionNotFoundError, ["no longer has the revision b55a5ec6"]),
        (hub_errors.RemoteEntryNotFoundError, ["has no file pytorch_model.bin at revision b55a"]),
    ],
)
def test_what_the_hub_answers_for_good_is_asked_once_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception], words: list[str]
) -> None:
    asked = []

    def refuse(*given: object, **_: object) -> str:
        asked.append(given)
        raise answer(kind)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(UserError) as caught:
        fetch(row("uni"))
    said = str(caught.value)
    assert len(asked) == 1
    assert all(word in said for word in words)
    if kind is not hub_errors.GatedRepoError:
        assert "`checkpoint: PATH`" in said
        assert str(row("uni").sha256) in said


@pytest.mark.parametrize(
    ("token", "then"),
    [(None, "then run `hf auth login`"), ("hf_secret", "There is a token here already")],
)
def test_a_gate_says_whether_a_token_is_there_and_never_which(
    monkeypatch: pytest.MonkeyPatch, token: str | None, then: str
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise answer(hub_errors.GatedRepoError)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    with pytest.raises(UserError) as caught:
        fetch(row("uni"))
    assert then in str(caught.value)
    assert "hf_secret" not in str(caught.value)


def test_a_revision_of_which_only_the_beginning_is_known_is_not_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def download(*_: object, revision: str | None) -> str:
        asked.append(revision)
        return "file"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    fetch(row("gigapath-flash"))
    fetch(row("uni"))
    fetch(row("uni"), revision="2" * 40)
    assert asked == [None, row("uni").revision, "2" * 40]


def test_moments_without_a_network_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("her2.encoders.fetching.time.sleep", pauses.append)
    left = [ConnectionError("reset"), ConnectionError("reset")]

    def flaky() -> str:
        if left:
            raise left.pop()
        return "file"

    assert fetching.retried(flaky) == "file"
    assert pauses == [2, 4]


def test_a_damaged_file_in_the_hub_s_cache_is_named_where_it_lies(tmp_path: Path) -> None:
    """Fetched again it would come from there: the name in `snapshots` is a link to it."""
    kept = tmp_path / "blobs" / ("0" * 64)
    kept.parent.mkdir()
    kept.write_bytes(b"half of it")
    (tmp_path / "model.safetensors").symlink_to(kept)
    with pytest.raises(UserError, match=f"delete {kept} and rerun"):
        checked_digest(tmp_path / "model.safetensors", ROWS["phikon"], None)
    with pytest.raises(UserError, match="broke off, fetch it again"):
        checked_digest(Path(shutil.copy(kept, tmp_path / "copy.bin")), ROWS["phikon"], None)


def test_a_hub_that_is_switched_off_is_named_and_asked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def offline(*_: object, **__: object) -> str:
        asked.append(1)
        raise hub_errors.LocalEntryNotFoundError("check your connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    for switched_off in (True, False):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", switched_off)
        with pytest.raises(UserError, match="could not be fetched") as caught:
            fetch(ROWS["phikon"])
        assert ("HF_HUB_OFFLINE is set" in str(caught.value)) == switched_off
    assert len(asked) == 2
