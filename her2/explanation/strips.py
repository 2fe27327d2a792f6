"""Stage 2, heatmaps: pictures of the most and least attended tiles of a slide or of a score."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from her2.cohort.manifest import Cohort
from her2.core.crashes import reading
from her2.core.errors import SlideError, TileError
from her2.core.files import atomic_path
from her2.core.plot_style import STYLE, FigureContext
from her2.core.types import RGB
from her2.explanation.exports import WARNING
from her2.explanation.heatmap import PNG, fit_text
from her2.explanation.localisation import is_uniform
from her2.explanation.sources import Source
from her2.explanation.tiles import UNIFORM, Explained, SlideTiles
from her2.slides.slide import Slide

log = logging.getLogger(__name__)

SHOWN = 6
"""Number of tiles at each end, in both kinds of picture."""
MAX_PER_PATIENT = 2
"""Maximum number of tiles of one patient at each end, in the pictures of a score."""
MOST, LEAST = "most", "least"
OPENED = 2 * SHOWN
"""Maximum number of slides opened for one score."""
FOLDER = "scores"

_TILE_IN, _HEAD_IN, _LINE_IN, _DPI = 1.25, 0.18, 0.2, 120


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tile of a slide, with its row and its attention x the number of tiles."""

    of: Explained
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
    return TileImage(slide.region(x, y, *tiles.slide.level0_tile, (side, side)), caption)


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
    slides: Sequence[Explained], attention: Iterable[NDArray[np.float32]], end: str
) -> list[Candidate]:
    """Return the tiles of many slides that may be shown, the extreme one first.

    A slide contributes no more tiles than a patient may; ties are ordered by name and row.
    """
    found = [
        Candidate(slide, int(row), float(values[row] * np.float32(len(values))))
        for slide, values in zip(slides, attention, strict=True)
        for row in extreme_rows(values, MAX_PER_PATIENT, end)
    ]
    sign = -1 if end == MOST else 1
    return sorted(found, key=lambda one: (sign * one.times_tiles, one.of.slide_id, one.row))


def times_words(times_tiles: float) -> str:
    """Return a tile's attention as a multiple of uniform attention: `12x`."""
    if times_tiles < 0.001:
        return "< 0.001\u00d7"
    return f"{times_tiles:.2g}\u00d7" if times_tiles < 99.5 else f"{times_tiles:.0f}\u00d7"


def draw_strip(
    rows: dict[str, list[TileImage]],
    context: FigureContext,
    *,
    headline: Sequence[str],
    tile_um: float,
    path: Path,
) -> None:
    """Write tiles as PNG, the most attended in the first row and the least in the second.

    `headline` are the lines above them, and `tile_um` the side of a tile.
    """
    columns = max(1, *(len(images) for images in rows.values()))
    lines = max(len(tile.caption) for images in rows.values() for tile in images)
    head = _HEAD_IN + _LINE_IN * len(headline)
    step = _TILE_IN + 0.18 + 0.14 * lines  # inches, with the captions
    with mpl.rc_context(STYLE):
        size = (1.05 + columns * (_TILE_IN + 0.08), head + step * len(rows) + 0.5)
        size = (max(size[0], 6.6), size[1])  # room for the words
        canvas = Canvas(figsize=size, dpi=_DPI)

        # In inches from the top left corner. A pair of axes per tile took half of the time.
        axes = canvas.add_axes((0, 0, 1, 1))
        axes.set_axis_off()

        def write(x: float, y: float, text: str, inches: float, **looks: Any) -> None:
            spot = x / size[0], 1 - y / size[1]
            fit_text(canvas, spot, text, inches, va="top", **looks)

        first, *others = headline
        write(0.08, 0.1, first, size[0] - 0.2, fontsize=9.5, fontweight="bold")
        for index, words in enumerate(others, start=1):
            write(0.08, 0.1 + _LINE_IN * index, words, size[0] - 0.2, fontsize=9)
        for line, (end, images) in enumerate(rows.items()):
            top = head + line * step
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


def draw_scores(
    source: Source, cohort: Cohort, output: Path, context: FigureContext
) -> list[dict[str, object]]:
    """Draw one picture per score, `scores/{index of the class}.png`, and return its contents.

    Only a few of the slides are opened, from the files that `cohort` gives. `output` is the parent
    folder of `scores/`.

    Returns:
        For each score `label`, `slides`, `patients`, and either `picture` with its `tiles`,
        `tile_um` and `not_opened`, or a `note` with the reason for its absence.
    """
    found: list[dict[str, object]] = []
    for index, label in enumerate(source.class_names):
        slides = [slide for slide in source.slides if slide.label == label]
        values = [source.attention[slide.slide_id] for slide in slides]
        about: dict[str, object] = {
            "label": label,
            "slides": len(slides),
            "patients": len({one.patient_id for one in slides}),
        }
        if not slides:
            about["note"] = f"no {source.kind} of this score has features"
        elif all(is_uniform(one) for one in values):
            about["note"] = UNIFORM
        else:
            path = output / FOLDER / f"{index}.png"
            about |= _draw_score(source, cohort, slides, values, path, context)
        found.append(about)
    return found


def _draw_score(
    source: Source,
    cohort: Cohort,
    slides: list[Explained],
    attention: list[NDArray[np.float32]],
    path: Path,
    context: FigureContext,
) -> dict[str, object]:
    shown: dict[str, list[tuple[Candidate, SlideTiles, TileImage]]] = {}
    with ExitStack() as stack:
        opened = _OpenSlides(source, cohort, stack)
        for end in (MOST, LEAST):
            shown[end] = _pick(opened, candidates(slides, attention, end))
        not_opened = [{"slide_id": k, "reason": v} for k, v in sorted(opened.reasons.items())]
    rows = {end: [image for _, _, image in items] for end, items in shown.items()}
    if not any(rows.values()):
        return {"not_opened": not_opened, "note": "none of the slides could be read"}
    first = next(tiles for items in shown.values() for _, tiles, _ in items)
    tile_um = first.slide.level0_tile[0] * first.scale.mpp_x
    people = len({one.patient_id for one in slides})
    whose = f"{len(slides)} {source.kind}s of {people} patients"
    headline = f"Score {slides[0].label}", f"most and least attended of all tiles of {whose}"
    with atomic_path(path) as temporary:
        draw_strip(rows, context, headline=headline, tile_um=tile_um, path=temporary)
    return {
        "picture": f"{FOLDER}/{path.name}",
        "tile_um": round(tile_um, 3),
        "not_opened": not_opened,
        "tiles": [
            _about(end, candidate, tiles)
            for end, items in shown.items()
            for candidate, tiles, _ in items
        ],
    }


class _OpenSlides:
    """A set of at most `OPENED` open slides, with the reasons why others are not open."""

    def __init__(self, source: Source, cohort: Cohort, stack: ExitStack) -> None:
        self._source, self._stack = source, stack
        self._files = {row.slide_id: cohort.file(row) for row in cohort.rows if row.path}
        self._open: dict[str, tuple[Slide, SlideTiles]] = {}
        self.reasons: dict[str, str] = {}

    def tile(self, one: Candidate) -> tuple[SlideTiles, TileImage] | None:
        """Return the tile, or None where its slide is over the limit or cannot be read."""
        name = one.of.slide_id
        tried = len(self._open) + len(self.reasons)
        if name in self.reasons or (name not in self._open and tried >= OPENED):
            return None
        try:
            with reading(name):
                if name not in self._open:
                    slide = self._stack.enter_context(Slide(self._files[name]))
                    self._open[name] = slide, self._source.tiles(name)
                slide, tiles = self._open[name]
                caption = times_words(one.times_tiles), name
                return tiles, read_tile_image(slide, tiles, one.row, caption)
        except (SlideError, TileError) as error:
            log.warning("%s: none of its tiles is shown: %s", name, error)
            self._open.pop(name, None)
            self.reasons[name] = str(error)
            return None


def _pick(
    opened: _OpenSlides, ordered: list[Candidate]
) -> list[tuple[Candidate, SlideTiles, TileImage]]:
    """Return the first candidates that can be read, at most `MAX_PER_PATIENT` per patient."""
    found: list[tuple[Candidate, SlideTiles, TileImage]] = []
    picked: dict[str, int] = {}
    for one in ordered:
        patient = one.of.patient_id
        if len(found) == SHOWN:
            break
        if picked.get(patient, 0) < MAX_PER_PATIENT and (read := opened.tile(one)) is not None:
            picked[patient] = picked.get(patient, 0) + 1
            found.append((one, *read))
    return found


def _about(end: str, one: Candidate, tiles: SlideTiles) -> dict[str, Any]:
    x, y = tiles.coords[one.row].tolist()
    width, height = tiles.slide.level0_tile
    return {
        "end": end,
        "slide_id": one.of.slide_id,
        "patient_id": one.of.patient_id,
        **one.of.models,
        "x_level0_px": x,
        "y_level0_px": y,
        "width_level0_px": width,
        "height_level0_px": height,
        "attention_times_tiles": round(one.times_tiles, 6),
    }
