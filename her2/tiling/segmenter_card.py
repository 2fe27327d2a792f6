"""Stage 1, tile: the card of a segmenter's weights; reading it needs no torch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from her2.core.errors import UserError
from her2.core.files import write_json
from her2.core.reading import read_json
from her2.core.stamps import noted
from her2.segmenters.base import Segmenter

CARD_NAME = "card.json"
WEIGHTS_NAME = "weights.safetensors"


@dataclass(frozen=True, slots=True)
class SegmenterCard:
    """What the weights in a folder are.

    `weights_sha256` covers names, types, shapes and values, not the bytes of the file.
    `provenance` names the file that they are from and its digest.
    """

    segmenter: str
    architecture: str
    licence: str
    weights_sha256: str
    provenance: dict[str, Any]


_CARD = TypeAdapter(SegmenterCard)


def write_segmenter_card(folder: Path, card: SegmenterCard) -> None:
    """Write `card.json`; equal cards give equal bytes."""
    write_json(folder / CARD_NAME, asdict(card))


def read_segmenter_card(folder: Path, published: Segmenter) -> SegmenterCard:
    """Read the card of a folder, which has the weights of a published segmenter.

    Raises:
        UserError: there is no card, it is of another segmenter or architecture, or not valid.
    """
    path = folder / CARD_NAME
    try:
        card = _CARD.validate_python(read_json(noted(path)))
    except (UserError, ValueError) as error:
        why = str(error).removeprefix(f"{path}: ")
        raise UserError(
            f"{path}: is not a valid card of a segmenter ({why}); delete its folder and fetch the "
            "segmenter again."
        ) from None
    if (card.segmenter, card.architecture) != (published.name, published.architecture):
        raise UserError(
            f"{path}: is of {card.segmenter} ({card.architecture}), and tiling.{published.key} is "
            f"{published.name} ({published.architecture}); delete its folder and fetch the "
            "segmenter again."
        )
    return card
