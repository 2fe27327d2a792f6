"""torchvision's classification models (https://docs.pytorch.org/vision/stable/models.html)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from her2.core.errors import UserError
from her2.core.types import Feature, Normalisation
from her2.libraries import Library

if TYPE_CHECKING:
    from torch import nn


class Torchvision(Library):
    """Models of `torchvision.models` with their `DEFAULT` weights."""

    domain = "natural"

    def names(self) -> list[str]:
        """Return the classification models, without those of detection, segmentation or video."""
        from torchvision import models

        found: list[str] = models.list_models(module=models)
        return found

    def build(
        self,
        architecture: str,
        *,
        feature: Feature,
        arguments: Mapping[str, Any],
        pretrained: bool,
    ) -> "nn.Module":
        """Build a model; `flattened` is its `features` part."""
        from torch import nn
        from torchvision import models

        weights = "DEFAULT" if pretrained else None
        model: nn.Module = models.get_model(architecture, weights=weights, **arguments)
        if feature == "flattened":
            if not isinstance(features := getattr(model, "features", None), nn.Module):
                raise UserError(
                    f"encoders: torchvision/{architecture} has no `features` part to flatten; use "
                    "`feature: pooled`."
                )
            return features
        for name in ("fc", "classifier", "head", "heads"):
            if hasattr(model, name):
                setattr(model, name, nn.Identity())
                return model
        raise UserError(f"encoders: torchvision/{architecture} has no classifier to remove.")

    def fetched(self, architecture: str) -> Path:
        """Return the file in the folder of torch.hub, which is named by its address."""
        import torch
        from torchvision import models

        url = models.get_model_weights(architecture).DEFAULT.url
        return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]

    def normalisation(self, architecture: str) -> Normalisation | None:
        from torchvision import models

        transform = models.get_model_weights(architecture).DEFAULT.transforms()
        return tuple(transform.mean), tuple(transform.std)


LIBRARY = Torchvision()
