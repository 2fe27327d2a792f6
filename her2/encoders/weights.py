"""Stage 1, encoder: the tensors of a published file, renamed for timm's architectures.

A layout is data: what a name becomes, which names are of no use here, and what else differs. `*`
stands for the number of a block. A file's names are those of modules, or of parameters that belong
to no module; what follows them (`.weight`) stays as it is.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from her2.config.catalogue import CatalogueRow
from her2.core.errors import UserError


@dataclass(frozen=True, slots=True)
class Layout:
    """How a kind of file names its tensors.

    Attributes:
        names: timm's name of each module; `#0`, `#1`, `#2` at its end: the first, second or last
            third of it.
        unused: modules that no feature needs.
        prefix: a pattern of what is before all names, or before those that matter.
        rewritten: a pattern and its replacement, for names with parts that carry no information.
        antialias: whether its authors' code resamples position embeddings with antialiasing; timm
            does. It only matters for a grid other than the file's.
    """

    names: Mapping[str, str]
    unused: frozenset[str] = frozenset()
    prefix: str = ""
    rewritten: tuple[str, str] | None = None
    antialias: bool = True


# transformers' own converters do the reverse (models/vit/convert_dino_to_pytorch.py,
# models/dinov2/convert_dinov2_to_hf.py, models/dinov2_with_registers/...).
_TRANSFORMERS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.layer.*.attention.attention.query": "blocks.*.attn.qkv#0",
    "encoder.layer.*.attention.attention.key": "blocks.*.attn.qkv#1",
    "encoder.layer.*.attention.attention.value": "blocks.*.attn.qkv#2",
    "encoder.layer.*.attention.output.dense": "blocks.*.attn.proj",
    "layernorm": "norm",
}
_VIT = {
    "encoder.layer.*.layernorm_before": "blocks.*.norm1",
    "encoder.layer.*.layernorm_after": "blocks.*.norm2",
    "encoder.layer.*.intermediate.dense": "blocks.*.mlp.fc1",
    "encoder.layer.*.output.dense": "blocks.*.mlp.fc2",
}
_DINOV2 = {
    "encoder.layer.*.norm1": "blocks.*.norm1",
    "encoder.layer.*.norm2": "blocks.*.norm2",
    "encoder.layer.*.layer_scale1.lambda1": "blocks.*.ls1.gamma",
    "encoder.layer.*.layer_scale2.lambda1": "blocks.*.ls2.gamma",
}
_MLP = {
    "encoder.layer.*.mlp.fc1": "blocks.*.mlp.fc1",
    "encoder.layer.*.mlp.fc2": "blocks.*.mlp.fc2",
}
_SWIGLU = {
    "encoder.layer.*.mlp.weights_in": "blocks.*.mlp.fc1",
    "encoder.layer.*.mlp.weights_out": "blocks.*.mlp.fc2",
}
_REGISTERS = {"embeddings.register_tokens": "reg_token"}
_NOT_OF_FEATURES = frozenset({"embeddings.mask_token", "pooler", "classifier"})
# The modules that timm and DINOv2's own code call alike.
_SAME = (
    "patch_embed.proj", "norm", "blocks.*.norm1", "blocks.*.norm2", "blocks.*.attn.qkv",
    "blocks.*.attn.proj", "blocks.*.ls1.gamma", "blocks.*.ls2.gamma", "blocks.*.mlp.fc1",
    "blocks.*.mlp.fc2", "cls_token", "pos_embed",
)  # fmt: skip

LAYOUTS: dict[str, Layout] = {
    "transformers_vit": Layout({**_TRANSFORMERS, **_VIT}, _NOT_OF_FEATURES, r"vit\."),
    "transformers_dinov2": Layout(
        {**_TRANSFORMERS, **_DINOV2, **_MLP}, _NOT_OF_FEATURES, r"dinov2\."
    ),
    "transformers_dinov2_swiglu": Layout(
        {**_TRANSFORMERS, **_DINOV2, **_SWIGLU}, _NOT_OF_FEATURES, r"dinov2\.", antialias=False
    ),
    "transformers_dinov2_registers": Layout(
        {**_TRANSFORMERS, **_DINOV2, **_MLP, **_SWIGLU, **_REGISTERS},
        _NOT_OF_FEATURES,
        r"dinov2_with_registers\.",
    ),
    "dinov2": Layout(
        {
            **{name: name for name in _SAME},
            "register_tokens": "reg_token",
            "blocks.*.mlp.w12": "blocks.*.mlp.fc1",
            "blocks.*.mlp.w3": "blocks.*.mlp.fc2",
        },
        frozenset({"mask_token", "dino_head", "ibot_head"}),
        r"backbone\.",
        # Trained with `block_chunks`, a block has the number of its chunk before its own.
        rewritten=(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1"),
    ),
}
"""The layouts that differ from timm's, which needs no mapping."""


def weights_for(
    row: CatalogueRow, state: Mapping[str, Tensor], backbone: nn.Module
) -> dict[str, Tensor]:
    """Return a file's tensors under timm's names, with position embeddings on the backbone's grid.

    They are resampled (bicubic) as the layout's own code does it. Where a file has a position for
    the class token and the backbone has none, it is added to the token, which computes the same.
    The caller must check that no tensor is missing.

    Raises:
        UserError: names that do not belong to the row's layout.
    """
    from timm.layers.pos_embed import resample_abs_pos_embed

    layout = LAYOUTS.get(row.layout)
    result = dict(state) if layout is None else _renamed(row, layout, state)
    vit: Any = backbone
    positions, own = result.get("pos_embed"), getattr(vit, "pos_embed", None)
    if positions is None or own is None or positions.ndim != 3:
        return result
    if layout is not None and vit.no_embed_class and "cls_token" in result:
        result["cls_token"] = result["cls_token"] + positions[:, :1]
        result["pos_embed"] = positions = positions[:, 1:]
    if positions.shape == own.shape:
        return result
    prefix = 0 if vit.no_embed_class else int(vit.num_prefix_tokens)
    tokens = positions.shape[1] - prefix
    if tokens > 0 and isqrt(tokens) ** 2 == tokens:  # else it belongs to another architecture
        result["pos_embed"] = resample_abs_pos_embed(
            positions,
            new_size=list(vit.patch_embed.grid_size),
            num_prefix_tokens=prefix,
            antialias=layout is None or layout.antialias,
        )
    return result


def _renamed(row: CatalogueRow, layout: Layout, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under timm's names, with the thirds of its joint matrices together."""
    result: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    strange = []
    for given, tensor in state.items():
        name = re.sub(f"^(?:{layout.prefix})", "", given)
        if layout.rewritten is not None:
            name = re.sub(*layout.rewritten, name)
        if _module(name, layout.unused) is not None:
            continue
        found = _module(name, layout.names)
        if found is None:
            strange.append(given)
            continue
        module, number, rest = found
        target, _, third = layout.names[module].replace("*", number).partition("#")
        if third:
            thirds.setdefault(target + rest, {})[third] = tensor
        elif target + rest in result:
            strange.append(f"{given}, twice")
        else:
            result[target + rest] = tensor
    strange += [name for name, parts in thirds.items() if len(parts) != 3]
    if strange or not any(name.startswith("blocks.") for name in (*result, *thirds)):
        raise UserError(
            f"encoders: {row.name}: the weights are not laid out as {row.layout} "
            f"({', '.join(strange[:4]) or 'no attention layers'})."
        )
    for name, parts in thirds.items():
        result[name] = torch.cat([parts[third] for third in sorted(parts)])
    return result


def _module(name: str, modules: Mapping[str, str] | frozenset[str]) -> tuple[str, str, str] | None:
    """Return the module that a tensor belongs to, its block's number ("" if none), and the rest."""
    numbered = re.match(r"(?:encoder\.layer|blocks)\.(\d+)\.", name)
    number = numbered[1] if numbered else ""
    plain = name.replace(f".{number}.", ".*.", 1) if numbered else name
    parts = plain.split(".")
    for count in range(len(parts), 0, -1):
        module = ".".join(parts[:count])
        if module in modules:
            return module, number, plain[len(module) :]
    return None
