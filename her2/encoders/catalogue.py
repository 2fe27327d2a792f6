"""Stage 1, encoder: the catalogue of published encoders, which is data (`catalogue.yaml`).

Reading a row needs neither torch nor timm, so the config and `her2 encoders` can ask cheaply. The
last three functions turn a row into what timm and torch understand.
"""

import difflib
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from math import isqrt
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from her2.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

SCALE_TOLERANCE = 0.2
"""A um/px further than this from the trained one, relative to it, deserves a warning."""

Channels = tuple[
    Annotated[float, Field(gt=0, lt=1)],
    Annotated[float, Field(gt=0, lt=1)],
    Annotated[float, Field(gt=0, lt=1)],
]
Mpp = Annotated[float, Field(ge=0.05, le=20)]
Url = Annotated[str, Field(pattern=r"^https://\S+$")]

DOMAINS = {"he": "H&E", "he_ihc": "H&E + IHC", "ihc": "IHC", "natural": "natural", "none": "none"}


class CatalogueRow(BaseModel):
    """One published encoder, and how its authors feed it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(description="what `model:` says in a config")
    title: str = Field(description="for people: network and training data")
    library: Literal["timm", "torchvision"] = Field(description="which builds the architecture")
    architecture: str = Field(
        description="the library's name; with a tag (`.a1_in1k`) the library also has the weights"
    )
    hub: str | None = Field(
        None, description="Hugging Face repository of the weights; none: the library fetches them"
    )
    file: str | None = Field(None, description="the weights file in it")
    layout: Literal["timm", "transformers_vit", "transformers_dinov2"] = Field(
        "timm", description="how the file names its tensors"
    )
    arguments: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        description="for the constructor, where it differs from the architecture's defaults; "
        "layers by name",
    )
    size: Annotated[int, Field(ge=16, le=2048)] = Field(description="px a side of the patches")
    mpp: Mpp | None = Field(
        None, description="um/px of the patches it was trained on; none: it saw no microscope"
    )
    also_mpp: tuple[Mpp, ...] = Field((), description="further um/px it was trained on")
    feature: Literal["pooled", "class_token", "class_and_mean", "flattened"] = Field(
        description="what its authors keep of the output"
    )
    dimension: Annotated[int, Field(ge=1)] = Field(description="numbers a patch, under `feature`")
    mean: Channels = Field(description="of RGB in [0, 1], subtracted")
    std: Channels = Field(description="of RGB in [0, 1], divided by")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        description="the coarsest type that its authors or established pipelines run it in"
    )
    storage: Literal["float16", "float32"] = Field(
        "float16", description="type of the stored features; float32 for values beyond 65,504"
    )
    domain: Literal["he", "he_ihc", "ihc", "natural", "none"] = Field(
        description="training images: H&E, H&E with some IHC, IHC, photographs, none"
    )
    licence: str = Field(min_length=1, description="of the weights")
    gated: bool = Field(False, description="the weights are given on request")
    ask_at: Url | None = Field(None, description="where to request them")
    paper: Url | None = Field(None, description="publication")
    card: Url = Field(description="the authors' description of the published weights")
    note: str | None = Field(None, description="what surprises")
    checked: str = Field(min_length=1, description="which sources the row was compared with")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "CatalogueRow":
        if (self.hub is None) != (self.file is None):
            raise ValueError("`hub` and `file` belong together")
        if self.hub is None and self.layout != "timm":
            raise ValueError("`layout` describes a file of a hub")
        if self.gated and self.ask_at is None:
            raise ValueError("`gated` without `ask_at`")
        if self.domain in ("he", "he_ihc", "ihc") and self.mpp is None:
            raise ValueError("trained on slides, so it has a `mpp`")
        if self.arguments.get("img_size", self.size) != self.size:
            raise ValueError("`img_size` is not `size`")
        taken = {"num_classes", "pretrained"} & self.arguments.keys()
        if taken:
            raise ValueError(f"{', '.join(sorted(taken))}: set by the code that builds")
        return self

    def defaults(self) -> dict[str, Any]:
        """What a config section takes from the row for the keys it leaves out."""
        names = ("size", "mpp", "feature", "precision", "storage", "domain")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


@cache
def catalogue() -> dict[str, CatalogueRow]:
    """All rows by name, in the file's order."""
    text = resources.files("her2.encoders").joinpath("catalogue.yaml").read_text(encoding="utf-8")
    rows: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return {name: CatalogueRow(name=name, **values) for name, values in rows.items()}


def row(name: str) -> CatalogueRow:
    """The row of that name.

    Raises:
        UserError: there is none; the nearest names are given.
    """
    rows = catalogue()
    if name in rows:
        return rows[name]
    # People also write the hub's name, or another spelling of ours.
    plain = _plain(name.split("/")[-1])
    spellings = {_plain(key): key for key in rows} | {
        _plain(value.hub.split("/")[-1]): key for key, value in rows.items() if value.hub
    }
    near = difflib.get_close_matches(plain, spellings, n=8, cutoff=0.5)
    names = list(dict.fromkeys(spellings[spelling] for spelling in near))[:3]
    hint = f"; near: {', '.join(names)}" if names else ""
    raise UserError(
        f"encoders: the catalogue has no {name!r}{hint}. `her2 encoders` lists all {len(rows)}."
    )


def table() -> str:
    """The catalogue as plain text, one line an encoder."""
    head = (
        "name", "trained on", "architecture", "feature", "dimension", "px", "um/px", "precision",
        "licence", "access",
    )  # fmt: skip
    lines = [head]
    for item in catalogue().values():
        scales = sorted({item.mpp, *item.also_mpp}) if item.mpp is not None else []
        lines.append(
            (
                item.name,
                DOMAINS[item.domain],
                f"{item.library}/{item.architecture}",
                item.feature,
                str(item.dimension),
                str(item.size),
                ", ".join(f"{scale:g}" for scale in scales) or "-",
                item.precision,
                item.licence,
                f"ask: {item.ask_at}" if item.gated else "open",
            )
        )
    numbers = {"dimension", "px"}
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if title in numbers else cell.ljust(width)
            for cell, width, title in zip(line, widths, head, strict=True)
        ).rstrip()
        for line in lines
    )


def scale_warning(row: CatalogueRow, mpp: float) -> str | None:
    """What to say when patches of `mpp` um/px are not what the encoder was trained on.

    None within 20 % of a trained um/px, and for an encoder that has none.
    """
    if row.mpp is None:
        return None
    trained = sorted({row.mpp, *row.also_mpp})
    if min(abs(mpp - scale) / scale for scale in trained) <= SCALE_TOLERANCE + 1e-9:
        return None
    scales = ", ".join(f"{scale:g}" for scale in trained)
    return (
        f"{row.name} was trained at {scales} um/px and gets {mpp:g} um/px: nuclei look "
        f"{min(trained, key=lambda scale: abs(mpp - scale) / scale) / mpp:.2g} times their size "
        "to it."
    )


def timm_arguments(row: CatalogueRow, size: int | None = None) -> dict[str, object]:
    """Keyword arguments of `timm.create_model` besides `pretrained` and `num_classes`.

    Args:
        row: of library timm.
        size: px a side of the patches, where it is not the row's.

    Raises:
        UserError: a layer that the catalogue does not allow.
    """
    arguments: dict[str, object] = dict(row.arguments)
    if size is not None and "img_size" in arguments:
        arguments["img_size"] = size
    return with_layers(arguments)


def with_layers(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments, with layer classes in the place of their names.

    A card keeps the names; only these few mean something, and nothing is evaluated.

    Raises:
        UserError: another name.
    """
    from timm.layers.mlp import SwiGLUPacked
    from torch import nn

    known: dict[str, dict[str, object]] = {
        "mlp_layer": {"SwiGLUPacked": SwiGLUPacked},
        "act_layer": {"silu": nn.SiLU, "gelu": nn.GELU},
    }
    result = dict(arguments)
    for key, value in arguments.items():
        if not key.endswith("_layer") or not isinstance(value, str):
            continue
        layers = known.get(key, {})
        if value not in layers:
            legal = ", ".join(layers) or "none"
            raise UserError(f"encoders: {key}: {value!r} is not a layer known here ({legal}).")
        result[key] = layers[value]
    return result


# transformers -> timm, after `encoder.layer.N.`. The reverse is what transformers' own converters
# do (models/vit/convert_dino_to_pytorch.py, models/dinov2/convert_dinov2_to_hf.py).
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
    row: CatalogueRow, state: "Mapping[str, Tensor]", backbone: "nn.Module"
) -> "dict[str, Tensor]":
    """A file's tensors under timm's names, position embeddings resampled to the backbone's grid.

    Resampling is timm's own (bicubic, antialiased), as when timm loads weights for another size.
    Whether all tensors are there is for the caller to check.

    Raises:
        UserError: names that are not of the row's layout.
    """
    result = _from_transformers(row, state) if row.layout != "timm" else dict(state)
    vit: Any = backbone
    positions, own = result.get("pos_embed"), getattr(vit, "pos_embed", None)
    if positions is None or own is None or positions.shape == own.shape:
        return result
    prefix = 0 if vit.no_embed_class else int(vit.num_prefix_tokens)
    tokens = positions.shape[1] - prefix if positions.ndim == 3 else -1
    if tokens > 0 and isqrt(tokens) ** 2 == tokens:  # else another architecture's
        from timm.layers.pos_embed import resample_abs_pos_embed

        result["pos_embed"] = resample_abs_pos_embed(
            positions, new_size=list(vit.patch_embed.grid_size), num_prefix_tokens=prefix
        )
    return result


def _from_transformers(row: CatalogueRow, state: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    import torch

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


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
