"""`her2 view`: areas as GeoJSON polygons in level-0 px, from masks and from regions of files."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from her2.core.types import Mask
from her2.slides.annotations import Region, Ring

_FINER = 4
"""OpenCV's outlines run through the middle of px, so masks are enlarged before; 1/8 px is left."""
_MOST_PX = 1 << 26
_SIMPLIFIED_PX = 0.5
"""Largest distance of a simplified outline from the mask's, in px of the mask."""

Feature = Mapping[str, Any]


def feature(rings: Iterable[Sequence[Sequence[float]]], **properties: object) -> Feature:
    """Return a polygon, its outline and then its holes, as a GeoJSON feature."""
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": list(rings)},
        "properties": properties,
    }


def of_mask(mask: Mask, size_px: tuple[int, int], **properties: object) -> list[Feature]:
    """Return the pieces of a mask (h, w) that covers a slide of `size_px` (width, height)."""
    factor = _FINER
    while factor > 1 and mask.size * factor**2 > _MOST_PX:
        factor //= 2
    if not mask.any():
        return []
    fine = np.repeat(np.repeat(mask.astype(np.uint8), factor, axis=0), factor, axis=1)
    found, tree = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    to_level0 = np.array(size_px) / np.array(fine.shape[::-1])
    rings = [_ring(np.asarray(contour, np.int32), factor, to_level0) for contour in found]
    features = []
    for number, (_, _, child, parent) in enumerate(tree[0].tolist()):
        if parent >= 0 or len(rings[number]) < 4:
            continue
        holes = []
        while child >= 0:
            holes += [rings[child]] if len(rings[child]) >= 4 else []
            child = int(tree[0][child][0])
        features.append(feature([rings[number], *holes], **properties))
    return features


def _ring(
    contour: NDArray[np.int32], factor: int, to_level0: NDArray[np.float64]
) -> list[list[float]]:
    """Return a closed ring of level-0 px from a contour in px of the enlarged mask."""
    simple = cv2.approxPolyDP(contour, _SIMPLIFIED_PX * factor, True)[:, 0, :]
    points = np.round((simple + 0.5) * to_level0, 1).tolist()
    return [*points, points[0]] if points else []


def of_regions(
    regions: Sequence[Region],
    properties: Sequence[Mapping[str, object]],
    origin_px: tuple[float, float],
) -> list[Feature]:
    """Return regions that count from `origin_px`, each with its properties."""
    return [
        feature((_closed(ring + np.array(origin_px)) for ring in region.rings), **own)
        for region, own in zip(regions, properties, strict=True)
    ]


def _closed(ring: Ring) -> list[list[float]]:
    points: list[list[float]] = np.round(ring, 1).tolist()
    return points if points[0] == points[-1] else [*points, points[0]]
