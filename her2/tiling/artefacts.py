"""Stage 1, tile: what lies on or in the tissue and is no tissue. Pure functions on arrays.

Pen, folds and the scanner's border are found on the thumbnail. Focus is not: a thumbnail of
8 um/px looks the same in and out of focus, so `blur_effect` judges a tile as it is read.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from her2.core.types import RGB, Mask
from her2.tiling.tissue import Density, drop_small

PEN_UM = 48.0
"""Ink specks narrower than this are left to the tiles' own share of pen, which is then 0."""
PEN_MARGIN_UM = 16.0
"""A stroke has a soft edge of about this width."""
BORDER_LEVEL = 40
"""Grey level (of 255) below which what touches the image's edge is the scanner's border."""
FOLD_WIDTH_UM = 160.0
"""A fold is narrower than this; tumour nests, vessels and muscle are mostly wider."""
FOLD_LENGTH_UM = 200.0
FOLD_MARGIN_UM = 32.0
_TRIES = 4
"""Tiles of a square that are tried when the first cannot be read."""
HAEMATOXYLIN_EOSIN = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11))
"""Optical densities in R, G, B. Source: Ruifrok and Johnston, 2001."""


def border_mask(thumbnail: RGB) -> Mask:
    """Black, and connected to the image's edge: glass that was not scanned."""
    red, green, blue = cv2.split(thumbnail)
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


def pen_mask(density: Density, *, mpp: float, border: Mask | None = None) -> Mask:
    """Felt pen and tissue ink: blue, green and teal by their colour, black by having none.

    Blue and green inks absorb red more than green, which no haematoxylin or eosin does. Over
    tissue the colours mix, so weaker signs count where they hang together with clear ones. Red
    ink has the colour of blood and of strong eosin, and is not looked for.

    Args:
        density: of the thumbnail, see `her2.tiling.tissue.optical_density`.
        mpp: um/px of the thumbnail.
        border: what is black without being ink; its smoothed edge is none either.
    """
    red, green, blue = cv2.split(density)
    clear = ((red >= 1.1 * green) & (red - blue >= 0.35)) | ((red >= 1.25 * green) & (red >= 0.3))
    weak = ((red >= 0.85 * green) & (red - blue >= 0.45)) | ((red >= 0.95 * green) & (red >= 0.6))
    least, most = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
    black = (least > 1.0) & (most - least < (0.4 / 3) * (red + green + blue))
    if border is not None:
        black &= ~_grown(border, 2 * PEN_MARGIN_UM / mpp)
    ink = _with_share_of(clear, clear | weak, 0.1) | black
    if not ink.any():
        return ink
    opened = cv2.morphologyEx(ink.astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    return _grown(drop_small(opened.astype(bool), (PEN_UM / mpp) ** 2), PEN_MARGIN_UM / mpp)


def fold_mask(density: Density, tissue: Mask, *, mpp: float) -> Mask:
    """Folds: narrow bands, clearly darker than the tissue on both sides in both stains.

    A doubled section doubles eosin as well as haematoxylin, which sets it apart from epithelium
    and lymphocytes, dark by haematoxylin alone. Glass at a tissue's edge does not count as a
    lighter side. Two levels, as in Kothari, Phan and Wang, J. Pathol. Inform. 4:22, 2013: clear
    folds, and around them what is a fold less clearly.

    Args:
        density: of the thumbnail.
        tissue: (h, w).
        mpp: um/px of the thumbnail.
    """
    inside = cv2.erode(tissue.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    if not inside.any():
        return np.zeros_like(tissue)
    eosin = np.linalg.pinv(np.array(HAEMATOXYLIN_EOSIN))[:, 1].astype(np.float32)
    total, stained = (
        _relative(cv2.GaussianBlur(np.maximum(values, 0), (0, 0), sigmaX=12.0 / mpp), inside)
        for values in (cv2.transform(density, np.full((1, 3), 1 / 3)), density @ eosin)
    )
    ridge, eosin_ridge = (_above_both_sides(values, inside, mpp) for values in (total, stained))
    weak = (ridge > 0.3) & (total > 1.2) & (eosin_ridge > 0.4)
    clear = (ridge > 0.6) & (total > 1.5) & (eosin_ridge > 0.7)
    if not clear.any():
        return clear
    return _long(weak & _grown(clear, FOLD_MARGIN_UM / mpp), FOLD_LENGTH_UM / mpp)


def blur_effect(tile: RGB) -> float:
    """Perceived blur, 0 (sharp) to 1: how little of the variation between neighbours a blur of 9 px
    takes away, on the worse axis. Contrast and stain hardly matter.

    Source: Crete, Dolmiere, Ladret and Nicolas, Proc. SPIE 6492, 2007.
    """
    grey = cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY).astype(np.float32)
    found = 0.0
    for axis, kernel in ((0, (1, 9)), (1, (9, 1))):
        blurred = cv2.blur(grey, kernel, borderType=cv2.BORDER_REFLECT)
        variation = np.abs(np.diff(grey, axis=axis))
        lost = np.maximum(0, variation - np.abs(np.diff(blurred, axis=axis)))
        whole = float(variation.sum())
        # An even surface has nothing that could be out of focus.
        found = max(found, (whole - float(lost.sum())) / whole if whole > 0 else 0.0)
    return found


def measure_blur(
    centres: NDArray[np.float64],
    step: float,
    limit: float,
    measure: Callable[[int], float],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Blur of every tile from few reads: one tile a square, all tiles where one is blurred.

    The tile nearest the centre of each square of side `step` is measured and speaks for the
    others. Where it is blurred, all of that square and the eight around it are measured, and so on
    outwards: the extent of a blurred area is known tile by tile, and sharp ones cost little. A
    blurred spot smaller than a square can be missed.

    Args:
        centres: (n, 2) of the tiles, any unit.
        step: side of a square in that unit.
        limit: above it a tile is blurred.
        measure: blur of a tile by its number; NaN where it cannot be read.

    Returns:
        Blur of each tile, and whether it was measured on that very tile.
    """
    blur = np.full(len(centres), np.nan, np.float32)
    measured = np.zeros(len(centres), bool)
    squares: dict[tuple[int, int], NDArray[np.int64]] = {}
    if len(centres):
        cells = np.floor(centres / step).astype(np.int64)
        unique, owners = np.unique(cells, axis=0, return_inverse=True)
        order = np.argsort(owners.ravel(), kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(owners.ravel()))[:-1])
        squares = {(int(x), int(y)): part for (x, y), part in zip(unique, parts, strict=True)}

    def look(tile: int) -> bool:
        if not measured[tile]:
            blur[tile], measured[tile] = measure(tile), True
        return bool(blur[tile] > limit)

    blurred = []
    for square, tiles in squares.items():
        distance = np.abs(centres[tiles] - (np.array(square) + 0.5) * step).sum(axis=1)
        for speaker in tiles[np.argsort(distance, kind="stable")][:_TRIES]:
            if look(int(speaker)):
                blurred.append(square)
            if np.isfinite(blur[speaker]):
                blur[tiles] = np.where(measured[tiles], blur[tiles], blur[speaker])
                break
    done: set[tuple[int, int]] = set()
    while blurred:
        x, y = blurred.pop()
        for square in ((x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
            if square in squares and square not in done:
                done.add(square)
                # Not any(): every tile of the square is to be measured.
                if sum([look(int(tile)) for tile in squares[square]]):
                    blurred.append(square)
    return blur, measured


def _with_share_of(clear: Mask, candidates: Mask, share: float) -> Mask:
    """The pieces of `candidates` of which at least `share` is `clear`."""
    if not clear.any():
        return np.zeros_like(candidates)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        candidates.astype(np.uint8), connectivity=8
    )
    keep = np.bincount(labels[clear], minlength=count) >= share * stats[:, cv2.CC_STAT_AREA]
    keep[0] = False
    kept: Mask = keep[labels]
    return kept


def _grown(mask: Mask, radius_px: float) -> Mask:
    side = 2 * round(radius_px) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)


def _relative(values: NDArray[Any], inside: Mask) -> NDArray[np.float32]:
    """Values as multiples of the tissue's median."""
    return np.asarray(values / max(1e-3, float(np.median(values[inside]))), np.float32)


def _above_both_sides(values: NDArray[np.float32], inside: Mask, mpp: float) -> NDArray[np.float32]:
    """White top-hat of `values` among tissue alone: what is outside it never lowers the ground."""
    side = 2 * round(FOLD_WIDTH_UM / mpp / 2) + 1
    kernel = np.ones((side, side), np.uint8)
    ground = cv2.erode(np.where(inside, values, np.float32(np.inf)), kernel)
    ground = cv2.dilate(np.where(np.isinf(ground), np.float32(-1), ground), kernel)
    result: NDArray[np.float32] = np.where(inside, values - np.minimum(ground, values), 0)
    return result


def _long(mask: Mask, length_px: float) -> Mask:
    """Pieces whose bounding box has a diagonal of at least `length_px`."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    diagonal = np.hypot(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT])
    keep = diagonal >= length_px
    keep[0] = False
    kept: Mask = keep[labels]
    return kept
