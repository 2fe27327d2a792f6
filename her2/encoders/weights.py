"""Stage 1, encoder: the tensors of a published file, renamed for timm's architectures."""

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from her2.config.catalogue import CatalogueRow
from her2.core.errors import UserError

# transformers -> timm, after `encoder.layer.N.`. transformers' own converters do the reverse
# (models/vit/convert_dino_to_pytorch.py, models/dinov2/convert_dinov2_to_hf.py).
_BLOCK = {
    "transformers_vit": {
        "layernorm_before": "norm1",
        "attention.output.dense": "attn.proj",
        "layernorm_after": "norm2",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    },
    "transformers_dinov2": {
        "norm1": "norm1",
        "attention.output.dense": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "norm2": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "layer_scale2.lambda1": "ls2.gamma",
    },
}
_OUTER = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
_UNUSED = {"embeddings.mask_token": "", "pooler": "", "classifier": ""}
_QKV = {"attention.attention.query": "q", "attention.attention.key": "k",
        "attention.attention.value": "v"}  # fmt: skip


def weights_for(
    row: CatalogueRow, state: Mapping[str, Tensor], backbone: nn.Module
) -> dict[str, Tensor]:
    """Return a file's tensors under timm's names, with position embeddings on the backbone's grid.

    timm resamples them (bicubic, antialiased), as it does when it loads weights for another size.
    The caller must check that no tensor is missing.

    Raises:
        UserError: names that do not belong to the row's layout.
    """
    from timm.layers.pos_embed import resample_abs_pos_embed

    result = _from_transformers(row, state) if row.layout != "timm" else dict(state)
    vit: Any = backbone
    positions, own = result.get("pos_embed"), getattr(vit, "pos_embed", None)
    if positions is None or own is None or positions.shape == own.shape:
        return result
    prefix = 0 if vit.no_embed_class else int(vit.num_prefix_tokens)
    tokens = positions.shape[1] - prefix if positions.ndim == 3 else -1
    if tokens > 0 and isqrt(tokens) ** 2 == tokens:  # else it belongs to another architecture
        result["pos_embed"] = resample_abs_pos_embed(
            positions, new_size=list(vit.patch_embed.grid_size), num_prefix_tokens=prefix
        )
    return result


def _from_transformers(row: CatalogueRow, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    strange = []
    for full_name, tensor in state.items():
        name = re.sub(r"^(vit|dinov2)\.", "", full_name)
        block = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", name)
        if block is None:
            renamed = _renamed(name, _OUTER)
            if renamed is not None:
                result[renamed] = tensor
            elif _renamed(name, _UNUSED) is None:
                strange.append(full_name)
            continue
        number, rest = block.groups()
        which = _renamed(rest, _QKV)
        renamed = _renamed(rest, _BLOCK[row.layout])
        if which is not None:
            third, _, kind = which.partition(".")
            thirds.setdefault(f"blocks.{number}.attn.qkv.{kind}", {})[third] = tensor
        elif renamed is not None:
            result[f"blocks.{number}.{renamed}"] = tensor
        else:
            strange.append(full_name)
    strange += [name for name, parts in thirds.items() if parts.keys() != {"q", "k", "v"}]
    if strange or not thirds:
        raise UserError(
            f"encoders: {row.name}: the weights are not laid out as {row.layout} "
            f"({', '.join(strange[:4]) or 'no attention layers'})."
        )
    for name, parts in thirds.items():
        result[name] = torch.cat([parts["q"], parts["k"], parts["v"]])
    return result


def _renamed(name: str, names: Mapping[str, str]) -> str | None:
    for old, new in names.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return None
