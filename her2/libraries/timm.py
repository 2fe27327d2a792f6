"""timm, PyTorch image models (Wightman 2019, https://github.com/huggingface/pytorch-image-models).

`resnet18` is an architecture, `resnet18.a1_in1k` an architecture with published weights.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from her2.core.compiler import compiler_deferred
from her2.core.errors import UserError
from her2.core.types import Feature, Normalisation
from her2.libraries import Library

if TYPE_CHECKING:
    from pathlib import Path

    from timm.models import PretrainedCfg
    from torch import Tensor, nn
    from torch.nn.modules.module import _IncompatibleKeys

log = logging.getLogger(__name__)


class Timm(Library):
    """Models of `timm.create_model`."""

    domain = "natural"

    def names(self) -> list[str]:
        """Return the architectures, with and without the tags of their weights."""
        timm = _timm()
        return [*timm.list_models(), *timm.list_models(include_tags=True)]

    def knows(self, architecture: str) -> bool:
        """Tell whether timm has a model; unlike `names`, this includes deprecated names."""
        timm = _timm()
        try:
            timm.models.get_pretrained_cfg(architecture)
        except RuntimeError:  # a known architecture with a tag that timm does not know
            return False
        return timm.is_model(architecture)

    def build(
        self,
        architecture: str,
        *,
        feature: Feature,
        arguments: Mapping[str, Any],
        pretrained: bool,
    ) -> "nn.Module":
        timm = _timm()
        create = partial(timm.create_model, architecture, num_classes=0, **with_layers(arguments))
        if not pretrained:
            return create()
        with _loads() as loads:
            model = create(pretrained=True)
        _check_filled(model, architecture, [n for found in loads for n in found.missing_keys])
        return model

    def arguments(self, architecture: str, *, feature: Feature, size_px: int) -> dict[str, Any]:
        """Return `img_size` for models of a fixed size, and `global_pool` for `flattened`."""
        found: dict[str, Any] = {}
        config = _published(architecture)
        if config is not None and config.fixed_input_size:
            found["img_size"] = size_px
        if feature == "flattened":
            found["global_pool"] = ""
        return found

    def converted(
        self, state: "Mapping[str, Tensor]", architecture: str, backbone: "nn.Module"
    ) -> "tuple[dict[str, Tensor], list[str]]":
        """Convert as timm's own loader does: names of older files, positions of another size."""
        convert = getattr(import_module(type(backbone).__module__), "checkpoint_filter_fn", None)
        found = dict(state) if convert is None else dict(convert(dict(state), backbone))
        config = _published(architecture)
        modules = (config.classifier if config is not None else None) or ()
        heads = {modules} if isinstance(modules, str) else set(modules)
        head = [name for name in found if name.rpartition(".")[0] in heads]
        return {name: tensor for name, tensor in found.items() if name not in head}, head

    def fetched(self, architecture: str) -> "Path | None":
        """Return the file in the cache of the Hugging Face hub, where timm has its weights from."""
        from pathlib import Path

        import huggingface_hub

        config = _published(architecture)
        if config is None or not config.hf_hub_id:
            return None
        for name in (config.hf_hub_filename, "model.safetensors", "pytorch_model.bin"):
            found = name and huggingface_hub.try_to_load_from_cache(config.hf_hub_id, name)
            if isinstance(found, str):
                return Path(found)
        return None

    def normalisation(self, architecture: str) -> Normalisation | None:
        config = _published(architecture)
        return None if config is None else (tuple(config.mean), tuple(config.std))

    def licence(self, architecture: str) -> str:
        config = _published(architecture)
        return "" if config is None else str(config.license or "")


@contextmanager
def _loads() -> "Iterator[list[_IncompatibleKeys]]":
    """Collect what torch finds missing and unexpected when modules load their state inside."""
    from torch import nn

    found: list[_IncompatibleKeys] = []
    own = nn.Module.load_state_dict

    def noting(module: nn.Module, *given: Any, **more: Any) -> "_IncompatibleKeys":
        result = own(module, *given, **more)
        found.append(result)
        return result

    with patch.object(nn.Module, "load_state_dict", noting):
        yield found


def _check_filled(model: "nn.Module", architecture: str, missing: list[str]) -> None:
    """Refuse a model with tensors that its file lacks and that begin with random values.

    Without a classifier timm's loader passes over whatever is missing. A few of its files lack
    layers that begin as constants, such as the last normalisation of masked autoencoders.
    """
    own = model.state_dict()
    drawn = [name for name in missing if name not in own or own[name].unique().numel() > 1]
    if drawn:
        raise UserError(
            f"encoders: timm {_timm().__version__} has no published weights for {len(drawn)} "
            f"tensors of {architecture}, such as {', '.join(drawn[:4])}: this version of timm "
            "names them otherwise than the file. Install another version of timm."
        )
    if missing:
        log.warning(
            "%s: its file has no values for %s, which stay as timm begins them: all alike",
            architecture, ", ".join(missing[:8]),
        )  # fmt: skip


def _timm() -> ModuleType:
    """Import timm without torch's compiler, for which it has no use of its own."""
    with compiler_deferred():
        import timm
    return timm


def with_layers(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with layer classes in place of their names.

    A card stores the names. Only a few are allowed, and no text is evaluated.

    Raises:
        UserError: a name that is not allowed.
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
            raise UserError(f"encoders: {key}: {value!r} is not a supported layer ({legal}).")
        result[key] = layers[value]
    return result


def _published(architecture: str) -> "PretrainedCfg | None":
    """Return timm's configuration of an architecture's weights; None for a deprecated name."""
    timm = _timm()
    return timm.models.get_pretrained_cfg(architecture)


LIBRARY = Timm()
