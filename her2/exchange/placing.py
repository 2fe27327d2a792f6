"""Features of other programs: where their tiles are on the slide, and how large.

Programs tell different parts of it. TRIDENT has positions and the side of a tile in level-0 px, but
no um/px; STAMP has both in um, but no px of the slide; CLAM has positions alone. What is missing
comes from the slide, the manifest and the config, and what nobody tells stays unknown.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from her2.core.errors import SlideUnfit
from her2.exchange.given import Given

FEATURES = "features"
"""The source of a um/px that follows from what the features are said to be."""
DOUBTFUL = 1.1
"""Ratio of um/px as said and as the slide has it, from which it is doubtful: programs that go by
nominal magnifications are off by less."""
WRONG = 1.5
"""Ratio from which the features are not what they are said to be, as 20x is not 40x."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of a slide besides its features.

    `fingerprint` and `checksum` are those of the slide's files, None of an absent slide. `mpp` is
    (x, y) in um per level-0 px, `mpp_source` where it comes from.
    """

    fingerprint: str | None = None
    checksum: str | None = None
    vendor: str | None = None
    size_px: tuple[int, int] | None = None
    mpp: tuple[float, float] | None = None
    mpp_source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where the tiles of a slide are, as far as it is known.

    Attributes:
        coords: int32 (n, 2), top left x and y in level-0 px; zeros where positions are not known.
        positions: whether they are.
        level0_tile: (width, height) of a tile in level-0 px.
        mpp: (x, y), um per level-0 px; with its source.
        size_px: (width, height) of the slide in level-0 px.
        target: um/px and px of a tile as the encoder saw it.
        cautions: what may be wrong and stops nothing.
    """

    coords: NDArray[np.int32]
    positions: bool
    level0_tile: tuple[float, float] | None
    mpp: tuple[float, float] | None
    mpp_source: str | None
    size_px: tuple[int, int] | None
    target_mpp: float | None
    target_px: int | None
    cautions: tuple[str, ...] = ()


def place(given: Given, known: Known, *, mpp: float | None, size: int | None) -> Placed:
    """Return where the tiles of a file are.

    Args:
        given: the file.
        known: what is known of the slide.
        mpp: um/px of the patches, as the config says.
        size: px per side of the patches, as the config says.

    Raises:
        SlideUnfit: what is said contradicts the file or the slide.
    """
    size_px = known.size_px or given.size_px
    if given.level == "slide":
        return Placed(
            coords=np.zeros((given.rows, 2), np.int32),
            positions=False,
            level0_tile=None,
            mpp=known.mpp,
            mpp_source=known.mpp_source,
            size_px=size_px,
            target_mpp=mpp,
            target_px=size,
        )
    px, target_mpp = _target(given, mpp, size)
    cautions: list[str] = []
    scale, source = known.mpp, known.mpp_source
    tile: tuple[float, float] | None = None
    if given.unit == "um":
        if scale is not None and given.tile is not None:
            tile = given.tile / scale[0], given.tile / scale[1]
    elif given.tile is not None:
        tile = float(given.tile), float(given.tile)
        if scale is not None:
            cautions += _compared(given.tile, scale, target_mpp, px)
        elif target_mpp is not None and px is not None:
            scale, source = (target_mpp * px / given.tile,) * 2, FEATURES
    elif scale is not None and target_mpp is not None and px is not None:
        tile = target_mpp * px / scale[0], target_mpp * px / scale[1]
    coords = _level0(given, scale)
    if coords is None and given.coords is not None:
        cautions.append(
            "its coordinates are in um and the slide's um/px is not known, so they are left out; "
            "enter it in the manifest's column 'mpp', or the slide's path"
        )
    return Placed(
        coords=np.zeros((given.rows, 2), np.int32) if coords is None else coords,
        positions=coords is not None,
        level0_tile=None if coords is None else tile,
        mpp=scale,
        mpp_source=source,
        size_px=size_px,
        target_mpp=target_mpp,
        target_px=px,
        cautions=tuple(cautions),
    )


def _target(given: Given, mpp: float | None, size: int | None) -> tuple[int | None, float | None]:
    """Return px and um/px of the patches, as the file or else the config says."""
    if None not in (given.tile_px, size) and given.tile_px != size:
        raise SlideUnfit(
            f"its tiles have {given.tile_px} px per side, not the encoder's `size` {size}; correct "
            "`size`, or leave it out"
        )
    px = given.tile_px or size
    own = None
    if given.unit == "um" and given.tile is not None and px is not None:
        own = given.tile / px
    if own is not None and mpp is not None and not 1 / 1.02 <= own / mpp <= 1.02:
        raise SlideUnfit(
            f"its tiles have {given.tile:g} um and {px} px, so {own:.4g} um/px, not the encoder's "
            f"`mpp` {mpp:g}; correct `mpp`, or leave it out"
        )
    return px, mpp if mpp is not None else own


def _compared(
    tile: float, scale: tuple[float, float], mpp: float | None, px: int | None
) -> Iterator[str]:
    """Yield a caution where the slide's um/px gives the tiles another one than is said."""
    if mpp is None or px is None:
        return
    own = tile * (scale[0] * scale[1]) ** 0.5 / px
    ratio = max(own / mpp, mpp / own)
    words = (
        f"its tiles of {tile:g} level-0 px have {own:.4g} um/px by the slide's um/px "
        f"({scale[0]:.4g}), and {mpp:g} by the encoder's `mpp`"
    )
    if ratio >= WRONG:
        raise SlideUnfit(
            f"{words}: these are features of another slide or magnification, or `mpp`, `size` or "
            "the slide's um/px is wrong; correct it"
        )
    if ratio > DOUBTFUL:
        yield f"{words}; the slide's counts"


def _level0(given: Given, scale: tuple[float, float] | None) -> NDArray[np.int32] | None:
    """Return the positions in level-0 px, None where they are not known."""
    if given.coords is None or (given.unit == "um" and scale is None):
        return None
    coords = np.asarray(given.coords, np.float64).reshape(-1, 2)
    if given.unit == "um" and scale is not None:
        coords = coords / np.array(scale)
    return np.rint(coords).astype(np.int32)
