"""Stage 1, encoder and embed: a library's architecture as a module that embeds patches."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from her2 import libraries
from her2.config import EncoderSection, Feature, catalogue
from her2.core.downloads import damage
from her2.core.errors import UserError, first_line
from her2.core.types import Normalisation
from her2.encoders.fetching import retried


class Encoder(nn.Module):
    """Encoder of uint8 patches that converts and normalises them on the device, in batches."""

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

    def normalised(self, patches: Tensor) -> Tensor:
        """Return patches, uint8 (b, h, w, 3), as the backbone takes them: float (b, 3, h, w)."""
        x = patches * self.gain + self.bias
        return x.permute(0, 3, 1, 2)  # channels-last in memory

    def forward(self, patches: Tensor) -> Tensor:
        """Embed RGB patches, uint8 (b, h, w, 3): float (b, d)."""
        x = self.normalised(patches)
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
    arguments: Mapping[str, Any],
    pretrained: bool = False,
) -> nn.Module:
    """Build an architecture of a library without its classifier.

    Raises:
        UserError: the library does not have the architecture, or that has no such feature.
        OSError, RuntimeError: the published weights could not be fetched.
    """
    model = libraries.library_with(library, architecture).build(
        architecture, feature=feature, arguments=arguments, pretrained=pretrained
    )
    if feature in ("class_token", "class_and_mean") and not getattr(model, "num_prefix_tokens", 0):
        raise UserError(
            f"encoders: {library}/{architecture} has no class token; use `feature: pooled`."
        )
    return model


def with_published(
    build: Callable[[], nn.Module], library: str, architecture: str, *, otherwise: str
) -> nn.Module:
    """Build an architecture with the weights that its library fetches and publishes.

    `otherwise` is what an error without a network says to do.

    Raises:
        UserError: they could not be fetched or loaded.
    """
    try:
        return retried(build)
    except UserError:
        raise
    except Exception as error:  # a damaged file raises any type of error
        path = libraries.library(library).fetched(architecture)
        if path is not None and path.is_file():
            raise UserError(
                f"{path}: {damage(path) or _not_loaded(library, architecture, error)}."
            ) from None
        raise UserError(
            f"encoders: the weights of {library}/{architecture} could not be fetched "
            f"({first_line(error)}). {otherwise}"
        ) from None


def _not_loaded(library: str, architecture: str, error: Exception) -> str:
    return (
        f"{library} {version(library)} cannot load it as {architecture} ({first_line(error)}). "
        f"Delete it to fetch it again, or install another version of {library}"
    )


def default_arguments(
    library: str, architecture: str, *, feature: Feature, size_px: int
) -> dict[str, Any]:
    """Return the arguments that make an architecture take patches of `size_px` pixels per side."""
    found = libraries.library_with(library, architecture)
    return found.arguments(architecture, feature=feature, size_px=size_px)


def normalisation(encoder: EncoderSection) -> Normalisation:
    """Return the mean and standard deviation (RGB in [0, 1]) that normalise an encoder's patches.

    Raises:
        UserError: the config states none, and the library does not know those of its weights.
    """
    if encoder.mean is not None and encoder.std is not None:
        return encoder.mean, encoder.std
    if encoder.source == "catalogue":
        row = catalogue.row(encoder.model)
        return row.mean, row.std
    library = libraries.library_with(encoder.library, encoder.architecture)
    found = library.normalisation(encoder.architecture)
    if found is None:
        raise UserError(
            f"encoders: {encoder.library} does not say how patches are normalised for "
            f"{encoder.architecture!r}; set `mean` and `std` of R, G, B in [0, 1] as its authors "
            "state them (for ImageNet: [0.485, 0.456, 0.406] and [0.229, 0.224, 0.225])."
        )
    return found
