"""Stage 1, tile: a tissue segmenter's weights, from where they are published or a local file."""

import logging
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
from her2.segmenters import segmenter
from her2.tiling.segmentation import TissueNetwork
from her2.tiling.segmenter_card import (
    WEIGHTS_NAME,
    SegmenterCard,
    read_segmenter_card,
    write_segmenter_card,
)

log = logging.getLogger(__name__)


def fetch_segmenter(spec: SegmenterSpec, output: Path) -> SegmenterCard:
    """Write the folder of a tissue segmenter; only this may need a network.

    Args:
        spec: the job's spec.
        output: folder for `weights.safetensors` and then `card.json`.

    Raises:
        UserError: the weights could not be fetched, are others than the pinned ones, do not fit
            the architecture, or their file is not safe to read.
    """
    network, card = _load(spec.segmenter, spec.weights, spec.sha256)
    state = {name: tensor.contiguous().clone() for name, tensor in network.state_dict().items()}
    with atomic_path(output / WEIGHTS_NAME) as temporary:
        safetensors.torch.save_file(state, temporary)
    write_segmenter_card(output, card)
    log.info(
        "segmenter %s: weights %s, licence %s", card.segmenter, card.weights_sha256, card.licence
    )
    return card


def network_of(tiling: TilingSection, folder: Path | None, *, threads: int) -> TissueNetwork:
    """Return the network that `tiling.segmenter` names, on the device of this process.

    Args:
        tiling: the section; it names a segmenter.
        folder: what `fetch_segmenter` has written; None: the weights are fetched.
        threads: number of CPU threads.

    Raises:
        UserError: the weights are not those of the folder's card, or as in `fetch_segmenter`.
    """
    name = tiling.segmenter
    assert name is not None
    if folder is None:
        network, card = _load(name, tiling.segmenter_weights, tiling.segmenter_sha256)
    else:
        network, card = _read(name, folder)
    return TissueNetwork(segmenter(name), network, card.weights_sha256, pick_device(threads))


def _load(name: str, path: Path | None, stated: str | None) -> tuple[nn.Module, SegmenterCard]:
    """Build a segmenter with weights from a local file, or from where they are published."""
    published = segmenter(name)
    network = published.build()  # first, because its library may be missing
    provenance: dict[str, Any] = {}
    if path is None:
        path = fetch(published)
        provenance = {"hub": published.hub, "revision": path.parent.name}
    elif problem := path_problem(path, limit_bytes=WEIGHTS_BYTES):
        raise UserError(f"tiling.segmenter_weights: {str(path)!r} {problem}.")
    provenance |= {"file": path.name, "sha256": checked_digest(path, published, stated)}
    if published.sha256 is None and stated is None:
        log.info(
            "%s: %s; its SHA-256 is %s, noted in the card and in every tile key",
            published.place, published.unpinned, provenance["sha256"],
        )  # fmt: skip
    provenance |= load_weights(network, path)
    return network, _card(name, network.state_dict(), provenance)


def _card(name: str, state: dict[str, Tensor], provenance: dict[str, Any]) -> SegmenterCard:
    published = segmenter(name)
    return SegmenterCard(
        segmenter=name,
        architecture=published.architecture,
        licence=published.licence,
        weights_sha256=weights_digest(state),
        provenance=provenance,
    )


def _read(name: str, folder: Path) -> tuple[nn.Module, SegmenterCard]:
    """Read a segmenter's folder.

    Raises:
        UserError: the weights are not those of the card.
    """
    card, path = read_segmenter_card(folder, name), folder / WEIGHTS_NAME
    again = "delete its folder and fetch the segmenter again"
    if problem := path_problem(path, limit_bytes=WEIGHTS_BYTES):
        raise UserError(f"{path}: {problem}; {again}.")
    try:
        state = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {again}.") from None
    if weights_digest(state) != card.weights_sha256:
        raise UserError(f"{path}: holds other weights than its card says; {again}.")
    network = segmenter(name).build()
    network.load_state_dict(state)
    return network, card
