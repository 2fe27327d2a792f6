"""Layouts of weights: what a file computes in its authors' code, it computes in timm's.

The authors' code is transformers' own models, which save files with these names, and for DINOv2's
names timm's converter and a reference written out here.
"""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import safetensors.torch
import timm
import torch
import transformers
from timm.layers.mlp import SwiGLUPacked
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn import functional

from her2.config.catalogue import CatalogueRow, catalogue, row
from her2.core.errors import UserError
from her2.encoders.backbones import build_backbone
from her2.encoders.loading import load_weights
from her2.encoders.weights import LAYOUTS, weights_for

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, DEPTH, HEADS = 48, 2, 4
SWIGLU: dict[str, Any] = {
    "mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 2 * 128 / WIDTH,
}  # fmt: skip
REGISTERS: dict[str, Any] = {"reg_tokens": 4, "no_embed_class": True}
SCALED: dict[str, Any] = {"init_values": 1.0}

# Each layout, a model of transformers that has it, and the same network in timm.
KINDS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "vit": ("transformers_vit", "ViT", {"layer_norm_eps": 1e-6}, {}),
    "dinov2": ("transformers_dinov2", "Dinov2", {}, SCALED),
    "dinov2, swiglu": (
        "transformers_dinov2_swiglu", "Dinov2", {"use_swiglu_ffn": True}, SCALED | SWIGLU,
    ),
    "registers": (
        "transformers_dinov2_registers", "Dinov2WithRegisters", {}, SCALED | REGISTERS,
    ),
    "registers, swiglu": (
        "transformers_dinov2_registers", "Dinov2WithRegisters", {"use_swiglu_ffn": True},
        SCALED | REGISTERS | SWIGLU,
    ),
}  # fmt: skip
MAPPED = [name for name, item in catalogue().items() if item.layout != "timm"]


def row_of(layout: str) -> CatalogueRow:
    return next(item for item in catalogue().values() if item.layout == layout)


def theirs(kind: str, size: int = 32, **changed: Any) -> nn.Module:
    """A model of transformers in which every weight matters."""
    _, model, options, _ = KINDS[kind]
    made = getattr(transformers, f"{model}Config")(
        **{
            "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS,
            "intermediate_size": 4 * WIDTH, "patch_size": 8, "image_size": size, **options,
            **changed,
        }
    )  # fmt: skip
    return moved(getattr(transformers, f"{model}Model")(made)).eval()


def ours(kind: str, size: int = 32, **changed: Any) -> nn.Module:
    """The same network in timm, in which every weight matters."""
    return moved(_small_vit(size, **(KINDS[kind][3] | changed)))


def moved(module: nn.Module) -> nn.Module:
    """Give every parameter values of its own: as built, scales are one and many others nought."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += torch.randn_like(parameter) / 8
    return module


def tokens_of(model: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        if hasattr(model, "forward_features"):
            return model.forward_features(images)
        return model(images).last_hidden_state


def images_of(size: int = 32) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(2, 3, size, size)


def equal(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.1  # not equal because all is nought
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def _small_vit(img_size: int, **more: object) -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=img_size, patch_size=8, embed_dim=WIDTH,
        depth=DEPTH, num_heads=HEADS, **more,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_transformers_saves_timm_computes_alike(
    tmp_path: Path, kind: str, *, prefix: bool
) -> None:
    layout = KINDS[kind][0]
    model, backbone = theirs(kind), ours(kind)
    state = saved(model, tmp_path)
    before = LAYOUTS[layout].prefix.replace("\\", "") if prefix else ""
    named = {before + name: tensor for name, tensor in state.items()}
    backbone.load_state_dict(weights_for(row_of(layout), named, backbone), strict=True)
    equal(tokens_of(backbone, images_of()), tokens_of(model, images_of()))


@pytest.mark.parametrize("kind", KINDS)
def test_what_timm_computes_transformers_reads_and_computes_alike(
    tmp_path: Path, kind: str
) -> None:
    """The way back uses the same names, so none of them can be wrong twice."""
    layout = KINDS[kind][0]
    model, backbone = theirs(kind), ours(kind)
    published = saved(model, tmp_path)
    state = turned(layout, backbone.state_dict(), DEPTH, published.keys())
    unused = {name: one for name, one in published.items() if name not in state}
    assert all(name.startswith(tuple(LAYOUTS[layout].unused)) for name in unused)
    safetensors.torch.save_file({**state, **unused}, tmp_path / "model.safetensors")
    again = type(model).from_pretrained(tmp_path).eval()  # type: ignore[attr-defined]
    equal(tokens_of(again, images_of()), tokens_of(backbone, images_of()))


def saved(model: Any, folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that transformers writes."""
    model.save_pretrained(folder)
    return safetensors.torch.load_file(folder / "model.safetensors")


def turned(
    layout: str, state: Mapping[str, Tensor], depth: int, names: Container[str]
) -> dict[str, Tensor]:
    """Return timm's tensors under a layout's names, of which a file has `names`."""
    result = {}
    for given_name, own_name in LAYOUTS[layout].names.items():
        target, _, third = own_name.partition("#")
        for number in range(depth if "*" in own_name else 1):
            own, given = (text.replace("*", str(number)) for text in (target, given_name))
            for end in ("", ".weight", ".bias"):
                if own + end in state and given + end in names:
                    tensor = state[own + end]
                    part = tensor.chunk(3)[int(third)] if third else tensor
                    result[given + end] = part.contiguous()
    if "reg_token" in state:  # no position for the class token: nought
        (position,) = (name for name in result if "pos" in name)
        result[position] = functional.pad(result[position], (0, 0, 1, 0))
    return result


class AnyBut:
    """All names without certain words."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def __contains__(self, name: object) -> bool:
        return not any(word in str(name) for word in self.words)


@pytest.mark.parametrize("kind", ["dinov2, swiglu"])
def test_positions_of_another_grid_are_resampled_as_transformers_does(
    tmp_path: Path, kind: str
) -> None:
    """It does so in every pass and without antialiasing; we do it once, and likewise."""
    model, backbone = theirs(kind, 72), ours(kind)
    item = row_of(KINDS[kind][0])
    backbone.load_state_dict(weights_for(item, saved(model, tmp_path), backbone), strict=True)
    equal(tokens_of(backbone, images_of()), tokens_of(model, images_of()))


def test_phikons_epsilon_is_below_what_is_stored() -> None:
    """transformers has 1e-12, timm 1e-6; of tokens with a variance of 0.1 and more."""
    first, second = (theirs("vit", layer_norm_eps=eps) for eps in (1e-12, 1e-6))
    second.load_state_dict(first.state_dict())
    one, other = (tokens_of(model, images_of()) for model in (first, second))
    assert not torch.equal(one, other)
    assert ((one - other).abs() < one.abs().clamp(min=0.01) * torch.finfo(torch.float16).eps).all()


@pytest.mark.parametrize("name", MAPPED)
def test_the_mapping_gives_the_whole_architecture(name: str) -> None:
    """Names and shapes of the full-size file are compared with the row's architecture."""
    item = row(name)
    with torch.device("meta"):
        backbone = build_backbone(
            item.library, item.architecture, feature=item.feature, arguments=item.arguments
        )
        expected = backbone.state_dict()
        if item.layout == "dinov2":
            state = own_names(expected)
        else:
            swiglu = "mlp_layer" in item.arguments or item.layout.endswith("swiglu")
            other = "mlp.fc" if swiglu else "mlp.weights"
            state = turned(item.layout, expected, len(backbone.blocks), AnyBut(other))
        result = weights_for(item, state, backbone)
    assert {key: value.shape for key, value in result.items()} == {
        key: value.shape for key, value in expected.items()
    }


# ----------------------------------------------------------------------- DINOv2's own names


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return timm's tensors as DINOv2's own code saves them, registers and all."""
    named = {
        name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): tensor
        for name, tensor in state.items()
    }
    named["register_tokens"] = named.pop("reg_token")
    position = torch.randn_like(named["cls_token"])
    named["pos_embed"] = torch.cat([position, named["pos_embed"]], 1)
    named["mask_token"] = torch.zeros_like(position[0])
    return named


def dinov2_forward(state: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Compute the tokens (b, t, d) of DINOv2 with registers and SwiGLU, from its own names."""

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return functional.layer_norm(x, weight.shape, weight, bias, eps=1e-6)

    x = functional.conv2d(
        images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=8
    )
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    registers = state["register_tokens"].expand(len(x), -1, -1)
    x = torch.cat([x[:, :1], registers, x[:, 1:]], 1)
    for index in range(DEPTH):
        block = f"blocks.{index}"
        joint = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = joint.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + linear(y, f"{block}.attn.proj") * state[f"{block}.ls1.gamma"]
        gate, value = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.w12").chunk(2, -1)
        y = linear(functional.silu(gate) * value, f"{block}.mlp.w3")
        x = x + y * state[f"{block}.ls2.gamma"]
    return norm(x, "norm")


def chunked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As a teacher trained in chunks of blocks is saved, with the heads beside it."""
    result = {
        "backbone." + name.replace("blocks.0", "blocks.0.0").replace("blocks.1", "blocks.3.1"): one
        for name, one in state.items()
    }
    return {**result, "dino_head.last_layer.weight": torch.ones(2), "ibot_head.mlp": torch.ones(2)}


@pytest.mark.parametrize("saved", [dict, chunked], ids=["flat", "in chunks"])
def test_dinov2s_own_names_compute_what_its_code_computes(saved: Any) -> None:
    state = own_names(ours("registers, swiglu").state_dict())
    backbone = ours("registers, swiglu")
    result = weights_for(row("openpath"), saved(state), backbone)
    backbone.load_state_dict(result, strict=True)
    equal(tokens_of(backbone, images_of()), dinov2_forward(state, images_of()))
    converted = checkpoint_filter_fn(dict(state), backbone)  # timm's own, which takes flat names
    assert result.keys() == converted.keys()
    assert all(torch.equal(result[name], converted[name]) for name in result)


def test_a_teachers_file_is_loaded_whole(tmp_path: Path) -> None:
    state = own_names(ours("registers, swiglu").state_dict())
    torch.save({"teacher": chunked(state), "iteration": 316250}, tmp_path / "teacher.pth")
    backbone = ours("registers, swiglu")
    load_weights(backbone, tmp_path / "teacher.pth", row("openpath"))
    equal(tokens_of(backbone, images_of()), dinov2_forward(state, images_of()))


# ----------------------------------------------------------------------- names


def test_the_catalogue_knows_the_layouts_that_there_are() -> None:
    legal = get_args(CatalogueRow.model_fields["layout"].annotation)
    assert set(legal) == {"timm", *LAYOUTS}
    assert {item.layout for item in catalogue().values()} == set(legal)  # none without a row


def test_a_name_twice_is_refused() -> None:
    state = own_names(ours("registers, swiglu").state_dict())
    state["blocks.7.0.norm1.weight"] = state["blocks.0.norm1.weight"]
    with pytest.raises(UserError, match=r"blocks\.7\.0\.norm1\.weight, twice"):
        weights_for(row("openpath"), state, ours("registers, swiglu"))


@pytest.mark.parametrize(
    "state",
    [
        {"blocks.0.attn.qkv.weight": torch.zeros(3, 1)},
        {"encoder.layer.0.attention.attention.query.weight": torch.zeros(1, 1)},
        {},
    ],
)
def test_another_layout_is_refused_by_name(state: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match="not laid out as transformers_dinov2"):
        weights_for(row("phikon-v2"), state, nn.Identity())


def test_positions_for_another_size_are_resampled_as_timm_does_at_run_time() -> None:
    """The authors of kaiko-vitl14 let timm interpolate in every forward pass; we do it once."""
    more = {"reg_tokens": 4, "no_embed_class": True}
    torch.manual_seed(0)
    authors = moved(_small_vit(74 * 8, dynamic_img_size=True, **more))
    backbone = _small_vit(32, **more)
    state = weights_for(row("kaiko-vitl14"), authors.state_dict(), backbone)
    backbone.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(backbone(images), authors(images))


def test_weights_that_fit_are_passed_through_untouched() -> None:
    backbone = _small_vit(32)
    state = backbone.state_dict()
    result = weights_for(row("uni"), state, backbone)
    assert result.keys() == state.keys()
    assert all(result[key] is state[key] for key in state)


@pytest.mark.parametrize("shape", [(1, 201, 48), (1, 1, 48), (17, 48)])
def test_positions_that_are_no_grid_are_left_for_the_loader_to_refuse(shape: tuple[int]) -> None:
    backbone = _small_vit(32)
    result = weights_for(row("uni"), {"pos_embed": torch.zeros(shape)}, backbone)
    assert result["pos_embed"].shape == shape
