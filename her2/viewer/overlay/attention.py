"""`her2 view`: what a trained model stored of a slide's tiles, one slide at a time.

A slide of the development is explained by the model that never saw its patient, an external one by
the frozen model, as in the report. Nothing is predicted here, and nothing of other slides is read.
"""

import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from her2.core.errors import UserError
from her2.explanation.external_slides import External
from her2.explanation.held_out import HeldOut, read_tiles, runs_of
from her2.explanation.of_run import (
    external_of_run,
    external_spec,
    folds_table,
    heatmap_spec,
    held_out_of_run,
)
from her2.explanation.tiles import NOWHERE, SlideTiles
from her2.frozen.bundle.asked import Wanted
from her2.storage.entries import FeatureEntry
from her2.storage.fold_files import check_fold
from her2.storage.products import present_product
from her2.viewer.kept import Kept
from her2.viewer.run import DEVELOPMENT, NotThereError, ViewedCohort
from her2.viewer.state import Viewer

_SLIDES = 8
"""Slides and models in memory: of 100,000 tiles and a few maps each, some tens of MiB."""
NO_FOLD = "no model that never saw it was evaluated on it: it has no label of the task, or no fold"
NO_CONTRIBUTIONS = "external slides have the mean attention of all folds, and no contributions"


@dataclass(frozen=True, slots=True)
class Attended:
    """A slide's tiles with what a model stored of them.

    `run` is the fold's model, None for the frozen one; `runs` are those that tested the slide.
    """

    tiles: SlideTiles
    run: str | None
    runs: tuple[str, ...] = ()

    def maps(self, kind: str) -> tuple[str, ...]:
        """Return the model's outputs with a map: of `attention`, or of `contribution`."""
        begin = f"{kind}_"
        return tuple(name.removeprefix(begin) for name in self.tiles.maps if name.startswith(begin))


class Attention:
    """The attention of the slides that were looked at last. Thread-safe."""

    def __init__(self) -> None:
        self._kept: Kept[Attended] = Kept(_SLIDES)
        self._lock = threading.Lock()
        self._checked: dict[tuple[Path, tuple[str, ...]], tuple[tuple[int, int], ...]] = {}

    def of(
        self, viewer: Viewer, cohort: ViewedCohort, slide_id: str, model: str, run: str | None
    ) -> Attended:
        """Return the tiles of a slide with the attention of a model.

        Args:
            viewer: the run that is looked at.
            cohort: the cohort of the slide.
            slide_id: the slide.
            model: key of the model, `task/encoder/head`.
            run: name of the fold's model; None: that of the first repeat.

        Raises:
            NotThereError: there is no such model, or it did not test the slide.
            UserError: there is no attention, with the reason.
        """
        wanted = viewer.run.model(model)
        key = (cohort.key, slide_id, model, run)
        return self._kept.get(key, lambda: self._read(viewer, cohort, slide_id, wanted, run))

    def forget(self, cohort: ViewedCohort, slide_id: str) -> None:
        """Read a slide again when it is asked for: the run may have been made again."""
        own = cohort.key, slide_id
        self._kept.forget(lambda key: isinstance(key, tuple) and key[:2] == own)

    def _read(
        self, viewer: Viewer, cohort: ViewedCohort, slide_id: str, wanted: Wanted, run: str | None
    ) -> Attended:
        if cohort.key == DEVELOPMENT:
            return self._held_out(viewer, slide_id, wanted, run)
        if cohort.external is None:  # see `her2.viewer.drawn`
            raise NotThereError("slides that a bundle predicted are explained by the bundle.")
        if run is not None:
            raise NotThereError("external slides are explained by all folds together.")
        spec = external_spec(wanted, viewer.run.places, cohort.external)
        found = external_of_run(spec, wanted, viewer.cache, only=slide_id, find=present_product)
        if not found.slides:
            raise UserError(_reason(found, slide_id, "it was not predicted"))
        return Attended(_placed(lambda: found.source().tiles(slide_id)), None)

    def _held_out(self, viewer: Viewer, slide_id: str, wanted: Wanted, run: str | None) -> Attended:
        spec = heatmap_spec(wanted)
        runs = runs_of(spec, slide_id, folds=folds_table(wanted), models=wanted.folder("models"))
        if run is not None and run not in runs:
            raise NotThereError(f"{slide_id}: was not tested by a model {run}.")
        chosen = next(iter(runs), None) if run is None else run
        repeat = 0 if chosen is None else runs[chosen][0]
        found = held_out_of_run(
            spec, wanted, viewer.cache,
            repeat=repeat, only=slide_id, check=self._check, find=present_product,
        )  # fmt: skip
        if not found.slides:
            raise UserError(_reason(found, slide_id, NO_FOLD))
        tiles = _placed(lambda: read_tiles(found, found.slides[0]))
        return Attended(tiles, chosen, tuple(runs))

    def _check(self, folder: Path, names: Iterable[str]) -> None:
        """Check files of a fold as `check_fold` does, once while they stay as they are."""
        wanted = tuple(names)
        state = tuple(
            (item.stat().st_size, item.stat().st_mtime_ns)
            for item in (folder / name for name in wanted)
            if item.is_file()
        )
        with self._lock:
            if self._checked.get((folder, wanted)) == state:
                return
        check_fold(folder, wanted)
        with self._lock:
            self._checked[folder, wanted] = state


def _placed(read: Callable[[], SlideTiles]) -> SlideTiles:
    """Read tiles; features of other programs may lack where they are."""
    try:
        tiles = read()
        if not all(0 < side < math.inf for side in tiles.slide.level0_tile):
            raise ValueError
    except (KeyError, ValueError):
        raise UserError(f"{NOWHERE}.") from None
    return tiles


def _reason(found: HeldOut | External, slide_id: str, otherwise: str) -> str:
    """Return why a slide is not among those that are explained."""
    entry: FeatureEntry | None = found.entries.get(slide_id)
    if entry is None:
        return "it was not embedded by the encoder of this model."
    if entry.status != "ok":
        return f"it has no features: {entry.reason or entry.status}"
    return f"{otherwise}."
