import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from timm.data.config import resolve_data_config
from torch import nn

from her2.config import EncoderSection
from her2.core.errors import UserError
from her2.core.files import file_digest
from her2.encoders.backbones import Encoder, build_backbone, normalisation
from her2.encoders.card import CARD_NAME, WEIGHTS_NAME, read_card
from her2.encoders.loading import load_weights
from her2.encoders.naming import by_name
from her2.encoders.stage import read_encoder, weights_digest
from her2.libraries import library
from tests.unit.products import materialise

CNN, VIT = "timm/test_resnet", "timm/test_vit"


pytestmark = pytest.mark.usefixtures("one_thread")


def section(model: str = CNN, **changed: object) -> EncoderSection:
    return EncoderSection(
        **({"source": "random", "model": model, "mpp": 1.0, "size": 32} | changed)
    )


def checkpoint(path: Path, model: str = CNN, **changed: object) -> EncoderSection:
    return section(model, source="checkpoint", checkpoint=path, domain="natural", **changed)


def patches(count: int = 3, size: int = 32, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8)


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / WEIGHTS_NAME)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Make the folder of a small random encoder."""
    folder = tmp_path / "made"
    materialise(section(), 1, folder)
    return folder


class TestIdentity:
    def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
        self, tmp_path: Path
    ) -> None:
        first, again, other = (
            materialise(section(), seed, tmp_path / name)
            for name, seed in (("first", 1), ("again", 1), ("other", 2))
        )
        assert first == again
        for name in (WEIGHTS_NAME, CARD_NAME):
            content = (tmp_path / "first" / name).read_bytes()
            assert (tmp_path / "again" / name).read_bytes() == content
        assert other.weights_sha256 != first.weights_sha256
        assert other.digest != first.digest

    @pytest.mark.parametrize(
        "changed", [{"source": "x"}, {"licence": "x"}, {"mpp": 0.25}, {"provenance": {"a": 1}}]
    )
    def test_what_computes_nothing_is_not_in_the_digest(
        self, made: Path, changed: dict[str, object]
    ) -> None:
        card = read_card(made)
        assert dataclasses.replace(card, **changed).digest == card.digest

    @pytest.mark.parametrize(
        "changed",
        [
            {"architecture": "x"},
            {"arguments": {"img_size": 32}},
            {"feature": "flattened"},
            {"size": 64},
            {"mean": (0.4, 0.5, 0.6)},
            {"std": (0.4, 0.5, 0.6)},
            {"weights_sha256": "0" * 64},
        ],
        ids=lambda changed: next(iter(changed)),
    )
    def test_what_computes_something_is_in_the_digest(
        self, made: Path, changed: dict[str, object]
    ) -> None:
        card = read_card(made)
        assert dataclasses.replace(card, **changed).digest != card.digest

    def test_the_weights_digest_is_over_values_names_types_and_shapes(self) -> None:
        state = {"a": torch.zeros(2, 3), "b": torch.tensor(1)}
        known = weights_digest(state)
        assert weights_digest(dict(reversed(state.items()))) == known
        assert weights_digest({"a": torch.zeros(3, 2).T, "b": torch.tensor(1)}) == known
        others = [
            {"a": torch.zeros(3, 2), "b": torch.tensor(1)},
            {"a": torch.zeros(2, 3).half(), "b": torch.tensor(1)},
            {"a": torch.zeros(2, 3), "c": torch.tensor(1)},
            {"a": torch.zeros(2, 3), "b": torch.tensor(2)},
            {"a": torch.zeros(2, 3)},
        ]
        assert known not in {weights_digest(other) for other in others}


class TestCard:
    def test_what_was_written_is_read_back(self, tmp_path: Path) -> None:
        card = materialise(section(VIT, feature="class_and_mean"), 1, tmp_path)
        assert read_card(tmp_path) == card
        assert (card.library, card.architecture) == ("timm", "test_vit")
        assert (card.size, card.mpp, card.dimension) == (32, 1.0, 128)
        assert card.provenance == {"seed": 1}

    @pytest.mark.parametrize(
        "edit",
        [{"size": 64}, {"mean": [0.4, 0.5, 0.6]}, {"feature": "flattened"}, {"digest": "0" * 64}],
        ids=lambda edit: next(iter(edit)),
    )
    def test_a_card_edited_by_hand_is_refused(self, made: Path, edit: dict[str, object]) -> None:
        values = json.loads((made / CARD_NAME).read_text())
        (made / CARD_NAME).write_text(json.dumps(values | edit))
        with pytest.raises(UserError, match=r"card\.json: does not match its own digest"):
            read_card(made)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"digest": "x"}', '{"digest": "x", "a": 1}'])
    def test_something_else_is_no_card(self, tmp_path: Path, text: str) -> None:
        (tmp_path / CARD_NAME).write_text(text)
        with pytest.raises(UserError, match="is not a valid encoder card"):
            read_card(tmp_path)

    def test_an_absent_card_is_a_user_error(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="make the encoder again"):
            read_card(tmp_path)


class TestLoading:
    def test_a_loaded_encoder_computes_what_the_backbone_computes(self, made: Path) -> None:
        torch.manual_seed(1)
        backbone = timm.create_model("test_resnet", num_classes=0).eval()
        encoder, card = read_encoder(made)
        config = resolve_data_config({}, model=backbone)
        x = patches().permute(0, 3, 1, 2).float() / 255
        x = (x - torch.tensor(config["mean"])[:, None, None]) / torch.tensor(config["std"])[
            :, None, None
        ]
        with torch.inference_mode():
            found, expected = encoder(patches()), backbone(x)
        assert found.shape == (3, card.dimension)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_a_loaded_encoder_is_frozen_and_in_evaluation_mode(self, made: Path) -> None:
        encoder, _ = read_encoder(made)
        assert not any(part.training for part in encoder.modules())
        assert not any(parameter.requires_grad for parameter in encoder.parameters())

    def test_a_patch_is_encoded_the_same_alone_and_in_a_batch(self, made: Path) -> None:
        encoder, _ = read_encoder(made)
        batch = encoder(patches(5))
        alone = torch.cat([encoder(patch[None]) for patch in patches(5)])
        torch.testing.assert_close(batch, alone, rtol=1e-4, atol=1e-5)

    def test_weights_that_changed_are_refused(self, made: Path) -> None:
        state = state_of(made)
        name = next(name for name in state if state[name].is_floating_point())
        state[name].view(-1)[0] += 1
        safetensors.torch.save_file(state, made / WEIGHTS_NAME)
        with pytest.raises(UserError, match="holds other weights than its card says"):
            read_encoder(made)

    def test_weights_of_another_encoder_are_refused(self, made: Path, tmp_path: Path) -> None:
        materialise(section(), 2, tmp_path / "other")
        shutil.copyfile(tmp_path / "other" / WEIGHTS_NAME, made / WEIGHTS_NAME)
        with pytest.raises(UserError, match="other weights"):
            read_encoder(made)

    @pytest.mark.parametrize("content", [None, b"", b"text, not tensors"])
    def test_unreadable_weights_are_a_user_error(self, made: Path, content: bytes | None) -> None:
        (made / WEIGHTS_NAME).unlink()
        if content is not None:
            (made / WEIGHTS_NAME).write_bytes(content)
        with pytest.raises(UserError, match=r"safetensors: (cannot be read|does not exist)"):
            read_encoder(made)


class TestNormalisation:
    # Three kinds of published statistics: ImageNet's, one half, CLIP's.
    @pytest.mark.parametrize(
        "name",
        [
            "resnet18.a1_in1k",
            "vit_tiny_patch16_224.augreg_in21k",
            "vit_base_patch16_clip_224.openai",
        ],
    )
    def test_it_is_timms_own(self, name: str) -> None:
        config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        mean, std = normalisation(section(name, source="timm"))
        assert mean == pytest.approx(config["mean"])
        assert std == pytest.approx(config["std"])

    @pytest.mark.parametrize("name", ["alexnet", "efficientnet_v2_l"])  # ImageNet's, one half
    def test_it_is_torchvisions_own(self, name: str) -> None:
        transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        mean, std = normalisation(section(f"torchvision/{name}"))
        assert mean == pytest.approx(transform.mean)
        assert std == pytest.approx(transform.std)

    def test_what_the_config_states_is_used(self, tmp_path: Path) -> None:
        stated = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 1.0)}
        card = materialise(section(**stated), 1, tmp_path / "stated")
        assert {"mean": card.mean, "std": card.std} == stated
        assert card.digest != materialise(section(), 1, tmp_path / "own").digest

    def test_what_a_local_file_is_taken_to_want_is_logged(
        self, made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        own = checkpoint(made / WEIGHTS_NAME)
        with caplog.at_level("INFO"):
            materialise(own, 1, tmp_path / "own")
        assert "with those of the weights that timm publishes: (0.5, 0.5, 0.5)" in caplog.text
        caplog.clear()
        stated = own.model_copy(update={"mean": (0.4,) * 3, "std": (0.5,) * 3})
        materialise(stated, 1, tmp_path / "stated")
        assert "normalised as" not in caplog.text

    def test_a_name_that_timm_gave_up_has_none_that_is_known(self, tmp_path: Path) -> None:
        old = section("timm/vit_tiny_patch16_224_in21k", size=224)  # trained with one half
        with pytest.raises(UserError, match="does not say how .*; set `mean` and `std` of R, G, B"):
            materialise(old, 1, tmp_path)

    def test_the_encoder_normalises_like_torchvisions_float_pipeline(self) -> None:
        mean, std = (0.7, 0.5, 0.6), (0.1, 0.2, 0.3)
        encoder = Encoder(nn.Identity(), feature="flattened", mean=mean, std=std)
        x = patches().permute(0, 3, 1, 2).float() / 255
        expected = torchvision.transforms.functional.normalize(x, mean, std)
        torch.testing.assert_close(encoder(patches()), expected.flatten(1), rtol=1e-5, atol=1e-5)

    def test_channels_are_red_green_blue(self) -> None:
        red = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
        red[..., 0] = 255
        encoder = Encoder(nn.Identity(), feature="flattened", mean=(0, 0, 0), std=(1, 1, 1))
        assert encoder(red).reshape(3, 4).tolist() == [[1] * 4, [0] * 4, [0] * 4]


class TestFeature:
    def features(self, folder: Path, **changed: object) -> tuple[torch.Tensor, nn.Module]:
        """Return our features, and those of timm's own model with the same weights."""
        materialise(section(VIT, **changed), 1, folder)
        encoder, _ = read_encoder(folder)
        model = timm.create_model("test_vit", num_classes=0, img_size=32).eval()
        model.load_state_dict(state_of(folder))
        return encoder(patches()), model

    @staticmethod
    def tokens(model: nn.Module) -> torch.Tensor:
        mean, std = (torch.tensor(v)[:, None, None] for v in normalisation(section(VIT)))
        with torch.inference_mode():
            return model.forward_features((patches().permute(0, 3, 1, 2) / 255 - mean) / std)

    def test_pooled_is_what_timm_pools(self, tmp_path: Path) -> None:
        found, model = self.features(tmp_path, feature="pooled")
        expected = model.forward_head(self.tokens(model))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_class_token_is_the_first_token(self, tmp_path: Path) -> None:
        found, model = self.features(tmp_path, feature="class_token")
        torch.testing.assert_close(found, self.tokens(model)[:, 0], rtol=1e-4, atol=1e-5)

    def test_class_and_mean_is_the_class_token_beside_the_mean_of_the_patches(
        self, tmp_path: Path
    ) -> None:
        found, model = self.features(tmp_path, feature="class_and_mean")
        tokens = self.tokens(model)
        assert tokens.shape[1] == 1 + (32 // 16) ** 2
        expected = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_the_mean_leaves_out_register_tokens(self) -> None:
        class Tokens(nn.Module):
            num_prefix_tokens = 3  # class token and two registers

            def forward_features(self, x: torch.Tensor) -> torch.Tensor:
                return torch.tensor([[1.0], [50.0], [60.0], [2.0], [4.0]]).expand(len(x), 5, 1)

        encoder = Encoder(Tokens(), feature="class_and_mean", mean=(0, 0, 0), std=(1, 1, 1))
        assert encoder(patches(2)).tolist() == [[1, 3], [1, 3]]

    def test_alexnet_flattened_at_96_px_has_the_papers_1024_features(self, tmp_path: Path) -> None:
        card = materialise(
            section("torchvision/alexnet", size=96, feature="flattened"), 1, tmp_path
        )
        assert card.dimension == 1024
        encoder, _ = read_encoder(tmp_path)
        alexnet = torchvision.models.alexnet(weights=None).features.eval()
        alexnet.load_state_dict(state_of(tmp_path))
        x = patches(2, 96).permute(0, 3, 1, 2).float() / 255
        x = torchvision.transforms.functional.normalize(
            x, *normalisation(section("torchvision/alexnet"))
        )
        with torch.inference_mode():
            maps = alexnet(x)
        assert maps.shape == (2, 256, 2, 2)
        torch.testing.assert_close(encoder(patches(2, 96)), maps.flatten(1), rtol=1e-4, atol=1e-5)

    def test_flattened_timm_features_keep_every_position(self, tmp_path: Path) -> None:
        pooled = materialise(section(size=64), 1, tmp_path / "pooled")
        flat = materialise(section(size=64, feature="flattened"), 1, tmp_path / "flat")
        assert flat.dimension == 4 * pooled.dimension  # 64 px / 32 = 2 x 2 positions
        (one, _), (many, _) = (read_encoder(tmp_path / name) for name in ("pooled", "flat"))
        maps = many(patches(2, 64)).reshape(2, -1, 4)  # NCHW: the positions of a channel together
        torch.testing.assert_close(maps.mean(2), one(patches(2, 64)), rtol=1e-4, atol=1e-5)

    def test_torchvisions_classifier_is_taken_off(self, tmp_path: Path) -> None:
        assert materialise(section("torchvision/resnet18"), 1, tmp_path).dimension == 512
        assert not any(name.startswith("fc.") for name in state_of(tmp_path))


class TestRefusals:
    @pytest.mark.parametrize(
        ("model", "near"),
        [
            ("timm/resnet1_8", "resnet18"),
            ("timm/resnet18.a1_in2k", r"resnet18\.a1_in1k"),
            ("torchvision/alexnett", "alexnet"),
        ],
    )
    def test_an_unknown_model_is_answered_with_near_names(
        self, tmp_path: Path, model: str, near: str
    ) -> None:
        library, name = model.split("/")
        with pytest.raises(
            UserError, match=f"{library} has no model '{name}'. Similar names: .*{near}"
        ):
            materialise(section(model), 1, tmp_path)

    @pytest.mark.parametrize(
        ("model", "size"),
        [("torchvision/alexnet", 32), ("torchvision/vit_b_32", 96)],
        ids=["too small to pool", "not the size it was made for"],
    )
    def test_a_size_that_the_model_cannot_take_is_a_user_error(
        self, tmp_path: Path, model: str, size: int
    ) -> None:
        with pytest.raises(UserError, match=f"{model} cannot take patches of {size} px .*`size`"):
            materialise(section(model, size=size), 1, tmp_path)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("feature", ["class_token", "class_and_mean"])
    def test_a_network_without_class_token_cannot_give_one(
        self, tmp_path: Path, feature: str
    ) -> None:
        with pytest.raises(UserError, match="has no class token; use `feature: pooled`"):
            materialise(section(feature=feature), 1, tmp_path)

    def test_a_network_without_a_features_part_cannot_be_flattened(self) -> None:
        with pytest.raises(UserError, match="use `feature: pooled`"):
            build_backbone("torchvision", "resnet18", feature="flattened", arguments={})

    @pytest.fixture(autouse=True)
    def _no_pause_before_another_try(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("her2.encoders.fetching.time.sleep", lambda _: None)

    def test_published_weights_without_a_network_say_what_to_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        with pytest.raises(UserError) as caught:
            materialise(section("resnet10t.c3_in1k", source="timm"), 1, tmp_path / "out")
        text = str(caught.value)
        assert "timm/resnet10t.c3_in1k could not be fetched" in text
        assert "needs a network" in text
        assert "`source: checkpoint`" in text
        assert not (tmp_path / "out").exists()

    def test_torchvision_weights_without_a_network_say_what_to_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unreachable(*_: object, **__: object) -> None:
            raise OSError("Name or service not known")

        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
        with pytest.raises(UserError, match="Name or service not known.*`source: checkpoint`"):
            materialise(section("torchvision/alexnet", source="torchvision"), 1, tmp_path / "out")


def test_the_licence_is_the_one_that_timm_states() -> None:
    for name in ("resnet18.a1_in1k", "test_resnet"):
        assert library("timm").licence(name) == (timm.get_pretrained_cfg(name).license or "")


class Payload:
    """An object whose pickle creates a file when a plain unpickler loads it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch {self.target}",))


class TestCheckpoint:
    @pytest.fixture
    def state(self) -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        return timm.create_model("test_resnet", num_classes=0).state_dict()

    def test_a_safetensors_file_is_the_encoder(
        self, tmp_path: Path, state: dict[str, torch.Tensor]
    ) -> None:
        path = tmp_path / "local.safetensors"
        safetensors.torch.save_file(state, path)
        card = materialise(checkpoint(path), 1, tmp_path / "out")
        assert card.weights_sha256 == weights_digest(state)
        assert card.source == "checkpoint"
        assert card.provenance["file"] == "local.safetensors"
        # The seed is of random weights; it must not matter here.
        assert materialise(checkpoint(path), 2, tmp_path / "again") == card

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda s: s,
            lambda s: {"state_dict": {f"module.{n}": t for n, t in s.items()}},
            lambda s: {"epoch": 3, "model": {f"module.backbone.{n}": t for n, t in s.items()}},
            lambda s: {"epoch": torch.tensor(3), "model_state_dict": s},
            lambda s: {"teacher": {f"_orig_mod.{n}": t for n, t in s.items()}, "student": {}},
            lambda s: {f"encoder.{n}": t for n, t in s.items()} | {"decoder.x": torch.ones(1)},
        ],
        ids=["plain", "module", "module.backbone", "tensor beside", "teacher", "prefix of some"],
    )
    def test_the_wrappers_of_training_code_are_taken_off(
        self, tmp_path: Path, state: dict[str, torch.Tensor], wrap
    ) -> None:
        torch.save(wrap(state), tmp_path / "local.pt")
        card = materialise(checkpoint(tmp_path / "local.pt"), 1, tmp_path / "out")
        assert card.weights_sha256 == weights_digest(state)

    def test_a_classifier_in_the_file_is_left_out(
        self, tmp_path: Path, state: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
    ) -> None:
        torch.save(state | {"fc.weight": torch.ones(4, 96)}, tmp_path / "local.pt")
        card = materialise(checkpoint(tmp_path / "local.pt"), 1, tmp_path / "out")
        assert card.weights_sha256 == weights_digest(state)
        assert "1 tensors not used: fc.weight" in caplog.text

    @pytest.mark.parametrize(
        ("extra", "taken"),
        [
            ({"layer1.9.conv1.weight": torch.ones(2)}, False),  # as of a deeper network
            ({"reg_token": torch.ones(1, 4, 8)}, False),
            ({"mask_token": torch.ones(1, 8), "decoder.layer1.weight": torch.ones(2)}, True),
            ({"layer1.0.fc.weight": torch.ones(2)}, True),
            ({"layer1.0.index": torch.arange(2), "layer1.0.attn_mask": torch.ones(2)}, True),
        ],
    )
    def test_a_larger_network_is_not_cut_down_to_the_architecture(
        self, tmp_path: Path, state: dict[str, torch.Tensor], extra, taken: bool
    ) -> None:
        torch.save(state | extra, tmp_path / "local.pt")
        section = checkpoint(tmp_path / "local.pt")
        if taken:
            assert materialise(section, 1, tmp_path / "out").weights_sha256 == weights_digest(state)
            return
        name = next(iter(extra))
        with pytest.raises(UserError, match=f"larger network[^$]*{re.escape(name)}: unexpected"):
            materialise(section, 1, tmp_path / "out")

    @pytest.mark.parametrize("change", ["", "prefix", "missing", "not finite"])
    def test_other_weights_for_a_row_that_its_library_loads_are_all_there_or_refused(
        self, tmp_path: Path, change: str
    ) -> None:
        """timm's loader leaves random what it does not find, e.g. all of it under a prefix."""
        state = build_backbone("timm", "resnet18", feature="pooled", arguments={}).state_dict()
        path = tmp_path / "other.safetensors"
        given = {f"module.{n}" if change == "prefix" else n: t for n, t in state.items()}
        if change == "missing":
            del given["layer4.1.conv1.weight"]
        if change == "not finite":
            given["layer4.1.conv1.weight"] = torch.full((512, 512, 3, 3), float("nan"))
        safetensors.torch.save_file(given, path)
        section = EncoderSection(
            source="catalogue", model="resnet18", mpp=0.5, size=32, checkpoint=path,
            sha256=file_digest(path),
        )  # fmt: skip
        if change in ("missing", "not finite"):
            with pytest.raises(UserError, match=r"layer4\.1\.conv1\.weight"):
                materialise(section, 1, tmp_path / "out")
            return
        assert materialise(section, 1, tmp_path / "out").weights_sha256 == weights_digest(state)

    def test_a_name_of_thousands_of_prefixes_is_no_endless_recursion(self) -> None:
        one = torch.ones(2)
        found, rivals = by_name({"module." * 5000 + "weight": one}, {"weight": one})
        assert "weight" not in found.state
        assert not rivals

    @pytest.mark.parametrize("name", ["local.pt", "local.pth", "local.safetensors", "local.bin"])
    def test_code_in_a_weights_file_is_refused_and_not_run(
        self, tmp_path: Path, state: dict[str, torch.Tensor], name: str
    ) -> None:
        proof = tmp_path / "the-code-ran"
        torch.save(state | {"extra": Payload(proof)}, tmp_path / name)
        with pytest.raises(UserError, match="holds more than tensors|is not a weights file"):
            materialise(checkpoint(tmp_path / name), 1, tmp_path / "out")
        assert not proof.exists()
        assert not (tmp_path / "out").exists()
        # The file is what it claims to be: a plain unpickler does run the code.
        torch.load(tmp_path / name, weights_only=False)
        assert proof.exists()

    def test_weights_of_another_architecture_are_refused_with_the_first_mismatches(
        self, tmp_path: Path
    ) -> None:
        other = timm.create_model("resnet10t", num_classes=0)
        torch.save(other.state_dict(), tmp_path / "local.pt")
        with pytest.raises(UserError) as caught:
            materialise(checkpoint(tmp_path / "local.pt", "timm/resnet18"), 1, tmp_path / "out")
        text = str(caught.value)
        assert "does not fit the architecture" in text
        expected = timm.create_model("resnet18", num_classes=0).state_dict()
        missing = next(name for name in expected if name not in other.state_dict())
        assert f"{missing}: missing" in text
        assert len(text.splitlines()) <= 10
        assert "more" in text.splitlines()[-1]

    def test_a_tensor_of_another_shape_is_named_with_both_shapes(
        self, tmp_path: Path, state: dict[str, torch.Tensor]
    ) -> None:
        name, tensor = next((n, t) for n, t in state.items() if t.ndim == 4)
        torch.save(state | {name: tensor[:, :1]}, tmp_path / "local.pt")
        with pytest.raises(UserError) as caught:
            materialise(checkpoint(tmp_path / "local.pt"), 1, tmp_path / "out")
        shapes = tuple(tensor[:, :1].shape), tuple(tensor.shape)
        assert f"{name}: shape {shapes[0]}, the architecture has {shapes[1]}" in str(caught.value)
        assert f"(1 of {len(state)} tensors)" in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("local.pt", b"hello, this is text"),
            ("local.pt", b""),
            ("local.safetensors", b"hello, this is text"),
            ("local.pt", None),
        ],
    )
    def test_something_else_is_no_weights_file(
        self, tmp_path: Path, name: str, content: bytes | None
    ) -> None:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            load_weights(nn.Linear(2, 2), path)

    @pytest.mark.parametrize("name", ["local.pt", "older.bin", "local.safetensors"])
    @pytest.mark.parametrize("kept", [0.001, 0.5, 0.99])
    def test_a_truncated_file_is_no_weights_file(
        self, tmp_path: Path, state: dict[str, torch.Tensor], name: str, kept: float
    ) -> None:
        path = tmp_path / name
        if name == "local.safetensors":
            safetensors.torch.save_file(state, path)
        else:
            torch.save(state, path, _use_new_zipfile_serialization=name == "local.pt")
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content))])
        with pytest.raises(
            UserError, match=rf"{path}: is not a weights file \(.*Download it again"
        ):
            materialise(checkpoint(path), 1, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("values", [{"epoch": 3}, [1, 2], {"state_dict": {}}])
    def test_a_file_without_named_tensors_is_refused(self, tmp_path: Path, values: object) -> None:
        torch.save(values, tmp_path / "local.pt")
        with pytest.raises(UserError, match="holds no named tensors"):
            load_weights(nn.Linear(2, 2), tmp_path / "local.pt")

    def test_half_precision_weights_are_widened(self, tmp_path: Path) -> None:
        layer = nn.Linear(2, 2)
        values = {n: torch.full_like(t, 0.5).half() for n, t in layer.state_dict().items()}
        safetensors.torch.save_file(values, tmp_path / "local.safetensors")
        load_weights(layer, tmp_path / "local.safetensors")
        assert layer.weight.dtype == torch.float32
        np.testing.assert_array_equal(layer.weight.detach(), np.full((2, 2), 0.5))


def test_a_job_that_dies_while_writing_leaves_no_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(UserError, match=r"weights\.safetensors: cannot be written \(No space"):
        materialise(section(), 1, tmp_path)
    assert list(tmp_path.iterdir()) == []
