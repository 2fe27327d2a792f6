"""Weights that a library publishes: as its own loader gives them, and without a hole."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision

from her2.config import EncoderSection
from her2.config.catalogue import CatalogueRow, catalogue, row
from her2.core.errors import UserError
from her2.encoders import loading, stage
from her2.encoders.backbones import build_backbone, with_published
from her2.encoders.stage import read_encoder, weights_digest
from her2.libraries import library
from tests.unit.products import materialise

pytestmark = pytest.mark.usefixtures("one_thread")

State = dict[str, torch.Tensor]
OF_TIMM = [name for name, item in catalogue().items() if item.by_library and item.hub]
FAMILIES = {
    "resnet18": ({}, ["fc.bias", "fc.weight"]),
    "vit-small": ({"depth": 1}, ["head.bias", "head.weight"]),
    "dinov2-small": ({"depth": 1}, None),  # positions of 518 px, resampled to 224
    "dinov3-small": ({"depth": 1}, None),
}
"""A row of each family, what makes it small, and the tensors of the file that have no use."""


def origin(name: str, *, device: str = "cpu", **more: Any) -> State:
    """Return random tensors as timm publishes those of a row, with the classifier."""
    torch.manual_seed(5)
    classes = timm.get_pretrained_cfg(row(name).architecture).num_classes
    with torch.device(device):
        return timm.create_model(row(name).architecture, num_classes=classes, **more).state_dict()


Put = Callable[..., EncoderSection]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Make a row's pin that of a file with these tensors, and return a section that reads it."""

    def put(name: str, state: State, **arguments: Any) -> EncoderSection:
        path = tmp_path / "model.safetensors"
        safetensors.torch.save_file(state, path)
        known = row(name).model_dump()
        known["arguments"] = {**known["arguments"], **arguments}
        known["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        rows = {name: CatalogueRow(**known)}
        monkeypatch.setattr("her2.config.catalogue.catalogue", lambda: rows)
        return EncoderSection(
            source="catalogue", model=name, size=row(name).size, mpp=0.5, checkpoint=path
        )

    return put


# ----------------------------------------------------------------------------- rows of timm


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_has_the_weights_and_features_that_timms_own_loader_gives(
    put: Put, tmp_path: Path, name: str
) -> None:
    small, left_out = FAMILIES[name]
    section = put(name, origin(name, **small), **small)
    card = materialise(section, 0, tmp_path / "out")
    expected = timm.create_model(
        card.architecture, pretrained=True, num_classes=0, **card.arguments,
        pretrained_cfg_overlay={"file": str(section.checkpoint), "custom_load": False},
    ).eval()  # fmt: skip
    assert card.weights_sha256 == weights_digest(expected.state_dict())
    assert card.provenance.get("left_out") == left_out
    own, _ = read_encoder(tmp_path / "out")
    patches = torch.randn(2, 3, section.size, section.size)
    assert torch.equal(own.backbone(patches), expected(patches))


@pytest.mark.parametrize("name", OF_TIMM)
def test_every_row_is_filled_by_what_timm_publishes_under_its_name(name: str) -> None:
    known = row(name)
    state = origin(name, device="meta")
    with torch.device("meta"):
        backbone = build_backbone(
            "timm", known.architecture, feature=known.feature, arguments=known.arguments
        )
        found, head = library("timm").converted(state, known.architecture, backbone)
    own = backbone.state_dict()
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in own.items()}
    assert set(head) == set(state) - set(own)
    assert all(one.split(".")[0] in ("fc", "head") for one in head)


def renamed(state: State, name: str) -> State:
    return {("later." + n if n == name else n): tensor for n, tensor in state.items()}


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("resnet18", "layer1.0.bn1.weight"),
        ("vit-small", "blocks.0.norm1.weight"),
        ("dinov2-small", "blocks.0.ls1.gamma"),
        ("dinov3-small", "reg_token"),
    ],
)
def test_a_layer_that_timm_renames_is_named_and_leaves_no_hole(
    put: Put, tmp_path: Path, name: str, tensor: str
) -> None:
    small, _ = FAMILIES[name]
    section = put(name, renamed(origin(name, **small), tensor), **small)
    with pytest.raises(UserError) as caught:
        materialise(section, 0, tmp_path / "out")
    said = str(caught.value)
    assert f"{tensor}: missing" in said
    assert f"later.{tensor}: unexpected" in said
    assert f"not what timm {timm.__version__} builds as {row(name).architecture}" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("extra", ["blocks.1.weight", "fc.weight", "aux.weight"])
def test_what_the_architecture_has_no_place_for_is_an_error_and_only_its_own_head_is_not(
    put: Put, tmp_path: Path, extra: str
) -> None:
    state = origin("vit-small", depth=1) | {extra: torch.zeros(3)}
    section = put("vit-small", state, depth=1)
    with pytest.raises(UserError, match=rf"(?s)1 beside .*{extra}: unexpected, of shape \(3,\)"):
        materialise(section, 0, tmp_path / "out")


def test_tensors_that_timm_cannot_convert_are_a_named_error(put: Put, tmp_path: Path) -> None:
    state = origin("dinov2-small", depth=1) | {"pos_embed": torch.zeros(5)}
    section = put("dinov2-small", state, depth=1)
    with pytest.raises(UserError, match=r"timm .* cannot take it as vit_small_patch14_dinov2"):
        materialise(section, 0, tmp_path / "out")


def test_a_checkpoint_says_in_its_card_what_was_left_out(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet", num_classes=0).state_dict()
    path = tmp_path / "own.pt"
    torch.save(state | {f"decoder.{n}.weight": torch.ones(1) for n in range(9)}, path)
    section = EncoderSection(
        source="checkpoint", model="timm/test_resnet", checkpoint=path, mpp=1.0, size=64,
        domain="none",
    )  # fmt: skip
    found = materialise(section, 0, tmp_path / "out").provenance["left_out"]
    assert found[0] == "decoder.0.weight"
    assert found[loading._NAMED :] == ["and 1 more"]


# ----------------------------------------------------------------------------- without a row


def published_by_timm(monkeypatch: pytest.MonkeyPatch, state: State) -> Callable[[], Any]:
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: state)
    return partial(
        build_backbone, "timm", "test_vit.r160_in1k", feature="class_token", arguments={},
        pretrained=True,
    )  # fmt: skip


def test_weights_that_timm_fetches_leave_no_hole_either(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    state = timm.create_model("test_vit", num_classes=1000).state_dict()
    built = published_by_timm(monkeypatch, dict(state))().state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in built.items())
    holed = renamed(state, "blocks.1.attn.qkv.weight")
    with pytest.raises(UserError, match=r"no published weights for 1 .* blocks\.1\.attn\.qkv"):
        published_by_timm(monkeypatch, holed)()
    assert torch.nn.Module.load_state_dict.__module__ == "torch.nn.modules.module"


def test_a_layer_that_a_file_of_timm_lacks_and_that_begins_alike_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As the last normalisation of ConvNeXt-V2's masked autoencoders, with timm's blessing."""
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    for name in ("norm.weight", "norm.bias"):
        del state[name]
    built = published_by_timm(monkeypatch, state)()
    assert built.norm.weight.eq(1).all()
    assert "its file has no values for norm.weight, norm.bias" in caplog.text


# ----------------------------------------------------------------------------- torchvision


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where torch.hub keeps AlexNet's weights, in a folder of this test."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("her2.encoders.fetching.time.sleep", lambda _: None)
    path = library("torchvision").fetched("alexnet")
    assert path == tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    path.parent.mkdir(parents=True)
    return path


def small_alexnet(**_: Any) -> torch.nn.Module:
    torch.manual_seed(5)
    made = torchvision.models.AlexNet(num_classes=2)
    made.classifier = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(9216, 2))
    return made


def features_of(state: State) -> State:
    return {n.removeprefix("features."): t for n, t in state.items() if n.startswith("features.")}


def test_a_row_of_torchvision_is_its_file_without_the_classifier(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = small_alexnet().state_dict()
    torch.save(state, kept)
    own = hashlib.sha256(kept.read_bytes()).hexdigest()
    known = CatalogueRow(**(row("alexnet").model_dump() | {"sha256": own}))
    monkeypatch.setattr("her2.config.catalogue.catalogue", lambda: {"alexnet": known})
    fetched = EncoderSection(source="catalogue", model="alexnet", mpp=1.0, size=96)
    given = fetched.model_copy(update={"checkpoint": kept})
    for section in (fetched, given):  # a machine without a network has a copy of the file
        card = materialise(section, 0, kept.parent / "out")
        assert card.weights_sha256 == weights_digest(features_of(state))
        assert card.provenance == {
            "catalogue": "alexnet", "file": kept.name, "sha256": own,
            "left_out": ["classifier.1.bias", "classifier.1.weight"],
        }  # fmt: skip
    torch.save(renamed(state, "features.0.bias"), kept)
    own = hashlib.sha256(kept.read_bytes()).hexdigest()
    known = CatalogueRow(**(row("alexnet").model_dump() | {"sha256": own}))
    monkeypatch.setattr("her2.config.catalogue.catalogue", lambda: {"alexnet": known})
    with pytest.raises(
        UserError, match=r"(?s)0\.bias: missing.*later\.features\.0\.bias: unexpected"
    ):
        materialise(fetched, 0, kept.parent / "again")


def test_a_whole_network_is_a_checkpoint_of_its_convolutional_part(tmp_path: Path) -> None:
    """What a user without a network is told to do with torchvision's file."""
    state = small_alexnet().state_dict()
    torch.save(state, tmp_path / "alexnet.pth")
    section = EncoderSection(
        source="checkpoint", model="torchvision/alexnet", checkpoint=tmp_path / "alexnet.pth",
        mpp=1.0, size=96, feature="flattened", domain="natural",
    )  # fmt: skip
    card = materialise(section, 0, tmp_path / "out")
    assert card.provenance["prefix"] == "features."
    assert card.weights_sha256 == weights_digest(features_of(state))


@pytest.mark.parametrize("source", ["catalogue", "torchvision"])
def test_a_damaged_file_of_torch_hub_is_named_with_its_mend_and_never_unpickled(
    kept: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    kept.write_bytes(b"half a file")
    monkeypatch.setattr(torch, "load", None)
    model = "alexnet" if source == "catalogue" else "torchvision/alexnet"
    section = EncoderSection(source=source, model=model, mpp=1.0, size=96)
    with pytest.raises(UserError) as caught:
        materialise(section, 0, kept.parent / "out")
    assert str(caught.value).startswith(f"{kept}: is ")
    assert f"elete {kept} and rerun the same command" in str(caught.value)


def test_weights_that_do_not_fit_are_not_taken_for_a_missing_network(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"strange": torch.zeros(2)}, kept)
    monkeypatch.setattr("her2.libraries.torchvision.damage", lambda _: None)
    monkeypatch.setattr("her2.encoders.backbones.damage", lambda _: None)
    build = partial(
        build_backbone, "torchvision", "alexnet", feature="flattened", arguments={},
        pretrained=True,
    )  # fmt: skip
    with pytest.raises(UserError, match="cannot load it as alexnet .*another version") as caught:
        with_published(build, "torchvision", "alexnet", otherwise="This step needs a network.")
    assert str(caught.value).startswith(f"{kept}: torchvision ")
    assert "network" not in str(caught.value)


def test_a_row_of_no_hub_without_a_network_names_the_key_of_a_local_file(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(UserError, match=r"Name or service not known.*`checkpoint: PATH`"):
        stage._fetched_by_library(row("alexnet"))
