"""Stage 2, heatmaps: pictures of the most and least attended tiles of a slide or of a score."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from her2.core.plot_style import STYLE, FigureContext
from her2.core.types import RGB
from her2.explanation.exports import WARNING
from her2.explanation.heatmap import PNG, fit_text
from her2.explanation.held_out_slides import HeldOutSlide
from her2.explanation.tiles import SlideTiles
from her2.slides.slide import Slide

SHOWN = 6
"""Number of tiles at each end, in both kinds of picture."""
MAX_PER_PATIENT = 2
"""Maximum number of tiles of one patient at each end, in the pictures of a score."""
MOST, LEAST = "most", "least"

_TILE_IN, _HEAD_IN, _DPI = 1.25, 0.58, 120


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tile of a held-out slide, with its row and its attention x the number of tiles."""

    held: HeldOutSlide
    row: int
    times_tiles: float


@dataclass(frozen=True, slots=True)
class TileImage:
    """The image of a tile (px, px, 3) as the encoder saw it, with its lines of caption."""

    image: RGB
    caption: tuple[str, ...]


def extreme_rows(attention: NDArray[np.float32], number: int, end: str) -> NDArray[np.int64]:
    """Return the rows of the most (or least) attended tiles, the extreme first, ties by row."""
    keys = -attention if end == MOST else attention
    return np.asarray(np.argsort(keys, kind="stable")[:number], np.int64)


def read_tile_image(
    slide: Slide, tiles: SlideTiles, row: int, caption: tuple[str, ...]
) -> TileImage:
    """Return the image of a tile at the encoder's own um/px.

    Raises:
        TileError: the slide is damaged there.
    """
    x, y = tiles.coords[row].tolist()
    side = tiles.encoder_px
    return TileImage(slide.region(x, y, *tiles.level0_tile, (side, side)), caption)


def slide_tile_images(slide: Slide, tiles: SlideTiles) -> dict[str, list[TileImage]]:
    """Return the most and the least attended tiles of one slide.

    Raises:
        TileError: the slide is damaged there.
    """
    return {
        end: [
            read_tile_image(slide, tiles, int(row), (times_words(float(tiles.times_tiles[row])),))
            for row in extreme_rows(tiles.attention, SHOWN, end)
        ]
        for end in (MOST, LEAST)
    }


def candidates(
    held: Sequence[HeldOutSlide], attention: Iterable[NDArray[np.float32]], end: str
) -> list[Candidate]:
    """Return the tiles of many slides that may be shown, the extreme one first.

    A slide contributes no more tiles than a patient may; ties are ordered by name and row.
    """
    found = [
        Candidate(slide, int(row), float(values[row] * np.float32(len(values))))
        for slide, values in zip(held, attention, strict=True)
        for row in extreme_rows(values, MAX_PER_PATIENT, end)
    ]
    sign = -1 if end == MOST else 1
    return sorted(found, key=lambda one: (sign * one.times_tiles, one.held.slide_id, one.row))


def times_words(times_tiles: float) -> str:
    """Return a tile's attention as a multiple of uniform attention: `12x`."""
    if times_tiles < 0.001:
        return "< 0.001\u00d7"
    return f"{times_tiles:.2g}\u00d7" if times_tiles < 99.5 else f"{times_tiles:.0f}\u00d7"


def draw_strip(
    rows: dict[str, list[TileImage]],
    context: FigureContext,
    *,
    headline: tuple[str, str],
    tile_um: float,
    path: Path,
) -> None:
    """Write tiles as PNG, the most attended in the first row and the least in the second.

    Args:
        rows: images of `most` and `least`.
        context: context that all figures of the run share.
        headline: two lines above the tiles.
        tile_um: side of a tile in um.
        path: the PNG.
    """
    columns = max(1, *(len(images) for images in rows.values()))
    lines = max(len(tile.caption) for images in rows.values() for tile in images)
    step = _TILE_IN + 0.18 + 0.14 * lines  # inches, with the captions
    with mpl.rc_context(STYLE):
        size = (1.05 + columns * (_TILE_IN + 0.08), _HEAD_IN + step * len(rows) + 0.5)
        size = (max(size[0], 6.6), size[1])  # room for the words
        canvas = Canvas(figsize=size, dpi=_DPI)

        # In inches from the top left corner. A pair of axes per tile took half of the time.
        axes = canvas.add_axes((0, 0, 1, 1))
        axes.set_axis_off()

        def write(x: float, y: float, text: str, inches: float, **looks: Any) -> None:
            spot = x / size[0], 1 - y / size[1]
            fit_text(canvas, spot, text, inches, va="top", **looks)

        write(0.08, 0.1, headline[0], size[0] - 0.2, fontsize=9.5, fontweight="bold")
        write(0.08, 0.3, headline[1], size[0] - 0.2, fontsize=9)
        for line, (end, images) in enumerate(rows.items()):
            top = _HEAD_IN + line * step
            write(0.08, top + 0.4 * _TILE_IN, f"{end}\nattended", 0.9, fontsize=9)
            for column, tile in enumerate(images):
                left = 1.0 + column * (_TILE_IN + 0.08)
                extent = (left, left + _TILE_IN, top + _TILE_IN, top)
                axes.imshow(tile.image, extent=extent, interpolation="antialiased", aspect="auto")
                for number, words in enumerate(tile.caption):
                    below = top + _TILE_IN + 0.04 + 0.13 * number
                    write(left, below, words, _TILE_IN, fontsize=7.5)
        axes.set(xlim=(0, size[0]), ylim=(size[1], 0))
        words = context.warning(
            f"Each tile is {tile_um:.0f} \u00b5m wide. 1\u00d7: the attention if all tiles weighed "
            f"the same.\n{WARNING}.",
            "slides",
        )
        write(0.08, size[1] - 0.42, words, size[0], fontsize=8, color="#9c2a00")
        canvas.savefig(path, **PNG)
