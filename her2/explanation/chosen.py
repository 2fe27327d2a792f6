"""After a run: attention to chosen slides as pictures and files (`her2 heatmaps`).

A slide of the development is explained by the model that never saw its patient, an external one by
the frozen model, both as the run stored it: nothing is predicted here. What was drawn is listed in
`heatmaps.json` after every few slides, so that a stopped command goes on where it was.
"""

import difflib
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from her2.cohort.reading import read_slides
from her2.config import Config, HeatmapFormat
from her2.config.external_jobs import ExternalHeatmapSpec
from her2.config.jobs import HeatmapSpec
from her2.core.errors import UserError, problem_list
from her2.core.files import file_digest
from her2.core.section import is_name
from her2.explanation.drawing import Drawing
from her2.explanation.listed import LIST, Drawable, Say, draw_listed
from her2.explanation.of_run import (
    external_of_run,
    external_predictions,
    external_spec,
    heatmap_spec,
    held_out_of_run,
)
from her2.explanation.places import RunPlaces
from her2.frozen.bundle.asked import Wanted, find_model
from her2.storage.cache import Cache

log = logging.getLogger(__name__)

ALL = "all"


@dataclass(frozen=True, slots=True)
class Wish:
    """What is drawn: slides by id, or all; `cohort` is the name of an external one, if any."""

    slides: tuple[str, ...]
    formats: tuple[HeatmapFormat, ...]
    cohort: str | None = None


def draw_chosen(
    results: Path,
    wish: Wish,
    output: Path,
    *,
    task: str | None = None,
    encoder: str | None = None,
    head: str | None = None,
    config: Config | None = None,
    say: Say = lambda text: None,
) -> list[dict[str, object]]:
    """Draw chosen slides of a finished run into a folder: `slides`, `strips` and `heatmaps.json`.

    A slide that was drawn before, from the same features and models in the same formats, is kept.

    Args:
        results: the results folder.
        wish: which slides, and in which formats.
        output: the folder; not in that of the results.
        task, encoder, head: the model; one may be left out where there is only one.
        config: says where slides and cache are; default: the config of the report, whose relative
            paths start where the results folder was.
        say: told how far it is, in lines.

    Returns:
        A row per slide: those of `her2.explanation.listing`. A slide that cannot be drawn has the
        reason, and stops no other.

    Raises:
        UserError: the run or model is not finished, a slide is not one of it (all are named), or
            no slide could be drawn.
    """
    if output.absolute().resolve().is_relative_to(results.absolute().resolve()):
        raise UserError(f"--out {output}: is in the results, whose files the run owns.")
    wanted = find_model(results, task, encoder, head)
    where = RunPlaces.of(results, config)
    with ExitStack() as stack:
        cache = stack.enter_context(where.cache(output))
        found = _find(wanted, where, cache, wish)
        chosen = _chosen(found, wish.slides)
        rows = draw_listed(found, chosen, output, say)
    drawn = [row for row in rows if "reason" not in row]
    if not drawn:
        raise problem_list(
            "no slide could be drawn", [f"{row['slide_id']}: {row['reason']}" for row in rows]
        )
    say(f"slides drawn: {len(drawn):,} of {len(rows):,}; list: {output / LIST}")
    for row in rows:
        if "reason" in row:
            say(f"{row['slide_id']}: not drawn: {row['reason']}")
    return rows


def _find(wanted: Wanted, where: RunPlaces, cache: Cache, wish: Wish) -> Drawable:
    """Find the slides; if one is asked for, nothing of the others unless it is not there."""
    find = _held_out if wish.cohort is None else _external
    if len(wish.slides) == 1 and wish.slides != (ALL,):
        found = find(wanted, where, cache, wish, wish.slides[0])
        if wish.slides[0] in found.entries:
            return found
    return find(wanted, where, cache, wish, None)


def _held_out(
    wanted: Wanted, where: RunPlaces, cache: Cache, wish: Wish, only: str | None
) -> Drawable:
    spec = heatmap_spec(wanted)
    held_out = held_out_of_run(spec, wanted, cache, only=only)
    section = where.config.cohort
    return Drawable(
        held_out.source(),
        held_out.entries,
        read_slides(where.root / section.slides, root=where.path(section.root), absent=True),
        _drawing(spec, wish, where.path(section.masks)),
        {one.slide_id: held_out.models[one.run][1] for one in held_out.slides},
    )


def _external(
    wanted: Wanted, where: RunPlaces, cache: Cache, wish: Wish, only: str | None
) -> Drawable:
    name = wish.cohort or ""
    spec = external_spec(wanted, where, name)
    found = external_of_run(spec, wanted, cache, only=only)
    section = where.config.validation[name]
    state = file_digest(external_predictions(spec, wanted) / "attention.parquet")
    return Drawable(
        found.source(),
        found.entries,
        read_slides(where.root / section.slides, root=where.path(section.root), absent=True),
        _drawing(spec, wish, where.path(section.masks)),
        dict.fromkeys((one.slide_id for one in found.slides), state),
    )


def _drawing(spec: HeatmapSpec | ExternalHeatmapSpec, wish: Wish, masks: Path | None) -> Drawing:
    return Drawing(
        formats=wish.formats,
        synthetic=spec.synthetic,
        masks=masks if masks is not None and masks.is_dir() else None,
        mask_classes=spec.mask_classes,
        annotation_origin=spec.annotation_origin,
    )


def _chosen(found: Drawable, asked: Sequence[str]) -> dict[str, str | None]:
    """Return slide -> None, or the reason why it cannot be explained.

    Raises:
        UserError: there is no slide of some name; all of them are named.
    """
    held = {one.slide_id for one in found.source.slides}
    known = held | found.entries.keys()
    names = sorted(known) if tuple(asked) == (ALL,) else list(dict.fromkeys(asked))
    problems = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            problems.append(f"{name}{f': do you mean {near[0]}' if near else ''}")
        elif not is_name(name):
            problems.append(f"{name!r}: is no id, and files are named by it")
    if problems:
        raise problem_list(
            f"--slides: {len(problems)} of these are no slides of the run; `all` draws every one",
            problems,
        )
    return {name: None if name in held else _reason(found, name) for name in names}


def _reason(found: Drawable, name: str) -> str:
    entry = found.entries[name]
    if entry.status != "ok":
        return entry.reason or f"its features are {entry.status}"
    return "no model that never saw it was evaluated on it: it has no label of the task, or no fold"
