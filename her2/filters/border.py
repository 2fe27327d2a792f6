"""Artefact filter: the scanner's black border."""

from __future__ import annotations

from typing import TYPE_CHECKING

from her2.filters.base import AreaFilter, Where

if TYPE_CHECKING:
    from her2.core.types import RGB, Mask

BORDER_LEVEL = 40
"""Grey level (of 255) below which px connected to the image's edge are the scanner's border."""


def border_mask(rgb: RGB) -> Mask:
    """Find black areas connected to the image's edge, which is glass that was not scanned."""
    import cv2
    import numpy as np

    from her2.core.masks import at_the_edge

    red, green, blue = cv2.split(rgb)
    return at_the_edge(np.asarray(cv2.max(cv2.max(red, green), blue) < BORDER_LEVEL))


FILTER = AreaFilter(
    name="border",
    limit=0.05,
    description="maximum share of a tile in the scanner's black border; 1: no tile is rejected",
    where=Where.OUTSIDE,
    find=lambda thumbnail, _: border_mask(thumbnail.rgb),
    colour=(120, 120, 120),
    legend="black border",
    methods="in the scanner's border",
    listing=30,
)
