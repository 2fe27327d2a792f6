"""Stage 1, encoder and embed: architectures of timm and torchvision as one kind of module."""

import difflib
from typing import Any

import timm
import timm.data
import torch
import torchvision
from torch import Tensor, nn

from her2.config import Feature
from her2.core.errors import UserError
from her2.encoders.weights import with_layers

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """uint8 patches -> embeddings; conversion and normalisation happen on the device, in batch."""

    def __init__(
        self,
        backbone: nn.Module,
        *,
        feature: Feature,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.feature = feature
        # (value / 255 - mean) / std as one multiplication and one addition.
        self.gain: Tensor
        self.bias: Tensor
        self.register_buffer("gain", 1 / (255 * torch.tensor(std)), persistent=False)
        self.register_buffer("bias", -torch.tensor(mean) / torch.tensor(std), persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed.

        Args:
            patches: uint8 (b, h, w, 3), RGB.

        Returns:
            float (b, d).
        """
        x = patches * self.gain + self.bias  # (b, h, w, 3)
        x = x.permute(0, 3, 1, 2)  # (b, 3, h, w), channels-last in memory
        if self.feature in ("pooled", "flattened"):
            return self.backbone(x).flatten(1)
        tokens = self.backbone.forward_features(x)  # type: ignore[operator]  # (b, t, d)
        if self.feature == "class_token":
            return tokens[:, 0]
        patch_tokens = tokens[:, self.backbone.num_prefix_tokens :]  # (b, t - prefix, d)
        return torch.cat([tokens[:, 0], patch_tokens.mean(1)], dim=1)


def build_backbone(
    library: str,
    architecture: str,
    *,
    feature: Feature,
    arguments: dict[str, Any],
    pretrained: bool = False,
) -> nn.Module:
    """An architecture without its classifier.

    Raises:
        UserError: the library does not know it, or it has no such feature.
    """
    if library == "timm":
        model = _timm(architecture, arguments, pretrained)
    else:
        model = _torchvision(architecture, arguments, pretrained, feature)
    if feature in ("class_token", "class_and_mean") and not getattr(model, "num_prefix_tokens", 0):
        raise UserError(
            f"encoders: {library}/{architecture} has no class token; use `feature: pooled`."
        )
    return model


def default_arguments(
    library: str, architecture: str, *, feature: Feature, size: int
) -> dict[str, Any]:
    """What the architecture must be told to take patches of `size` px a side."""
    if library != "timm":
        return {}
    arguments: dict[str, Any] = {}
    if _timm_config(architecture).fixed_input_size:
        arguments["img_size"] = size
    if feature == "flattened":
        arguments["global_pool"] = ""
    return arguments


def normalisation(library: str, architecture: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (RGB in [0, 1]) that the published weights were trained with."""
    if library == "timm":
        config = _timm_config(architecture)
        return tuple(config.mean), tuple(config.std)
    return IMAGENET_MEAN, IMAGENET_STD


def _timm_config(architecture: str) -> Any:
    try:
        config = timm.models.get_pretrained_cfg(architecture)
    except RuntimeError:  # a known architecture with a tag that timm does not know
        raise _unknown("timm", architecture, timm.list_pretrained()) from None
    if config is None:
        if not timm.is_model(architecture):
            raise _unknown("timm", architecture, timm.list_models())
        config = timm.models.PretrainedCfg()
    return config


def _timm(architecture: str, arguments: dict[str, Any], pretrained: bool) -> nn.Module:
    if not timm.is_model(architecture):
        raise _unknown("timm", architecture, timm.list_models())
    return timm.create_model(
        architecture, pretrained=pretrained, num_classes=0, **with_layers(arguments)
    )


def _torchvision(
    architecture: str, arguments: dict[str, Any], pretrained: bool, feature: Feature
) -> nn.Module:
    known = torchvision.models.list_models(module=torchvision.models)
    if architecture not in known:
        raise _unknown("torchvision", architecture, known)
    weights = "DEFAULT" if pretrained else None
    model = torchvision.models.get_model(architecture, weights=weights, **arguments)
    if feature == "flattened":
        if not hasattr(model, "features"):
            raise UserError(
                f"encoders: torchvision/{architecture} has no `features` part to flatten; use "
                "`feature: pooled`."
            )
        return model.features
    for name in ("fc", "classifier", "head", "heads"):
        if hasattr(model, name):
            setattr(model, name, nn.Identity())
            return model
    raise UserError(f"encoders: torchvision/{architecture} has no classifier to take off.")


def _unknown(library: str, architecture: str, known: list[str]) -> UserError:
    near = difflib.get_close_matches(architecture, known, n=3)
    hint = f"; near: {', '.join(near)}" if near else ""
    return UserError(f"encoders: {library} knows no model {architecture!r}{hint}.")


def timm_licence(architecture: str) -> str:
    """The licence that timm states for its published weights, empty when it states none."""
    return str(_timm_config(architecture).license or "")
