"""`her2 view`, layer: borders of tiles, which the page draws where they are large enough."""

from her2.viewer.overlay.layer import Categories, Category, Gridded, Layer, Seen

_COLOUR = "#3a3a3a"


def make(seen: Seen) -> Gridded:
    """Return the tiles that the encoder saw."""
    placed = seen.placed
    width, height = placed.slide.level0_tile
    mpp, px = placed.target
    um = f" at {mpp:g} um/px" if mpp else ""
    words = f"{px} px{um}: {width:.6g} x {height:.6g} px of the slide"
    legend = Categories("Tile grid", [Category(_COLOUR, words, len(placed))])
    return Gridded(placed.coords, placed.slide.level0_tile, legend)


LAYER = Layer(
    name="grid",
    title="Tile grid",
    kind="grid",
    order=80,
    make=make,
    opacity=0.8,
    options=frozenset({"model"}),
)
