"""`her2 view`, layer: tiles with enough tissue that an artefact filter rejected, by filter."""

import numpy as np

from her2.core.errors import UserError
from her2.filters.registry import LISTED
from her2.segmenters import class_filters
from her2.tiling.artefacts import KEPT
from her2.viewer.overlay.colours import hexadecimal
from her2.viewer.overlay.layer import Categories, Category, Layer, Painted, Seen
from her2.viewer.overlay.raster import cells_of

_NOT_DRAWN = (120, 120, 120)


def make(seen: Seen) -> Painted:
    """Return the rejected tiles in the colours of their filters."""
    found = seen.retiled()
    filters = found.found.filters
    # Levels are the numbers of filters, and one more stands for what `max_tiles` left out.
    levels = np.where(found.found.verdict == KEPT, len(filters), found.found.verdict)
    left_out = np.ones(len(levels), bool)
    left_out[found.drawn] = False
    if not left_out.any():
        note = f" ({found.differs})" if found.differs else ""
        raise UserError(f"no tile with enough tissue was rejected{note}.")
    counts = found.found.rejected
    rows = [
        Category(
            hexadecimal(one.colour),
            f"{one.legend}, more than {one.limit_key} {one.limit_in(found.tiling):g}",
            counts[one.name],
        )
        for one in (*LISTED, *class_filters(found.tiling))
        if counts[one.name]
    ]
    if spared := len(found.found.kept) - len(found.drawn):
        rows.append(Category(hexadecimal(_NOT_DRAWN), "kept, but not drawn (max_tiles)", spared))
    rows_of = np.flatnonzero(left_out)
    size = (found.grid.level0_width, found.grid.level0_height)
    return Painted(
        cells_of(found.coords[rows_of], size),
        levels[rows_of].astype(np.uint8),
        np.array([*(one.colour for one in filters), _NOT_DRAWN], np.uint8),
        Categories("Rejected tiles", rows, "A tile with several faults counts under the first."),
        note=found.differs or "",
    )


LAYER = Layer(
    name="rejected",
    title="Rejected tiles",
    kind="image",
    order=20,
    make=make,
    opacity=0.7,
    options=frozenset({"model"}),
)
