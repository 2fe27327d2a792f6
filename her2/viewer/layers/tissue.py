"""`her2 view`, layer: the outline of the tissue that tiles were laid on."""

from her2.core.errors import UserError
from her2.tiling.picture import TISSUE
from her2.viewer.overlay.colours import hexadecimal
from her2.viewer.overlay.layer import Categories, Category, Layer, Outlined, Seen
from her2.viewer.overlay.outlines import of_mask


def make(seen: Seen) -> Outlined:
    """Return the pieces of tissue."""
    found = seen.retiled()
    colour = hexadecimal(TISSUE)
    features = of_mask(found.tissue, found.size_px, colour=colour, label="tissue")
    if not features:
        raise UserError("no tissue was found.")
    share = float(found.tissue.mean())
    rows = [Category(colour, f"tissue, {100 * share:.1f} % of the slide; pieces:", len(features))]
    return Outlined(features, Categories("Tissue", rows), note=found.differs or "")


LAYER = Layer(
    name="tissue",
    title="Tissue outline",
    kind="outline",
    order=50,
    make=make,
    opacity=1.0,
    options=frozenset({"model"}),
)
