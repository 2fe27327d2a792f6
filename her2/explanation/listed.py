"""After a run: slides drawn into a folder one by one, with the list of what is there already."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from her2.cohort.manifest import Cohort
from her2.config.jobs import VERSIONS
from her2.core.errors import UserError, first_line
from her2.core.files import digest, write_json
from her2.core.pace import duration, seconds_left
from her2.core.reading import read_json
from her2.core.stamps import files_state
from her2.explanation.drawing import Drawing, draw_slide
from her2.explanation.sources import Source
from her2.explanation.tiles import NOWHERE
from her2.storage.entries import FeatureEntry

log = logging.getLogger(__name__)

LIST = "heatmaps.json"
_SAVE_SECONDS = 5.0
"""What a killed command loses of its list."""
_SAY_SECONDS = 20.0

Say = Callable[[str], None]
"""Told how far it is, in lines."""


@dataclass(frozen=True, slots=True)
class Drawable:
    """The slides of a run that can be explained, with what determines each one's pictures."""

    source: Source
    entries: Mapping[str, FeatureEntry]
    cohort: Cohort
    drawing: Drawing
    models: Mapping[str, object]


def draw_listed(
    found: Drawable, chosen: Mapping[str, str | None], output: Path, say: Say
) -> list[dict[str, object]]:
    """Draw slides one after another, and keep the list of them.

    Args:
        found: the slides that can be explained.
        chosen: slide -> None, or the reason why it cannot be explained.
        output: the folder.
        say: told how far it is.

    Returns:
        The rows of the chosen slides, in their order.
    """
    kept = _listed(output / LIST)
    rows: dict[str, dict[str, object]] = {**kept}
    files = {row.slide_id: row for row in found.cohort.rows}
    began = said = saved = time.monotonic()
    done = 0
    try:
        for number, (name, reason) in enumerate(chosen.items()):
            if reason is None and name not in files:
                reason = "is not in the manifest any more, which has the path of its file"
            elif reason is None and not files[name].path:
                reason = "there is no slide (column 'path')"
            if reason is not None:
                rows[name] = {"slide_id": name, "reason": reason}
                continue
            file = found.cohort.file(files[name])
            made_of = _made_of(found, name, file)
            if _is_current(kept.get(name), made_of, output):
                continue
            rows[name] = {**_draw_one(found, name, file, output), "made_of": made_of}
            done += 1
            now = time.monotonic()
            if now - said >= _SAY_SECONDS:
                said = now
                left = seconds_left(now - began, done, len(chosen) - number - 1 + done)
                say(f"{number + 1:,} of {len(chosen):,} slides, {duration(left or 0)} left")
            if now - saved >= _SAVE_SECONDS:
                saved = now
                write_json(output / LIST, list(rows.values()))
    finally:
        write_json(output / LIST, [rows[name] for name in sorted(rows)])
    return [rows[name] for name in chosen]


def _draw_one(found: Drawable, name: str, file: Path, output: Path) -> dict[str, object]:
    """Draw a slide; one whose products are missing or damaged has the reason."""
    try:
        tiles = found.source.tiles(name)
    except UserError as error:
        log.warning("%s: no heatmap: %s", name, error)
        return {"slide_id": name, "reason": first_line(error)}
    except (KeyError, ValueError):  # features of other programs may lack it
        return {"slide_id": name, "reason": NOWHERE}
    return draw_slide(tiles, file, found.drawing, output)


def _made_of(found: Drawable, name: str, file: Path) -> str:
    """Return the digest of all that a slide's files are made of."""
    drawing = found.drawing
    return digest(
        [
            VERSIONS["heatmap"],
            found.entries[name].key,
            found.models[name],
            sorted(drawing.formats),
            drawing.synthetic,
            None if drawing.masks is None else str(drawing.masks),
            files_state([file.absolute()], Path("/")),
        ]
    )


def _is_current(row: Mapping[str, Any] | None, made_of: str, output: Path) -> bool:
    """Return whether a slide was drawn from the same, and its files are all there."""
    if row is None or row.get("made_of") != made_of or "reason" in row:
        return False
    names = [row.get("picture"), row.get("tile_strip"), *row.get("files", [])]
    return all((output / name).is_file() for name in names if name)


def _listed(path: Path) -> dict[str, dict[str, object]]:
    """Return the rows of an earlier command, by slide; none where there is no list of one.

    Raises:
        UserError: there is a file of this name that is no list.
    """
    if not path.exists():
        return {}
    found = read_json(path)
    rows: list[Any] = found if isinstance(found, list) else [None]
    if not all(isinstance(row, dict) and "slide_id" in row for row in rows):
        raise UserError(f"{path}: is no list of `her2 heatmaps`; name another folder with --out.")
    return {str(row["slide_id"]): row for row in rows}
