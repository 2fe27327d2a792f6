"""Stage 1, tile: a segmenter's weights, from where they are published or a local file."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from her2.config import TilingSection
from her2.config.jobs import SegmenterSpec
from her2.core.errors import UserError
from her2.core.files import atomic_path
from her2.core.reading import path_problem
from her2.encoders.device import pick_device
from her2.encoders.fetching import checked_digest, fetch
from her2.encoders.loading import WEIGHTS_BYTES, load_weights
from her2.encoders.stage import weights_digest
from her2.segmenters import artefact_segmenter, chosen, segmenter
from her2.segmenters.base import Segmenter
from her2.tiling.segmentation import SegmenterNetwork
from her2.tiling.segmenter_card import (
    WEIGHTS_NAME,
    SegmenterCard,
    read_segmenter_card,
    write_segmenter_card,
)

log = logging.getLogger(__name__)


def fetch_segmenter(spec: SegmenterSpec, output: Path) -> SegmenterCard:
    """Write the folder of a segmenter; only this may need a network.

    Args:
        spec: the job's spec.
        output: folder for `weights.safetensors` and then `card.json`.

    Raises:
        UserError: the weights could not be fetched, are others than the pinned ones, do not fit
            the architecture, or their file is not safe to read.
    """
    published = (artefact_segmenter if spec.artefacts else segmenter)(spec.segmenter)
    network, card = _load(published, spec.weights, spec.sha256)
    state = {name: tensor.contiguous().clone() for name, tensor in network.state_dict().items()}
    with atomic_path(output / WEIGHTS_NAME) as temporary:
        safetensors.torch.save_file(state, temporary)
    write_segmenter_card(output, card)
    log.info(
        "segmenter %s: weights %s, licence %s", card.segmenter, card.weights_sha256, card.licence
    )
    return card


def networks_of(
    tiling: TilingSection, folders: Mapping[str, Path | None], *, threads: int
) -> dict[str, SegmenterNetwork]:
    """Return the networks that `tiling:` names, on the device of this process, by their keys.

    Args:
        tiling: the section.
        folders: key -> what `fetch_segmenter` has written; None or no such key: the weights are
            fetched.
        threads: number of CPU threads.

    Raises:
        UserError: the weights are not those of the folder's card, or as in `fetch_segmenter`.
    """
    found = {}
    for published in chosen(tiling):
        folder = folders.get(published.key)
        if folder is None:
            weights, sha256 = (
                getattr(tiling, key) for key in (published.path_key, published.digest_key)
            )
            network, card = _load(published, weights, sha256)
        else:
            network, card = _read(published, folder)
        found[published.key] = SegmenterNetwork(
            published, network, card.weights_sha256, pick_device(threads)
        )
    return found


def _load(
    published: Segmenter, path: Path | None, stated: str | None
) -> tuple[nn.Module, SegmenterCard]:
    """Build a segmenter with weights from a local file, or from where they are published."""
    network = published.build()  # first, because its library may be missing
    provenance: dict[str, Any] = {}
    if path is None:
        path = fetch(published)
        provenance = {"hub": published.hub, "revision": path.parent.name}
    elif problem := path_problem(path, limit_bytes=WEIGHTS_BYTES):
        raise UserError(f"tiling.{published.path_key}: {str(path)!r} {problem}.")
    provenance |= {"file": path.name, "sha256": checked_digest(path, published, stated)}
    if published.sha256 is None and stated is None:
        log.info(
            "%s: %s; its SHA-256 is %s, noted in the card and in every tile key",
            published.place, published.unpinned, provenance["sha256"],
        )  # fmt: skip
    provenance |= load_weights(network, path)
    return network, _card(published, network.state_dict(), provenance)


def _card(
    published: Segmenter, state: dict[str, Tensor], provenance: dict[str, Any]
) -> SegmenterCard:
    return SegmenterCard(
        segmenter=published.name,
        architecture=published.architecture,
        licence=published.licence,
        weights_sha256=weights_digest(state),
        provenance=provenance,
    )


def _read(published: Segmenter, folder: Path) -> tuple[nn.Module, SegmenterCard]:
    """Read a segmenter's folder.

    Raises:
        UserError: the weights are not those of the card.
    """
    card, path = read_segmenter_card(folder, published), folder / WEIGHTS_NAME
    again = "delete its folder and fetch the segmenter again"
    if problem := path_problem(path, limit_bytes=WEIGHTS_BYTES):
        raise UserError(f"{path}: {problem}; {again}.")
    try:
        state = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {again}.") from None
    if weights_digest(state) != card.weights_sha256:
        raise UserError(f"{path}: holds other weights than its card says; {again}.")
    network = published.build()
    network.load_state_dict(state)
    return network, card
