"""Artefact filter: the scanner's black border."""

from __future__ import annotations

from typing import TYPE_CHECKING

from her2.filters.base import AreaFilter, Options, Thumbnail, Where

if TYPE_CHECKING:
    from her2.core.types import RGB, Mask

BORDER_LEVEL = 40
"""Grey level (of 255) below which px connected to the image's edge are the scanner's border."""


def border_mask(rgb: RGB) -> Mask:
    """Find black areas connected to the image's edge, which is glass that was not scanned."""
    import cv2
    import numpy as np

    red, green, blue = cv2.split(rgb)
    dark = (cv2.max(cv2.max(red, green), blue) < BORDER_LEVEL).astype(np.uint8)
    if not dark.any():
        return dark.astype(bool)
    _, labels = cv2.connectedComponents(dark, connectivity=8)
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    touching = np.zeros(int(labels.max()) + 1, bool)
    touching[edge] = True
    touching[0] = False
    found: Mask = touching[labels]
    return found


def _find(thumbnail: Thumbnail, _: Options) -> Mask:
    return border_mask(thumbnail.rgb)


FILTER = AreaFilter(
    name="border",
    limit=0.05,
    description="maximum share of a tile in the scanner's black border; 1: no tile is rejected",
    where=Where.OUTSIDE,
    find=_find,
    colour=(120, 120, 120),
    legend="black border",
    methods="in the scanner's border",
    listing=30,
)
