"""Artefact filter: lack of focus.

A thumbnail of 8 um/px looks the same in and out of focus, so the filter reads tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from her2.core.errors import TileError
from her2.filters.base import Measured, Option, Options, TileFilter, Tiles

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from her2.core.types import RGB

_TRIES = 4
"""Number of tiles tried per square if the first cannot be read."""
_FINEST_MPP = 0.5
"""At a finer um/px, the optics limit sharpness, so that all tiles would look blurred."""
_LEAST_SIDE_PX = 16


def blur_effect(tile: RGB) -> float:
    """Measure perceived blur, 0 (sharp) to 1.

    The measure is the share of the variation between neighbouring px that remains after a blur of
    9 px, on the worse axis. It hardly depends on contrast and stain.

    Source: Crete, Dolmiere, Ladret and Nicolas, Proc. SPIE 6492, 2007.
    """
    import cv2
    import numpy as np

    grey = cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY).astype(np.float32)
    found = 0.0
    for axis, kernel in ((0, (1, 9)), (1, (9, 1))):
        blurred = cv2.blur(grey, kernel, borderType=cv2.BORDER_REFLECT)
        variation = np.abs(np.diff(grey, axis=axis))
        lost = np.maximum(0, variation - np.abs(np.diff(blurred, axis=axis)))
        whole = float(variation.sum())
        # A uniform surface cannot be out of focus.
        found = max(found, (whole - float(lost.sum())) / whole if whole > 0 else 0.0)
    return found


def measure_blur(
    centres: NDArray[np.float64],
    step: float,
    limit: float,
    measure: Callable[[int], float],
) -> Measured:
    """Measure blur with few reads: one tile per square, and every tile near blurred ones.

    The tile nearest the centre of each square of side `step` is measured and represents the others.
    If it is blurred (above `limit`), all tiles of that square and its eight neighbours are
    measured, and so on outwards. So a blurred area is measured tile by tile, and sharp areas cost
    little. A blurred spot smaller than a square can be missed.

    `centres` (n, 2) are in the unit of `step`. `measure` returns a tile's blur by its number, or
    NaN if it cannot be read.
    """
    import numpy as np

    blur = np.full(len(centres), np.nan, np.float32)
    measured = np.zeros(len(centres), bool)
    squares: dict[tuple[int, int], NDArray[np.int64]] = {}
    if len(centres):
        cells = np.floor(centres / step).astype(np.int64)
        unique, owners = np.unique(cells, axis=0, return_inverse=True)
        order = np.argsort(owners.ravel(), kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(owners.ravel()))[:-1])
        squares = {(int(x), int(y)): part for (x, y), part in zip(unique, parts, strict=True)}

    def is_blurred(tile: int) -> bool:
        if not measured[tile]:
            blur[tile], measured[tile] = measure(tile), True
        return bool(blur[tile] > limit)

    blurred = []
    for square, tiles in squares.items():
        distance = np.abs(centres[tiles] - (np.array(square) + 0.5) * step).sum(axis=1)
        for nearest in tiles[np.argsort(distance, kind="stable")][:_TRIES]:
            if is_blurred(int(nearest)):
                blurred.append(square)
            if np.isfinite(blur[nearest]):
                blur[tiles] = np.where(measured[tiles], blur[tiles], blur[nearest])
                break
    done: set[tuple[int, int]] = set()
    while blurred:
        x, y = blurred.pop()
        for square in ((x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
            if square in squares and square not in done:
                done.add(square)
                # Not any(), because every tile of the square must be measured.
                if sum([is_blurred(int(tile)) for tile in squares[square]]):
                    blurred.append(square)
    return Measured(blur, measured)


def _measure(tiles: Tiles, options: Options) -> Measured:
    side_px = max(_LEAST_SIDE_PX, round(tiles.size_px * min(1.0, tiles.mpp / _FINEST_MPP)))

    def measure(tile: int) -> float:
        try:
            return blur_effect(tiles.read(tile, side_px))
        except TileError:
            return math.nan  # embedding reads it again and counts it as failed

    step_um = max(options["blur_step_um"], tiles.spacing_um / 2)
    return measure_blur(tiles.centres_um, step_um, options["max_blur"], measure)


def _methods(options: Options) -> str:
    step_um = options["blur_step_um"]
    where = (
        f"on one tile per square of {step_um:g} um and around blurred ones"
        if step_um
        else "on every tile"
    )
    return (
        f"its perceived blur (Crete et al. 2007, measured {where}) was at most "
        f"{options['max_blur']:g}"
    )


FILTER = TileFilter(
    name="blur",
    limit=0.65,
    description="maximum perceived blur of a tile (Crete 2007; sharp tiles have 0.2 to 0.5, tiles "
    "out of focus 0.7 or more); 1: blur is not measured, so tiles are not read twice",
    options={
        "blur_step_um": Option(
            500.0,
            "blur is measured on one tile per square of this side (um), and on every tile in and "
            "around blurred squares; 0: on every tile",
        )
    },
    measure=_measure,
    colour=(240, 200, 0),
    legend="out of focus",
    methods=_methods,
    references={"Crete et al. 2007": "SPIE 6492"},
    listing=40,
)
