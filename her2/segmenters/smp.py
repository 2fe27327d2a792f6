"""Networks that segmentation-models-pytorch builds, which is no dependency of her2."""

import importlib.util
import warnings
from typing import TYPE_CHECKING

from her2.core.errors import UserError

if TYPE_CHECKING:
    from torch import nn

_ENCODER = "timm-efficientnet-b0"


def build(place: str, architecture: str, *, classes: int, instead: str) -> "nn.Module":
    """Return a network on an EfficientNet-B0, without weights.

    Args:
        place: the config's key and value that ask for it, as errors say them.
        architecture: name of the class in that library.
        classes: number of classes.
        instead: what to do without that library.

    Raises:
        UserError: the library is not installed.
    """
    if importlib.util.find_spec("segmentation_models_pytorch") is None:
        raise UserError(
            f"{place} is built by segmentation-models-pytorch, which is not installed. Run "
            "`pip install 'segmentation-models-pytorch>=0.5,<0.7'` in the environment of the jobs, "
            f"or {instead}."
        )
    import segmentation_models_pytorch as smp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the encoder that was trained
        network: nn.Module = getattr(smp, architecture)(
            encoder_name=_ENCODER, encoder_weights=None, classes=classes, activation=None
        )
    return network
