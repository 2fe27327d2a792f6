"""Products for tests: an encoder's folder, a feature store from arrays, the card of a fold."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2.config import EncoderSection
from her2.config.jobs import EncoderSpec
from her2.encoders.card import EncoderCard
from her2.encoders.stage import materialise_encoder
from her2.storage.features import write_rows
from her2.storage.fold_files import CARD_NAME, write_fold_card


def materialise(encoder: EncoderSection, seed: int, folder: Path) -> EncoderCard:
    return materialise_encoder(EncoderSpec(encoder=encoder, seed=seed), folder)


def write_store(
    path: Path, features: NDArray[Any], coords: NDArray[np.int32], attributes: Mapping[str, Any]
) -> None:
    write_rows(path, [features], features.shape, features.dtype, coords, lambda: attributes)


def reseal(folder: Path, **changed: Any) -> None:
    """Give a fold's folder the card of its files as they are now, with some other values."""
    path = folder / CARD_NAME
    card = json.loads(path.read_text()) if path.exists() else {}
    path.unlink(missing_ok=True)
    rest = {name: value for name, value in card.items() if name not in ("files", "seal")}
    write_fold_card(folder, {**rest, **changed})
