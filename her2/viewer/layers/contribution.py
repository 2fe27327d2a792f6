"""`her2 view`, layer: what each tile adds to the logit of a class, for additive heads."""

from her2.core.errors import UserError
from her2.viewer.overlay.attention import NO_CONTRIBUTIONS
from her2.viewer.overlay.colours import DIVERGING, colours_of, diverging
from her2.viewer.overlay.layer import Layer, Painted, Seen
from her2.viewer.overlay.raster import cells_of
from her2.viewer.run import PREDICTED, NotThereError


def make(seen: Seen) -> Painted:
    """Return the contributions to a class, or to the predicted one."""
    attended = seen.attended
    tiles, known = attended.tiles, attended.maps("contribution")
    if not known:
        if seen.asked.cohort.external is not None:
            raise UserError(f"{NO_CONTRIBUTIONS}.")
        if seen.asked.cohort.key == PREDICTED:
            raise UserError("predictions by a bundle have attention, and no contributions.")
        raise UserError("this head does not divide its logits among the tiles.")
    if seen.of_class is not None and seen.of_class not in known:
        raise NotThereError(f"there is no map of {seen.of_class}; there are {', '.join(known)}.")
    column = f"contribution_{seen.of_class}" if seen.of_class else tiles.shown
    column = column or f"contribution_{known[0]}"
    name = column.removeprefix("contribution_")
    levels, legend = diverging(tiles.maps[column], title=f"Contribution to {name}")
    cells = cells_of(tiles.coords, tiles.slide.level0_tile)
    return Painted(cells, levels, colours_of(DIVERGING), legend)


LAYER = Layer(
    name="contribution",
    title="Contribution to a class",
    kind="image",
    order=30,
    make=make,
    opacity=0.6,
    options=frozenset({"model", "run", "class"}),
)
