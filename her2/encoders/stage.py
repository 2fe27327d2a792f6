"""Stage 1, encoder: published, random or local weights -> `weights.safetensors` + `card.json`.

This is the only stage that may need a network. Later stages see only the folder.
"""

import hashlib
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from her2.config import EncoderSection, Feature
from her2.config.catalogue import CatalogueRow, row, scale_warning
from her2.config.jobs import EncoderSpec
from her2.core.errors import UserError, first_line
from her2.core.files import atomic_path
from her2.core.reading import path_problem
from her2.core.sharing import check_readable
from her2.core.types import Normalisation
from her2.encoders.backbones import (
    Encoder,
    build_backbone,
    default_arguments,
    normalisation,
    with_published,
)
from her2.encoders.card import CARD_NAME, CODE, WEIGHTS_NAME, EncoderCard, read_card, write_card
from her2.encoders.code import (
    built,
    checked_dimension,
    code_place,
    own_tensors,
    read_code,
    rebuilt,
)
from her2.encoders.fetching import checked_digest, fetch, retried
from her2.encoders.loading import WEIGHTS_BYTES, load_weights
from her2.libraries import NAMES
from her2.libraries import library as library_of

log = logging.getLogger(__name__)


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
    if encoder.source == "python":
        return _materialise_code(spec, output)
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
    provenance: dict[str, Any] = {}
    path = encoder.local_weights()
    if known is not None:
        provenance = {"catalogue": known.name}
        if known.hub is not None:
            provenance["hub"] = known.hub
            if path is None:
                path = fetch(known)
                provenance["revision"] = path.parent.name
    elif encoder.source == "random":
        provenance = {"seed": spec.seed}
    converted = None
    if path is None and known is not None:
        path = _fetched_by_library(known)
    if path is not None:
        digest = checked_digest(path, known, encoder.sha256)
        provenance |= {"file": path.name, "sha256": digest}
        if known is not None and known.by_library and known.pins(digest):
            converted = library_of(library).converted
    torch.manual_seed(spec.seed)
    build = partial(
        build_backbone, library, architecture, feature=encoder.feature, arguments=arguments
    )
    if encoder.source in NAMES:
        backbone = with_published(
            partial(build, pretrained=True), library, architecture,
            otherwise="This step needs a network; on a machine without one use `source: "
            "checkpoint` with a downloaded file.",
        )  # fmt: skip
    else:
        backbone = build()
        if path is not None:
            provenance |= load_weights(backbone, path, known, converted=converted)
    mean, std = normalisation(encoder)
    if encoder.source == "checkpoint" and encoder.mean is None:
        log.info(
            "%s: `mean` and `std` are not set, so patches are normalised with those of the weights "
            "that %s publishes: %s, %s", path, library, mean, std,
        )  # fmt: skip
    licence = known.licence if known is not None else ""
    if encoder.source in NAMES:  # the weights come from the library
        licence = library_of(library).licence(architecture)
    card = _write(
        output,
        encoder,
        backbone.state_dict(),
        arguments=arguments,
        dimension=feature_dimension(backbone, encoder, mean, std),
        normalised_by=(mean, std),
        licence=licence,
        provenance=provenance,
    )
    if known is not None and (warning := scale_warning(known, encoder.mpp)):
        log.warning("%s", warning)
    return card


def _materialise_code(spec: EncoderSpec, output: Path) -> EncoderCard:
    """Write the folder of an encoder that a function of the user builds."""
    encoder = spec.encoder
    path = encoder.local_weights()
    assert path is not None
    assert encoder.mean is not None
    assert encoder.std is not None
    code = read_code(path, encoder.architecture)
    torch.manual_seed(spec.seed)
    backbone = built(code)
    state = own_tensors(code, backbone)
    return _write(
        output,
        encoder,
        state,
        arguments={"code_sha256": code.sha256},
        dimension=checked_dimension(code, backbone, encoder),
        normalised_by=(encoder.mean, encoder.std),
        licence="",
        provenance={"code": code_place(path, output)},
    )


def _write(
    output: Path,
    encoder: EncoderSection,
    state: Mapping[str, Tensor],
    *,
    arguments: dict[str, Any],
    dimension: int,
    normalised_by: Normalisation,
    licence: str,
    provenance: dict[str, Any],
) -> EncoderCard:
    """Write an encoder's weights and card."""
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    mean, std = normalised_by
    card = EncoderCard(
        source=encoder.source,
        library=encoder.library,
        architecture=encoder.architecture,
        arguments=arguments,
        feature=encoder.feature,
        dimension=dimension,
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
    log.info("encoder %s/%s: %d features", card.library, card.architecture, card.dimension)
    return card


def _fetched_by_library(known: CatalogueRow) -> Path:
    """Return the file of a row that is in no hub.

    Raises:
        UserError: it could not be fetched.
    """
    found = library_of(known.library)
    try:
        path = retried(partial(found.fetch, known.architecture))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{known.place}: the weights of {known.library}/{known.architecture} could not be "
            f"fetched ({first_line(error)}). This step needs a network; on a machine without one "
            f"set `{known.path_key}: PATH` to the downloaded file {known.section}."
        ) from None
    assert path is not None, f"{known.library} names no file of {known.architecture}"
    return path


def read_encoder(folder: Path) -> tuple[Encoder, EncoderCard]:
    """Read an encoder's folder: the module in evaluation mode, on the CPU, and its card.

    Raises:
        UserError: the weights are not those of the card.
    """
    card = read_card(folder)
    if card.mean is None or card.std is None:
        raise UserError(
            f"{folder}: its features were computed elsewhere ({card.architecture}), so there are "
            "no weights to run."
        )
    path = folder / WEIGHTS_NAME
    check_readable(path)
    if problem := path_problem(path, limit_bytes=WEIGHTS_BYTES):
        raise UserError(f"{path}: {problem}; make the encoder again.")
    try:
        state = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); make the encoder again.") from None
    if weights_digest(state) != card.weights_sha256:
        raise UserError(f"{path}: holds other weights than its card says; make the encoder again.")
    feature: Feature = card.feature  # type: ignore[assignment]
    try:
        if card.library == CODE:
            backbone = rebuilt(folder, card, state)
        else:
            backbone = build_backbone(
                card.library, card.architecture, feature=feature, arguments=card.arguments
            )
            backbone.load_state_dict(state)
    except UserError:
        raise
    except Exception as error:  # of an architecture with arguments of somebody else
        raise UserError(
            f"{folder / CARD_NAME}: describes no encoder of {card.library} "
            f"({first_line(error)}); make the encoder again."
        ) from None
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
            f"({first_line(error)}); set `size` to a size that it supports."
        ) from None
