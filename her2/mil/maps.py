"""Stage 2, after train: the maps of a trained fold, read without torch."""

from pathlib import Path

import numpy as np
import safetensors
from numpy.typing import NDArray

CARD_NAME = "card.json"
MAPS_NAME = "maps.safetensors"


def read_maps(folder: Path, slide_id: str) -> dict[str, NDArray[np.float32]]:
    """All maps that a fold stored of a held-out slide.

    Returns:
        `attention` (n, o): a map an output, each sums to one; `contribution` (n, o): what each
        tile adds to each output. The card's `outputs` name the columns. Empty for a head with one
        map, which is in `attention.parquet`.
    """
    path = folder / MAPS_NAME
    if not path.exists():
        return {}
    with safetensors.safe_open(path, framework="np") as stream:
        names = {name for name in stream.keys() if name.endswith(f"/{slide_id}")}  # noqa: SIM118
        return {name.partition("/")[0]: stream.get_tensor(name) for name in sorted(names)}
