"""`her2 view`: colours of numbers and classes that colour-blind readers can tell apart."""

import functools

import numpy as np
from numpy.typing import NDArray

from her2.core.plot_style import PALETTE
from her2.viewer.overlay.layer import Bar, Scale, Tick
from her2.viewer.overlay.raster import LEVELS, levels_of

SEQUENTIAL, DIVERGING = "viridis", "PuOr_r"
"""Both keep their order for colour-blind readers; orange is for, purple against, the class."""
_STEPS = 11
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
_SATURATED = 0.99
"""Colours saturate beyond this quantile, or one tile would turn all others pale."""


@functools.cache
def colours_of(name: str) -> NDArray[np.uint8]:
    """Return the colours (255, 3) of a colour map of matplotlib, low to high."""
    import matplotlib as mpl  # slow to import, and asked for after a slide is there

    return np.asarray(mpl.colormaps[name](np.linspace(0, 1, LEVELS), bytes=True)[:, :3], np.uint8)


def hexadecimal(rgb: tuple[int, int, int]) -> str:
    """Return a colour as pages write it."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def of_class(number: int) -> str:
    """Return the colour of a class by its number; they repeat after six, without black."""
    return PALETTE[number % (len(PALETTE) - 1)]


def sequential(
    values: NDArray[np.float32], ranks: NDArray[np.float32], scale: Scale, *, title: str
) -> tuple[NDArray[np.uint8], Bar]:
    """Return the colours of attention, and their legend in multiples of even attention.

    Args:
        values: attention x n (n,), which is 1 for a tile if all weigh the same.
        ranks: rank of each tile in the slide (n,), 0 lowest to 1 highest.
        scale: what colours stand for.
        title: of the legend.
    """
    if scale == "rank":
        at = np.quantile(values, _TICKS)
        ticks = [
            Tick(place, f"{100 * place:.0f} %: \u00d7{_short(float(value))}")
            for place, value in zip(_TICKS, at, strict=True)
        ]
        words = (
            "Colour: percentile of a tile's attention among the tiles of this slide. Beside it, "
            "the attention there, as a multiple of what each tile would have if all weighed the "
            "same."
        )
        return levels_of(ranks), _bar(SEQUENTIAL, title, ticks, words)
    low, high = 0.0, max(float(np.quantile(values, _SATURATED)), 1.0)
    ticks = [Tick(place, f"\u00d7{_short(low + place * (high - low))}") for place in _TICKS]
    most = _short(float(values.max()))
    words = (
        "Colour: attention as a multiple of what each tile would have if all weighed the same "
        f"(\u00d71). The 1 % of tiles with the most, up to \u00d7{most}, have the colour of the "
        "upper end."
    )
    return levels_of((values - low) / (high - low)), _bar(SEQUENTIAL, title, ticks, words)


def diverging(values: NDArray[np.float32], *, title: str) -> tuple[NDArray[np.uint8], Bar]:
    """Return the colours of contributions (n,) around zero, and their legend."""
    limit = float(np.quantile(np.abs(values), _SATURATED)) or 1.0
    ticks = [Tick(place, f"{(2 * place - 1) * limit:+.2g}" if place != 0.5 else "0")
             for place in _TICKS]  # fmt: skip
    words = (
        "Colour: what a tile adds to the class's logit, which is the sum over all tiles; orange "
        f"is for the class, purple against it. From {float(values.min()):+.2g} to "
        f"{float(values.max()):+.2g} on this slide."
    )
    return levels_of(values / (2 * limit) + 0.5), _bar(DIVERGING, title, ticks, words)


def _bar(name: str, title: str, ticks: list[Tick], words: str) -> Bar:
    table = colours_of(name)
    steps = table[np.linspace(0, LEVELS - 1, _STEPS).astype(int)]
    return Bar(title, [hexadecimal(tuple(rgb)) for rgb in steps.tolist()], ticks, words)


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
