"""Stage 1, tile: the quality-control picture of a slide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from her2.core.types import RGB, Mask
from her2.filters.base import Filter

SIDE_PX = 1024
TISSUE, TILE, REGION = (0, 150, 90), (40, 90, 200), (0, 0, 0)
"""RGB colours. Kept tiles share one; a rejected tile has its filter's colour and a cross."""
BROWN_WORDS = "brown: IHC?"
_WARNING = (200, 0, 0)


@dataclass(frozen=True, slots=True)
class Layers:
    """Masks (h, w) of a thumbnail: tissue, artefacts by filter, and annotated regions.

    `region` is None if the slide has no annotation.
    """

    tissue: Mask
    artefacts: Mapping[str, Mask]
    region: Mask | None


def draw(
    thumbnail: RGB,
    layers: Layers,
    tiles: NDArray[np.float64],
    rejected: Sequence[tuple[Filter, NDArray[np.float64]]],
    outlined: Sequence[Filter],
) -> RGB:
    """Draw the outlines of tissue, regions and artefacts, and all tiles with enough tissue.

    `thumbnail` (h, w, 3) and the masks of `layers` have one shape. Kept `tiles` are (n, 4) left,
    top, right, bottom in its px; `rejected` has the filter and box of each rejected tile. The
    artefacts of `outlined` filters are drawn in that order.
    """
    height, width = layers.tissue.shape
    factor = min(4.0, SIDE_PX / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    picture = cv2.resize(thumbnail, size, interpolation=interpolation).astype(np.uint8)
    for box in tiles:
        corner, opposite = _corners(box, factor)
        cv2.rectangle(picture, corner, opposite, TILE, 1)
    for one, box in rejected:
        corner, opposite = _corners(box, factor)
        cv2.rectangle(picture, corner, opposite, one.colour, 1)
        cv2.line(picture, corner, opposite, one.colour, 1)
        cv2.line(picture, (corner[0], opposite[1]), (opposite[0], corner[1]), one.colour, 1)
    outlines = [(layers.tissue, TISSUE)]
    outlines += [
        (layers.artefacts[o.name], o.colour) for o in outlined if o.name in layers.artefacts
    ]
    outlines += [(layers.region, REGION)] if layers.region is not None else []
    for mask, colour in outlines:
        large = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, colour, 2)
    return picture


def with_words(picture: RGB, words: str) -> RGB:
    """Return a picture in a red frame, with a few words (ASCII) on white in its top left corner."""
    framed = picture.copy()
    height, width = framed.shape[:2]
    scale = max(0.3, width / 1000)
    face, thick = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(2 * scale))
    (long, high), below = cv2.getTextSize(words, face, scale, thick)
    margin = round(12 * scale)
    cv2.rectangle(
        framed, (0, 0), (long + 2 * margin, high + below + 2 * margin), (255, 255, 255), cv2.FILLED
    )
    cv2.putText(framed, words, (margin, margin + high), face, scale, _WARNING, thick, cv2.LINE_AA)
    cv2.rectangle(framed, (0, 0), (width - 1, height - 1), _WARNING, max(2, round(8 * scale)))
    return framed


def _corners(box: NDArray[np.float64], factor: float) -> tuple[tuple[int, int], tuple[int, int]]:
    left, top, right, bottom = (round(float(value) * factor) for value in box)
    return (left, top), (max(left, right - 1), max(top, bottom - 1))
