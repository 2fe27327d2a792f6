"""Stage 2, heatmaps: the picture of a slide, with panels side by side on one scale."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from numpy.typing import NDArray

from her2.core.plot_style import STYLE, FigureContext
from her2.core.types import RGB, Mask
from her2.explanation.exports import WARNING
from her2.explanation.listing import ATTENTION, CONTRIBUTION, THUMBNAIL, TRUTH
from her2.explanation.tiles import SlideTiles
from her2.slides.slide import Scale

SIDE_PX = 640
"""The longer side of a thumbnail in the picture."""

_SEQUENTIAL, _DIVERGING = "viridis", "PuOr_r"
"""Both keep their order for colour-blind readers; orange is for, purple against, the class."""
_STRENGTH = 0.55
_TRUTH = (255, 196, 0)
_PANEL_IN, _TALLEST_IN, _LINE_IN, _DPI = 3.3, 4.6, 0.19, 150
# Without a version. Level 4 takes half of the time of the default level for 2 % more bytes.
PNG: Any = {"format": "png", "metadata": {"Software": None}, "pil_kwargs": {"compress_level": 4}}


@dataclass(frozen=True, slots=True)
class Bar:
    """A colour bar; `ticks` are the labels below its start, middle and end."""

    colours: str
    label: str
    ticks: tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Panel:
    """One image (h, w, 3) of a picture, with a colour bar where its colours encode a number."""

    name: str
    title: str
    image: RGB
    bar: Bar | None = None


def overlay(
    thumbnail: RGB,
    boxes: NDArray[np.float64],
    shares: NDArray[np.floating[Any]],
    colours: str = _SEQUENTIAL,
) -> RGB:
    """Return a thumbnail (h, w, 3) with tiles coloured by `shares` (n,), 0 to 1, of a colour map.

    `boxes` are (n, 4) left, top, right, bottom in thumbnail px.
    """
    table = mpl.colormaps[colours](np.linspace(0, 1, 256), bytes=True)[:, :3]  # uint8 (256, 3)
    painted = np.zeros(thumbnail.shape[:2], np.uint8)
    seen = np.zeros(thumbnail.shape[:2], np.uint8)
    levels = np.rint(np.asarray(shares) * 255).astype(np.uint8)
    for (left, top, right, bottom), level in zip(np.rint(boxes).astype(int), levels, strict=True):
        painted[top:bottom, left:right] = level
        seen[top:bottom, left:right] = 1
    colour = np.take(table, painted, axis=0)
    mixed = cv2.addWeighted(thumbnail, 1 - _STRENGTH, colour, _STRENGTH, 0)
    return np.asarray(cv2.copyTo(mixed, seen, thumbnail.copy()), np.uint8)


def thumbnail_boxes(tiles: SlideTiles, thumbnail: RGB) -> NDArray[np.float64]:
    """Return (n, 4) left, top, right, bottom of the tiles in px of the thumbnail."""
    width, height = tiles.slide.size_px
    to_px = np.array([thumbnail.shape[1] / width, thumbnail.shape[0] / height] * 2)
    return np.asarray(tiles.corners() * to_px)


def picture_scale(tiles: SlideTiles, thumbnail: RGB) -> Scale:
    """Return the exact um/px of the thumbnail on each axis."""
    width, height = tiles.slide.size_px
    return Scale(
        width * tiles.scale.mpp_x / thumbnail.shape[1],
        height * tiles.scale.mpp_y / thumbnail.shape[0],
        tiles.scale.source,
    )


def panels(tiles: SlideTiles, thumbnail: RGB, truth: Mask | None, truth_title: str) -> list[Panel]:
    """Return panels of thumbnail and attention, and of contribution and ground truth if any.

    `truth` (h, w) is a mask of the positive tissue; None where it is not known.
    """
    boxes = thumbnail_boxes(tiles, thumbnail)
    ranked = Bar(_SEQUENTIAL, "rank of attention in this slide", ("low", "", "high"))
    of_class = any(name.startswith("attention_") for name in tiles.maps)
    title = f"Attention, map of {tiles.predicted}" if of_class else "Attention"
    title = "Attention: uniform" if tiles.uniform else title
    found = [
        Panel(THUMBNAIL, "H&E", thumbnail),
        Panel(
            ATTENTION,
            title,
            overlay(thumbnail, boxes, tiles.rank),
            None if tiles.uniform else ranked,
        ),
    ]
    if tiles.shown is not None:
        values = tiles.maps[tiles.shown]
        # Colours saturate beyond the 99th percentile, or one tile would turn the others white.
        limit = float(np.quantile(np.abs(values), 0.99)) or 1.0
        shares = np.clip(values / (2 * limit) + 0.5, 0, 1)
        found.append(
            Panel(
                CONTRIBUTION,
                f"Contribution to {tiles.shown.removeprefix('contribution_')}",
                overlay(thumbnail, boxes, shares, _DIVERGING),
                Bar(
                    _DIVERGING,
                    "logits that a tile adds",
                    (f"\u2264 \u2212{limit:.2g}", "0", f"\u2265 {limit:.2g}"),
                ),
            )
        )
    if truth is not None:
        found.append(Panel(TRUTH, truth_title, _tinted(thumbnail, truth)))
    return found


def draw_picture(
    parts: Sequence[Panel],
    scale: Scale,
    context: FigureContext,
    *,
    headline: Sequence[str],
    path: Path,
) -> None:
    """Write the panels side by side as PNG, with scale bar, colour bars and a warning.

    The panels have one size and `scale` um/px on each axis; `headline` are the lines above them.
    """
    height, width = parts[0].image.shape[:2]
    tall = min(_TALLEST_IN, _PANEL_IN * height * scale.mpp_y / (width * scale.mpp_x))
    tall = max(1.1, tall)
    with mpl.rc_context(STYLE):
        top = tall + 1.31 + _LINE_IN * (len(headline) - 1)
        canvas = Canvas(figsize=(_PANEL_IN * len(parts), top + 0.22), dpi=_DPI)
        sides = canvas.get_size_inches()
        for index, part in enumerate(parts):
            left = (index + 0.02) * _PANEL_IN / sides[0]
            across = 0.96 * _PANEL_IN / sides[0]
            axes = canvas.add_axes((left, 0.95 / sides[1], across, tall / sides[1]))
            extent = (0, width * scale.mpp_x, height * scale.mpp_y, 0)  # um
            axes.imshow(part.image, extent=extent, aspect="equal", interpolation="antialiased")
            axes.set_axis_off()
            axes.set_anchor("W")
            spot = left, (tall + 1.02) / sides[1]
            fit_text(canvas, spot, part.title, 0.94 * _PANEL_IN, fontsize=9.5, fontweight="bold")
            if index == 0:
                _add_scale_bar(axes, width * scale.mpp_x)
            if part.bar is not None:
                _add_colour_bar(canvas, part.bar, left + 0.1 * across, 0.8 * across)
        for index, line in enumerate(headline):
            spot = 0.02 / len(parts), (top - _LINE_IN * index) / sides[1]
            weight = "normal" if index else "bold"
            fit_text(canvas, spot, line, 0.97 * sides[0], fontsize=9.5, fontweight=weight)
        words = context.warning(
            f"{WARNING}: it shows where the model looked, not what is there.", "slide"
        )
        canvas.text(0.02 / len(parts), 0.1 / sides[1], words, fontsize=8.5, color="#9c2a00")
        canvas.savefig(path, **PNG)


def fit_text(
    canvas: Canvas, spot: tuple[float, float], text: str, inches: float, **looks: Any
) -> None:
    """Write text at a spot (shares of the canvas), with the middle elided where it is too long."""
    artist = canvas.text(*spot, text, **looks)
    most = len(text)
    while most > 3 and (wide := artist.get_window_extent().width / canvas.dpi) > inches:
        most = min(most - 1, int(most * inches / wide))
        kept = text[: most - most // 2], text[len(text) - most // 2 + 1 :]
        artist.set_text("\u2026".join(kept))


def scale_bar_um(width_um: float) -> float:
    """Return the largest 1, 2 or 5 times a power of ten up to a quarter of the width."""
    power = 10.0 ** math.floor(math.log10(width_um / 4))
    return max(step * power for step in (1, 2, 5) if step * power <= width_um / 4)


def length_words(um: float) -> str:
    """Return a length as `200 um`, or `2 mm` from a thousand up."""
    return f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} \u00b5m"


def _add_scale_bar(axes: Axes, width_um: float) -> None:
    length = scale_bar_um(width_um)
    bar = AnchoredSizeBar(
        axes.transData,
        length,
        length_words(length),
        "lower left",
        pad=0.3,
        borderpad=0.4,
        sep=3,
        size_vertical=width_um / 200,
        fontproperties={"size": 8.5},
    )
    bar.patch.set(alpha=0.8, linewidth=0)
    axes.add_artist(bar)


def _add_colour_bar(canvas: Canvas, part: Bar, left: float, across: float) -> None:
    height = canvas.get_size_inches()[1]
    axes = canvas.add_axes((left, 0.76 / height, across, 0.1 / height))
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=part.colours, aspect="auto", extent=(0, 1, 0, 1))
    axes.set_xticks([0, 0.5, 1], labels=list(part.ticks))
    axes.set_yticks([])
    axes.tick_params(length=0, labelsize=8, pad=2)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(part.label, fontsize=8, labelpad=1)


def _tinted(thumbnail: RGB, truth: Mask) -> RGB:
    tint = np.array(_TRUTH)
    mixed = np.where(truth[..., None], 0.5 * thumbnail + 0.5 * tint, 0.5 * thumbnail + 127)
    return np.asarray(mixed, np.uint8)
