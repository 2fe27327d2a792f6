"""`her2 view`: a slide tiled again, to show what a run does not store: tissue and rejected tiles.

The run's own code does it with the settings of the run's own job, and what it finds is compared
with the tiles that the run kept. It takes as long as in the run, so it happens in a thread, one
slide at a time, and pages ask again until it is done.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from her2.config import TilingSection
from her2.config.jobs import TileSpec
from her2.core.crashes import reading
from her2.core.errors import UserError
from her2.core.hardware import allowed_cpus
from her2.core.masks import share_inside
from her2.core.stamps import FOLDER as STAMPS
from her2.core.types import Mask
from her2.frozen.bundle.asked import read_spec
from her2.segmenters import chosen
from her2.slides.annotations import chosen_regions
from her2.slides.fingerprint import fingerprint
from her2.slides.slide import Slide
from her2.storage.facts import TileGrid
from her2.storage.tiles import TileTable
from her2.tiling.artefacts import Judgement
from her2.tiling.grid import Examined, Sources, examine_slide
from her2.viewer.run import NO_FILE, NotThereError, ViewedCohort
from her2.viewer.state import Viewer
from her2.viewer.stored import Stored

if TYPE_CHECKING:
    from her2.tiling.segmentation import SegmenterNetwork

_SLIDES = 4
"""Slides in memory; a mask of tissue has a byte per px of 8 um."""
_FIRST_WAIT_SECONDS = 0.2
_ABANDONED_SECONDS = 120.0
"""A slide that no page has asked about for so long is not tiled; hidden pages ask once a minute."""


@dataclass(frozen=True, slots=True)
class Retiled:
    """What tiling finds on a slide now.

    Attributes:
        grid: the tiles' size.
        tissue: mask (h, w) of the whole slide.
        coords: int32 (n, 2), top left corners of the tiles with enough tissue, level-0 px.
        found: the filters' judgement of these.
        drawn: rows of those that a run keeps.
        tiling: the settings.
        size_px: width and height of the slide.
        differs: how the tiles differ from those that the run kept, in words; None: they are equal.
    """

    grid: TileGrid
    tissue: Mask
    coords: NDArray[np.int32]
    found: Judgement
    drawn: NDArray[np.int64]
    tiling: TilingSection
    size_px: tuple[int, int]
    differs: str | None

    def tissue_of(self, box: tuple[float, float, float, float]) -> float:
        """Return the share of tissue in a box (left, top, right, bottom) in level-0 px."""
        to_mask = np.array(
            [s / px for s, px in zip(self.tissue.shape[::-1], self.size_px, strict=True)] * 2
        )
        return float(share_inside(self.tissue, np.array([box]) * to_mask)[0])


class ComputingError(Exception):
    """It is being computed; `seconds` since it began. The message is for people."""

    def __init__(self, words: str, seconds: float) -> None:
        super().__init__(words)
        self.seconds = seconds


class _Job:
    """A slide that is to be tiled, is being tiled, or was."""

    def __init__(self, work: Callable[[], Retiled]) -> None:
        self.work = work
        self.first_asked = self.last_asked = time.monotonic()
        self.began: float | None = None
        self.done = threading.Event()
        self.found: Retiled | None = None
        self.error: Exception | None = None


class Retiling:
    """The slides that were tiled again last, and those that are being tiled. Thread-safe.

    One is tiled at a time: of those that wait, the one that was asked for last, since its page is
    being looked at. Those that no page asks for any more are not tiled.
    """

    def __init__(self) -> None:
        self._lock, self._working = threading.Lock(), False
        self._jobs: OrderedDict[tuple[object, ...], _Job] = OrderedDict()

    def known(self, cohort: ViewedCohort, slide_id: str, grid: str) -> Retiled | None:
        """Return what is known already, and begin nothing."""
        with self._lock:
            job = self._jobs.get(_key(cohort, slide_id, grid))
        return None if job is None else job.found

    def find(self, viewer: Viewer, cohort: ViewedCohort, slide_id: str, grid: str) -> Retiled:
        """Return what tiling finds on a slide; where it is not known, begin to compute it.

        Raises:
            ComputingError: it is being computed.
            UserError, SlideError, TileError: it cannot be.
        """
        key = _key(cohort, slide_id, grid)
        with self._lock:
            job = self._jobs.get(key)
            if job is None:
                job = self._jobs[key] = _Job(_prepare(viewer, cohort, slide_id, grid))
            job.last_asked = time.monotonic()
            if not self._working:
                self._working = True
                # Ends with the process: nobody waits for it after Ctrl-C.
                threading.Thread(target=self._work, daemon=True).start()
            self._jobs.move_to_end(key)
            finished = [name for name, one in self._jobs.items() if one.done.is_set()]
            for name in finished[:-_SLIDES]:
                del self._jobs[name]
        job.done.wait(_FIRST_WAIT_SECONDS)
        if job.error is not None:
            with self._lock:  # so that it is tried again, once a file is there
                self._jobs.pop(key, None)
            raise job.error
        if job.found is None:
            if job.began is None:
                raise ComputingError("waits for another slide to be tiled", _since(job.first_asked))
            raise ComputingError(
                "the slide is being tiled again, as the run did it", _since(job.began)
            )
        return job.found

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                job.found = job.work()
            except Exception as error:  # whatever it is, whoever asks is told
                job.error = error
            finally:
                job.done.set()

    def _next(self) -> _Job | None:
        """Return the job to begin with now, and forget those that were abandoned."""
        with self._lock:
            waiting = [(key, job) for key, job in self._jobs.items() if job.began is None]
            for key, job in waiting:
                if _since(job.last_asked) > _ABANDONED_SECONDS:
                    del self._jobs[key]
            here = [job for key, job in waiting if key in self._jobs]
            if not here:
                self._working = False
                return None
            job = max(here, key=lambda one: one.last_asked)
            job.began = time.monotonic()
            return job


def _key(cohort: ViewedCohort, slide_id: str, grid: str) -> tuple[object, ...]:
    """Return what tells a slide on a grid from others, from another file, and from another run."""

    def state(path: Callable[[], Path]) -> tuple[int, int] | None:
        try:
            stat = path().stat()
        except (OSError, NotThereError):
            return None
        return stat.st_size, stat.st_mtime_ns

    file, tables = lambda: cohort.file(slide_id), lambda: cohort.folder / "tiles" / grid
    return cohort.key, slide_id, grid, state(file), state(tables)


def _since(moment: float) -> float:
    return time.monotonic() - moment


def _prepare(
    viewer: Viewer, cohort: ViewedCohort, slide_id: str, grid: str
) -> Callable[[], Retiled]:
    """Return the work of tiling a slide as its job in the run did.

    Raises:
        UserError: nothing of this run cut tiles on the grid.
    """
    config = viewer.run.config
    if grid not in config.grids:
        raise UserError("another program laid these tiles, and does not tell which it rejected.")
    stored = viewer.part(Stored)
    bucket = stored.bucket(viewer, cohort, slide_id)
    if bucket is None:
        raise UserError("no job of this run tiled the slide.")
    part = cohort.folder.relative_to(viewer.run.folder)
    stamp = viewer.run.folder / STAMPS / part / "tile_bucket" / grid / f"{bucket}.json"
    spec = read_spec(TileSpec, stamp)
    section = config.cohort if cohort.external is None else config.validation[cohort.external]
    masks = viewer.run.places.path(section.tissue_masks)
    if not cohort.row(slide_id).path:
        raise UserError(NO_FILE)
    file = cohort.file(slide_id)
    weights = {
        one.key: viewer.run.folder / "segmenters" / one.folder for one in chosen(spec.tiling)
    }

    def work() -> Retiled:
        with reading(str(file)):
            seen, content, size_px = _examine(spec, cohort, slide_id, file, masks, weights)
        table = stored.table(viewer, cohort, slide_id, grid)
        return Retiled(
            grid=seen.grid,
            tissue=seen.layers.tissue,
            coords=seen.coords.astype(np.int32),
            found=seen.found,
            drawn=seen.drawn,
            tiling=spec.tiling,
            size_px=size_px,
            differs=_difference(seen, content, table),
        )

    return work


def _examine(
    spec: TileSpec,
    cohort: ViewedCohort,
    slide_id: str,
    file: Path,
    tissue_masks: Path | None,
    weights: Mapping[str, Path],
) -> tuple[Examined, str, tuple[int, int]]:
    """Return what tiling finds, the slide's fingerprint, and its (width, height)."""
    row, manifest = cohort.row(slide_id), cohort.cohort
    annotation, mask = manifest.annotation_file(row), manifest.mask_file(row, tissue_masks)
    networks: Mapping[str, SegmenterNetwork] = {}
    if weights:
        if missing := [folder.name for folder in weights.values() if not folder.is_dir()]:
            raise UserError(
                f"the weights of the segmenters that the run used are not in its folder segmenters "
                f"any more: {', '.join(missing)}."
            )
        from her2.tiling.segmenter import networks_of  # torch, which no other tiling needs

        networks = networks_of(spec.tiling, weights, threads=allowed_cpus())
    classes = spec.tiling.annotation_classes
    regions = None if annotation is None else chosen_regions(annotation, classes)
    content = fingerprint(file)
    with Slide(file) as slide:
        seen = examine_slide(
            slide,
            slide.scale(row.mpp),
            mpp=spec.mpp,
            size=spec.size,
            tiling=spec.tiling,
            fingerprint=content,
            sources=Sources(regions, mask, spec.seed, networks),
        )
        return seen, content, (slide.width_px, slide.height_px)


def _difference(seen: Examined, content: str, table: TileTable | None) -> str | None:
    """Return in words how the tiles differ from those that the run kept, None if they do not."""
    if table is None:
        return None  # the run kept none, as the slide's reason says
    found = seen.coords[seen.drawn]
    if np.array_equal(found, table.coords):
        return None
    both = len(set(map(tuple, found.tolist())) & set(map(tuple, table.coords.tolist())))
    why = (
        "the slide's file is another one than the run read"
        if content != table.facts.fingerprint
        else "the slide's row in the manifest, its annotation or its mask was changed since, or "
        "another version of her2 or of a library tiled it"
    )
    return (
        f"differs from the run, which kept {len(table):,} tiles: of the {len(found):,} found now, "
        f"{both:,} are among them; {why}"
    )
