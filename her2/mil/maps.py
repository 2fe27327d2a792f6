"""Stage 2, after train: read the attention maps of a trained fold without torch."""

from pathlib import Path

import numpy as np
import safetensors
from numpy.typing import NDArray

from her2.core.errors import UserError, first_line
from her2.core.reading import MAKE_AGAIN

MAPS_NAME = "maps.safetensors"


def read_maps(folder: Path, slide_id: str) -> dict[str, NDArray[np.float32]]:
    """Read all maps that a fold stored for a held-out slide.

    Returns:
        `attention` (n, o): one map per output, each of which sums to one; `contribution` (n, o):
        the summand of each tile in each output. The card's `outputs` name the columns. Empty for a
        head with a single map, which is in `attention.parquet`.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / MAPS_NAME
    if not path.exists():
        return {}
    try:
        with safetensors.safe_open(path, framework="np") as stream:
            names = {name for name in stream.keys() if name.endswith(f"/{slide_id}")}  # noqa: SIM118
            return {name.partition("/")[0]: stream.get_tensor(name) for name in sorted(names)}
    except Exception as error:  # safetensors and numpy raise any type on what they did not write
        raise UserError(f"{path}: cannot be read ({first_line(error)}). {MAKE_AGAIN}") from None
