"""Stage 2, heatmaps: the most and least attended tiles of all held-out slides of a score."""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2.cohort.manifest import Cohort
from her2.core.errors import SlideError, TileError
from her2.core.files import atomic_path
from her2.core.plot_style import FigureContext
from her2.explanation.held_out import HeldOut
from her2.explanation.held_out_slides import HeldOutSlide
from her2.explanation.localisation import is_uniform
from her2.explanation.strips import (
    LEAST,
    MAX_PER_PATIENT,
    MOST,
    SHOWN,
    Candidate,
    TileImage,
    candidates,
    draw_strip,
    read_tile_image,
    times_words,
)
from her2.explanation.tiles import UNIFORM, SlideTiles
from her2.slides.slide import Slide

log = logging.getLogger(__name__)

OPENED = 2 * SHOWN
"""Maximum number of slides opened for one score."""
FOLDER = "scores"


def draw_scores(
    held_out: HeldOut, cohort: Cohort, output: Path, context: FigureContext
) -> list[dict[str, object]]:
    """Draw one picture per score, `scores/{index of the class}.png`, and return its contents.

    Args:
        held_out: all held-out slides; only a few are opened.
        cohort: gives the slides' files.
        output: the parent folder of `scores/`.
        context: context that all figures of the run share.

    Returns:
        For each score `label`, `slides`, `patients`, and either `picture` with its `tiles`,
        `tile_um` and `not_opened`, or a `note` with the reason for its absence.
    """
    found: list[dict[str, object]] = []
    for index, label in enumerate(held_out.task.class_names):
        held = [slide for slide in held_out.slides if slide.label == label]
        values = [held_out.attention[slide.slide_id] for slide in held]
        about: dict[str, object] = {
            "label": label,
            "slides": len(held),
            "patients": len({one.patient_id for one in held}),
        }
        if not held:
            about["note"] = "no held-out slide of this score has features"
        elif all(is_uniform(one) for one in values):
            about["note"] = UNIFORM
        else:
            path = output / FOLDER / f"{index}.png"
            about |= _draw_score(held_out, cohort, held, values, path, context)
        found.append(about)
    return found


def _draw_score(
    held_out: HeldOut,
    cohort: Cohort,
    held: list[HeldOutSlide],
    attention: list[NDArray[np.float32]],
    path: Path,
    context: FigureContext,
) -> dict[str, object]:
    shown: dict[str, list[tuple[Candidate, SlideTiles, TileImage]]] = {}
    with ExitStack() as stack:
        opened = _OpenSlides(held_out, cohort, stack)
        for end in (MOST, LEAST):
            shown[end] = _pick(opened, candidates(held, attention, end))
        not_opened = [{"slide_id": k, "reason": v} for k, v in sorted(opened.reasons.items())]
    rows = {end: [image for _, _, image in items] for end, items in shown.items()}
    if not any(rows.values()):
        return {"not_opened": not_opened, "note": "none of the slides could be read"}
    first = next(tiles for items in shown.values() for _, tiles, _ in items)
    tile_um = first.level0_tile[0] * first.scale.mpp_x
    people = len({one.patient_id for one in held})
    headline = (
        f"Score {held[0].label}",
        f"most and least attended of all tiles of {len(held)} held-out slides of {people} patients",
    )
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

    def __init__(self, held_out: HeldOut, cohort: Cohort, stack: ExitStack) -> None:
        self._held_out, self._stack = held_out, stack
        self._files = {row.slide_id: cohort.file(row) for row in cohort.rows}
        self._open: dict[str, tuple[Slide, SlideTiles]] = {}
        self.reasons: dict[str, str] = {}

    def tile(self, one: Candidate) -> tuple[SlideTiles, TileImage] | None:
        """Return the tile, or None where its slide is over the limit or cannot be read."""
        name = one.held.slide_id
        tried = len(self._open) + len(self.reasons)
        if name in self.reasons or (name not in self._open and tried >= OPENED):
            return None
        try:
            if name not in self._open:
                slide = self._stack.enter_context(Slide(self._files[name]))
                self._open[name] = slide, self._held_out.tiles(one.held)
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
        patient = one.held.patient_id
        if len(found) == SHOWN:
            break
        if picked.get(patient, 0) < MAX_PER_PATIENT and (read := opened.tile(one)) is not None:
            picked[patient] = picked.get(patient, 0) + 1
            found.append((one, *read))
    return found


def _about(end: str, one: Candidate, tiles: SlideTiles) -> dict[str, Any]:
    x, y = tiles.coords[one.row].tolist()
    width, height = tiles.level0_tile
    return {
        "end": end,
        "slide_id": one.held.slide_id,
        "patient_id": one.held.patient_id,
        "fold": one.held.fold,
        "x_level0_px": x,
        "y_level0_px": y,
        "width_level0_px": width,
        "height_level0_px": height,
        "attention_times_tiles": round(one.times_tiles, 6),
    }
