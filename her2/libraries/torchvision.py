"""torchvision's classification models (https://docs.pytorch.org/vision/stable/models.html)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from her2.core.downloads import damage, stated_digest
from her2.core.errors import UserError
from her2.core.types import Feature, Normalisation
from her2.libraries import Library

if TYPE_CHECKING:
    from torch import Tensor, nn

CLASSIFIERS = ("fc", "classifier", "head", "heads")
"""Modules that are a model's classifier; it has one of them."""


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
        """Build a model; `flattened` is its `features` part.

        A damaged file of its weights is refused before torchvision unpickles it.
        """
        from torch import nn
        from torchvision import models

        if pretrained and (problem := damage(path := self.fetch(architecture))):
            raise UserError(f"{path}: {problem}.")
        weights = "DEFAULT" if pretrained else None
        model: nn.Module = models.get_model(architecture, weights=weights, **arguments)
        if feature == "flattened":
            if not isinstance(features := getattr(model, "features", None), nn.Module):
                raise UserError(
                    f"encoders: torchvision/{architecture} has no `features` part to flatten; use "
                    "`feature: pooled`."
                )
            return features
        for name in CLASSIFIERS:
            if hasattr(model, name):
                setattr(model, name, nn.Identity())
                return model
        raise UserError(f"encoders: torchvision/{architecture} has no classifier to remove.")

    def converted(
        self, state: "Mapping[str, Tensor]", architecture: str, backbone: "nn.Module"
    ) -> "tuple[dict[str, Tensor], list[str]]":
        head = [name for name in state if name.partition(".")[0] in CLASSIFIERS]
        whole = any(name.startswith("features.") for name in backbone.state_dict())
        prefix = "" if whole else "features."
        found = {n.removeprefix(prefix): t for n, t in state.items() if n not in head}
        return found, head

    def fetch(self, architecture: str) -> Path:
        """Fetch the file as torch.hub does, which compares it with the digest in its name."""
        import torch
        from torchvision import models

        path = self.fetched(architecture)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            url = models.get_model_weights(architecture).DEFAULT.url
            torch.hub.download_url_to_file(url, str(path), stated_digest(path), progress=False)
        return path

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
