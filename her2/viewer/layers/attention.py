"""`her2 view`, layer: the attention of a model to each tile."""

import numpy as np

from her2.explanation.tiles import UNIFORM, ranks
from her2.viewer.overlay.colours import SEQUENTIAL, colours_of, sequential
from her2.viewer.overlay.layer import Layer, Painted, Seen
from her2.viewer.overlay.raster import cells_of
from her2.viewer.run import NotThereError


def make(seen: Seen) -> Painted:
    """Return attention by its rank or as a multiple of even attention."""
    attended = seen.attended
    tiles, maps = attended.tiles, attended.maps("attention")
    values, title = tiles.attention, "Attention"
    if maps and seen.of_class is not None:
        if seen.of_class not in maps:
            raise NotThereError(f"there is no map of {seen.of_class}; there are {', '.join(maps)}.")
        values, title = tiles.maps[f"attention_{seen.of_class}"], f"Attention, {seen.of_class}"
    elif maps:
        title = f"Attention, map of the predicted class {tiles.predicted}"
    times = np.asarray(values * np.float32(len(tiles)), np.float32)
    levels, legend = sequential(times, ranks(values), seen.scale, title=title)
    return Painted(
        cells_of(tiles.coords, tiles.slide.level0_tile),
        levels,
        colours_of(SEQUENTIAL),
        legend,
        note=UNIFORM if tiles.uniform else "",
    )


LAYER = Layer(
    name="attention",
    title="Attention",
    kind="image",
    order=40,
    make=make,
    opacity=0.6,
    shown=True,
    options=frozenset({"model", "run", "class", "scale"}),
)
