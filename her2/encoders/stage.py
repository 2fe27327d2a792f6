"""Stage 1, encoder: published, random or local weights -> `weights.safetensors` + `card.json`.

This is the only stage that may need a network. Later stages see only the folder.
"""

import hashlib
import logging
import pickle
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
import huggingface_hub.errors
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from her2.config import EncoderSection, Feature
from her2.config.catalogue import CatalogueRow, row, scale_warning
from her2.config.jobs import EncoderSpec
from her2.core.errors import UserError, problem_list
from her2.core.files import atomic_path, file_digest
from her2.core.sharing import check_readable
from her2.encoders.backbones import Encoder, build_backbone, default_arguments, normalisation
from her2.encoders.card import WEIGHTS_NAME, EncoderCard, read_card, write_card
from her2.encoders.weights import weights_for
from her2.libraries import NAMES
from her2.libraries import library as library_of

log = logging.getLogger(__name__)

_WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher", "student", "encoder")
T = TypeVar("T")
_ATTEMPTS = 3
_PREFIXES = ("module.", "backbone.", "model.", "encoder.", "_orig_mod.")


def materialise_encoder(spec: EncoderSpec, output: Path) -> EncoderCard:
    """Write the folder of an encoder that needs no training here.

    Args:
        spec: the job's spec; its seed is that of random weights.
        output: folder for `weights.safetensors` and then `card.json`.

    Raises:
        UserError: the architecture is unknown, the weights do not fit it or could not be fetched,
            or their file is not safe to read.
    """
    encoder = spec.encoder
    library, architecture = encoder.library, encoder.architecture
    known = row(encoder.model) if encoder.source == "catalogue" else None
    if known is not None:
        # Layers are given by name, since the card is JSON; build_backbone resolves them.
        size = {"img_size": encoder.size} if "img_size" in known.arguments else {}
        arguments = {**known.arguments, **size}
    else:
        arguments = default_arguments(
            library, architecture, feature=encoder.feature, size_px=encoder.size
        )
    torch.manual_seed(spec.seed)
    published = known.hub is None if known else encoder.source in NAMES
    try:
        build = partial(
            build_backbone,
            library,
            architecture,
            feature=encoder.feature,
            arguments=arguments,
            pretrained=published,
        )
        backbone = _retried(build) if published else build()
    except (OSError, RuntimeError) as error:
        if not published:
            raise
        raise UserError(
            f"encoders: the weights of {library}/{architecture} could not be fetched "
            f"({_first_line(error)}). This step needs a network; on a machine without one use "
            "`source: checkpoint` with a downloaded file."
        ) from None
    provenance: dict[str, Any] = {}
    path = encoder.local_weights()
    if known is not None and known.hub is not None:
        provenance = {"catalogue": known.name, "hub": known.hub}
        if path is None:
            path = fetch(known)
            provenance["revision"] = path.parent.name
    if path is not None:
        load_weights(backbone, path, known)
        provenance |= {"file": path.name, "sha256": file_digest(path)}
    elif encoder.source == "random":
        provenance = {"seed": spec.seed}
    mean, std = normalisation(encoder)
    if encoder.source == "checkpoint" and encoder.mean is None:
        log.info(
            "%s: `mean` and `std` are not set, so patches are normalised with those of the weights "
            "that %s publishes: %s, %s", path, library, mean, std,
        )  # fmt: skip
    state = {name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}
    licence = known.licence if known is not None else ""
    if encoder.source in NAMES:  # the weights come from the library
        licence = library_of(library).licence(architecture)
    card = EncoderCard(
        source=encoder.source,
        library=library,
        architecture=architecture,
        arguments=arguments,
        feature=encoder.feature,
        dimension=feature_dimension(backbone, encoder, mean, std),
        size=encoder.size,
        mpp=encoder.mpp,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        precision=encoder.precision,
        storage=encoder.storage,
        licence=licence,
        weights_sha256=weights_digest(state),
        provenance=provenance,
    )
    with atomic_path(output / WEIGHTS_NAME) as temporary:
        safetensors.torch.save_file({k: v.clone() for k, v in state.items()}, temporary)
    write_card(output, card)
    log.info("encoder %s/%s: %d features", library, architecture, card.dimension)
    if known is not None and (warning := scale_warning(known, encoder.mpp)):
        log.warning("%s", warning)
    return card


def load_encoder(folder: Path) -> tuple[Encoder, EncoderCard]:
    """Read an encoder's folder: the module in evaluation mode, on the CPU, and its card.

    Raises:
        UserError: the weights are not those of the card.
    """
    card = read_card(folder)
    path = folder / WEIGHTS_NAME
    check_readable(path)
    try:
        state = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); make the encoder again.") from None
    if weights_digest(state) != card.weights_sha256:
        raise UserError(f"{path}: holds other weights than its card says; make the encoder again.")
    feature: Feature = card.feature  # type: ignore[assignment]
    backbone = build_backbone(
        card.library, card.architecture, feature=feature, arguments=card.arguments
    )
    backbone.load_state_dict(state)
    encoder = Encoder(backbone, feature=feature, mean=card.mean, std=card.std)
    return encoder.eval().requires_grad_(False), card


def weights_digest(state: dict[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of names, types, shapes and values, in the order of the names."""
    result = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        result.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.numel():
            result.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()


def fetch(row: CatalogueRow) -> Path:
    """Return a row's weights file, from the Hugging Face hub or its cache on this machine.

    Raises:
        UserError: access has not been granted, or there is no network.
    """
    assert row.hub is not None
    assert row.file is not None
    try:
        hub, file = row.hub, row.file
        return Path(_retried(lambda: huggingface_hub.hf_hub_download(hub, file)))
    except huggingface_hub.errors.GatedRepoError:
        raise UserError(
            f"encoders: {row.name}: access to the weights must be requested. Request it at "
            f"{row.ask_at or row.card}, run `hf auth login` (or set HF_TOKEN), then rerun the same "
            "command."
        ) from None
    except OSError as error:
        raise UserError(
            f"encoders: {row.name}: {row.hub}/{row.file} could not be fetched "
            f"({_first_line(error)}). This step needs a network; on a machine without one set "
            f"`checkpoint: PATH` to a downloaded {row.file}."
        ) from None


def _retried(call: Callable[[], T]) -> T:
    """Call up to three times, a few seconds apart, because networks fail for moments."""
    for attempt in range(1, _ATTEMPTS):
        try:
            return call()
        except huggingface_hub.errors.GatedRepoError:
            raise
        except OSError as error:
            log.warning("attempt %d of %d failed: %s", attempt, _ATTEMPTS, _first_line(error))
            time.sleep(2**attempt)
    return call()


def load_weights(backbone: nn.Module, path: Path, row: CatalogueRow | None = None) -> None:
    """Load a backbone's weights from a local file; a classifier's weights in it are left out.

    The file is .safetensors, or a torch file that holds only tensors. The catalogue `row` of these
    weights tells how the file names its tensors.

    Raises:
        UserError: the file is unreadable, holds more than tensors, or belongs to another
            architecture (the first mismatches are named).
    """
    state = _read_tensors(path)
    if row is None or row.layout == "timm":
        state = _strip_prefixes(state, backbone)
    if row is not None:
        state = weights_for(row, state, backbone)
    expected = backbone.state_dict()
    problems = [f"{name}: missing" for name in expected if name not in state]
    problems += [
        f"{name}: shape {tuple(state[name].shape)}, the architecture has {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        raise problem_list(
            f"{path}: does not fit the architecture ({len(problems)} of {len(expected)} tensors)",
            problems,
            limit=8,
        )
    unused = sorted(set(state) - set(expected))
    if unused:
        log.warning("%s: %d tensors not used: %s", path, len(unused), ", ".join(unused[:8]))
    backbone.load_state_dict({name: state[name] for name in expected})


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds more than tensors ({_first_line(error)}), and code in a weights file "
            "is never run. Save its state_dict as .safetensors."
        ) from None
    except Exception as error:  # torch raises any type of error on bytes that are no weights
        raise UserError(f"{path}: is not a weights file ({_first_line(error)}).") from None
    while isinstance(values, dict):
        inner = next((values[n] for n in _WRAPPERS if isinstance(values.get(n), dict)), None)
        if inner is None:
            break
        values = inner
    if not isinstance(values, dict) or not any(isinstance(v, Tensor) for v in values.values()):
        raise UserError(f"{path}: holds no named tensors; save a state_dict.")
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _strip_prefixes(state: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Remove the prefixes, such as `module.`, that training wrappers put before every name."""
    expected = set(backbone.state_dict())
    while not expected & set(state):
        prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in state)), None)
        if prefix is None:
            break
        state = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    return state


def feature_dimension(
    backbone: nn.Module, encoder: EncoderSection, mean: tuple[float, ...], std: tuple[float, ...]
) -> int:
    """Return the number of features per patch, found by encoding a blank patch.

    Raises:
        UserError: the architecture does not take patches of this size.
    """
    module = Encoder(backbone, feature=encoder.feature, mean=mean, std=std).eval()
    blank = torch.zeros(1, encoder.size, encoder.size, 3, dtype=torch.uint8)
    try:
        with torch.inference_mode():
            return int(module(blank).shape[1])
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"encoders: {encoder.model} cannot take patches of {encoder.size} px "
            f"({_first_line(error)}); set `size` to a size that it supports."
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
