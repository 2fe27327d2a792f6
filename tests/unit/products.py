"""Products of stage 1 for tests: an encoder's folder, and a feature store from arrays."""

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


def materialise(encoder: EncoderSection, seed: int, folder: Path) -> EncoderCard:
    return materialise_encoder(EncoderSpec(encoder=encoder, seed=seed), folder)


def write_store(
    path: Path, features: NDArray[Any], coords: NDArray[np.int32], attributes: Mapping[str, Any]
) -> None:
    write_rows(path, [features], features.shape, features.dtype, coords, lambda: attributes)
