"""`her2 view`, layer: the tiles that the encoder saw."""

import numpy as np

from her2.tiling.picture import TILE
from her2.viewer.overlay.colours import hexadecimal
from her2.viewer.overlay.layer import Categories, Category, Layer, Painted, Seen
from her2.viewer.overlay.raster import cells_of


def make(seen: Seen) -> Painted:
    """Return all tiles in one colour, that of kept tiles in the QC pictures."""
    placed = seen.placed
    legend = Categories(
        "Tiles", [Category(hexadecimal(TILE), f"seen by {placed.encoder}", len(placed))]
    )
    return Painted(
        cells_of(placed.coords, placed.slide.level0_tile),
        np.zeros(len(placed), np.uint8),
        np.array([TILE], np.uint8),
        legend,
    )


LAYER = Layer(
    name="kept",
    title="Kept tiles",
    kind="image",
    order=10,
    make=make,
    opacity=0.4,
    options=frozenset({"model"}),
)
