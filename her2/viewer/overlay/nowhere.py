"""`her2 view`: why there is no tile at a place of a slide, as far as it is known."""

import numpy as np

from her2.tiling.artefacts import KEPT
from her2.viewer.overlay.layer import Seen
from her2.viewer.overlay.retiling import Retiled, Retiling


def why_no_tile(seen: Seen, x: float, y: float) -> str:
    """Return in words why no tile is at a place in level-0 px.

    It is known once the slide was tiled again for a layer.
    """
    one = seen.asked
    found = one.viewer.part(Retiling).known(one.cohort, one.slide_id, seen.grid)
    if found is None:
        return (
            "No tile is here. Switch on the layer of tissue or of rejected tiles and click again "
            "to read why."
        )
    rejected = _rejected(found, x, y)
    return rejected or _little_tissue(found, x, y)


def _rejected(found: Retiled, x: float, y: float) -> str | None:
    """Return why a tile with enough tissue is not among those that the encoder saw."""
    width, height = found.grid.level0_width, found.grid.level0_height
    away = np.array([x, y]) - found.coords
    inside = np.flatnonzero(((away >= 0) & (away < np.array([width, height]))).all(axis=1))
    if not len(inside):
        return None
    row = inside[0]
    verdict = int(found.found.verdict[row])
    if verdict == KEPT:
        return (
            "Tiling keeps this tile, but the encoder did not see it: it was not drawn "
            "(tiling.max_tiles), or could not be read."
        )
    one = found.found.filters[verdict]
    value, limit = float(found.found.values[one.name][row]), one.limit_in(found.tiling)
    return f"Rejected for {one.legend}: {value:.2g}, more than tiling.{one.limit_key} {limit:g}."


def _little_tissue(found: Retiled, x: float, y: float) -> str:
    """Return how much tissue the place of the grid has, which is not enough."""
    box = []
    for at, side, length in zip(
        (x, y), (found.grid.level0_width, found.grid.level0_height), found.size_px, strict=True
    ):
        stride = side * (1 - found.tiling.overlap)
        start = np.floor(np.floor(at / stride) * stride + 1e-9)
        if not (0 <= at < length and start + side <= length + 1e-6):
            return "No tile of the grid is here: it would reach beyond the slide."
        box.append((float(start), float(start) + side))
    share = found.tissue_of((box[0][0], box[1][0], box[0][1], box[1][1]))
    return (
        f"Not tissue: {100 * share:.0f} % of this place of the grid is tissue, less than "
        f"tiling.min_tissue {found.tiling.min_tissue:g}."
    )
