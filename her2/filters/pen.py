"""Artefact filter: felt pen and tissue ink."""

from __future__ import annotations

from typing import TYPE_CHECKING

from her2.filters.base import AreaFilter, Where

if TYPE_CHECKING:
    from her2.core.types import Density, Mask

PEN_UM = 48.0
"""Ink specks narrower than this are ignored."""
PEN_MARGIN_UM = 16.0
"""A stroke has a soft edge of about this width."""


def pen_mask(density: Density, *, mpp: float, border: Mask | None = None) -> Mask:
    """Find felt pen and ink: blue, green and teal by their colour, black by its lack of colour.

    Blue and green inks absorb red more than green, which neither haematoxylin nor eosin does. Over
    tissue the colours mix, so weaker signs count if connected to clear ones. Red ink is not
    detected, because it has the colour of blood and strong eosin. Neither the black `border` (h, w)
    nor its blurred edge is ink.
    """
    import cv2
    import numpy as np

    from her2.core.masks import drop_small, grown, with_share_of

    red, green, blue = cv2.split(density)
    clear = ((red >= 1.1 * green) & (red - blue >= 0.35)) | ((red >= 1.25 * green) & (red >= 0.3))
    weak = ((red >= 0.85 * green) & (red - blue >= 0.45)) | ((red >= 0.95 * green) & (red >= 0.6))
    least, most = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
    black = (least > 1.0) & (most - least < (0.4 / 3) * (red + green + blue))
    if border is not None:
        black &= ~grown(border, 2 * PEN_MARGIN_UM / mpp)
    ink = with_share_of(clear, clear | weak, 0.1) | black
    if not ink.any():
        return ink
    opened = cv2.morphologyEx(ink.astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    return grown(drop_small(opened.astype(bool), (PEN_UM / mpp) ** 2), PEN_MARGIN_UM / mpp)


FILTER = AreaFilter(
    name="pen",
    limit=0.05,
    description="maximum share of a tile under pen marks or ink; 1: no tile is rejected",
    where=Where.OVER,
    find=lambda seen, _: pen_mask(seen.density, mpp=seen.mpp, border=seen.outside),
    colour=(230, 120, 0),
    legend="pen",
    methods="under pen",
    listing=10,
)
