"""`her2 view`: samples that are kept, and searches that run, while pages ask how far they are."""

import itertools
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

import polars as pl

from her2.core.errors import UserError, first_line
from her2.storage.features import FeatureStore
from her2.viewer.cohort.numbers import numbers_of
from her2.viewer.run import NotThereError
from her2.viewer.similar.search import Found, Query
from her2.viewer.similar.searches import SAMPLE_BYTES, Sample, Search
from her2.viewer.similar.stores import EmbeddedSlides, stored_slides
from her2.viewer.state import Viewer

_MOST_RUNNING = 2
_MOST_KEPT = 16
"""Searches whose results are kept for their pages."""

SlideKey = tuple[str, str]
"""Cohort and slide."""


@dataclass(slots=True)
class Building:
    """A sample that is read in the background, or was."""

    sample: Sample
    cancelled: threading.Event = field(default_factory=threading.Event)
    ready: threading.Event = field(default_factory=threading.Event)
    problem: str | None = None


@dataclass(slots=True)
class Running:
    """A search of all tiles, in the background: what it is for, and what it found."""

    number: str
    encoder: str
    model: str | None
    search: Search
    found: Found | None = None
    problem: str | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    begun_at: float = field(default_factory=time.monotonic)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the slides: by slide (score, true class, predicted class); score -> rank."""

    slides: dict[SlideKey, tuple[str | None, str | None, str | None]]
    scores: tuple[str, ...]
    label: str | None


class SimilarTiles:
    """The searches of one viewer. Thread-safe.

    Args:
        viewer: what is looked at.
        limit_bytes: memory of all samples together.
    """

    def __init__(self, viewer: Viewer, *, limit_bytes: int = SAMPLE_BYTES) -> None:
        self._viewer, self._limit = viewer, limit_bytes
        self._lock = threading.Lock()
        self._slides: dict[str, EmbeddedSlides] = {}
        self._samples: OrderedDict[str, Building] = OrderedDict()
        self._searches: OrderedDict[str, Running] = OrderedDict()
        self._numbers = itertools.count(1)
        self._known: dict[str | None, Known] = {}

    def slides(self, encoder: str) -> EmbeddedSlides:
        """Return the slides with features by an encoder, found once.

        Raises:
            NotThereError: there is no such encoder.
        """
        with self._lock:
            if encoder not in self._slides:
                self._slides[encoder] = stored_slides(self._viewer, encoder)
            return self._slides[encoder]

    def sample(self, encoder: str, store: FeatureStore) -> Building:
        """Return the sample of an encoder, whose building begins with the first call.

        Samples that were used least recently make room for it.

        Args:
            encoder: a name in the config.
            store: one of its stores, which tells how many features there are.
        """
        slides = self.slides(encoder).slides
        with self._lock:
            if encoder in self._samples:
                self._samples.move_to_end(encoder)
                return self._samples[encoder]
            made = Building(Sample(slides, store.dimension, self._limit))
            used = made.sample.size_bytes + sum(
                one.sample.size_bytes for one in self._samples.values()
            )
            while self._samples and used > self._limit:
                _, old = self._samples.popitem(last=False)
                old.cancelled.set()
                used -= old.sample.size_bytes
            self._samples[encoder] = made
        threading.Thread(target=self._build, args=(encoder, made), daemon=True).start()
        return made

    def _build(self, encoder: str, made: Building) -> None:
        try:
            made.sample.build(made.cancelled)
        except Exception as error:  # nobody waits for this thread: the page is told, and may retry
            made.problem = first_line(error)
        if made.cancelled.is_set():
            made.problem = "it made room for that of another encoder; ask again"
        if made.problem:
            with self._lock:
                if self._samples.get(encoder) is made:
                    del self._samples[encoder]
        made.ready.set()

    def begin(self, encoder: str, query: Query, model: str | None) -> Running:
        """Begin to search all tiles.

        Raises:
            UserError: enough searches run already.
        """
        slides = self.slides(encoder).slides
        with self._lock:
            running = [one for one in self._searches.values() if not one.ended.is_set()]
            if len(running) >= _MOST_RUNNING:
                raise UserError(
                    f"{len(running)} searches of all tiles run already, in other windows; wait "
                    "for them or cancel one."
                )
            made = Running(str(next(self._numbers)), encoder, model, Search(slides, query))
            self._searches[made.number] = made
            ended = [number for number, one in self._searches.items() if one.ended.is_set()]
            for number in ended[: max(0, len(self._searches) - _MOST_KEPT)]:
                del self._searches[number]
        threading.Thread(target=self._run, args=(made,), daemon=True).start()
        return made

    def _run(self, made: Running) -> None:
        try:
            made.found = made.search.run()
        except Exception as error:  # as in `_build`
            made.problem = first_line(error)
        made.seconds = time.monotonic() - made.begun_at
        made.ended.set()

    def search(self, number: str) -> Running:
        """Return a search of all tiles, whose page is still there.

        Raises:
            NotThereError: there is none of that number.
        """
        with self._lock:
            if number not in self._searches:
                raise NotThereError("there is no such search any more; begin it again.")
            found = self._searches[number]
        found.search.asked_at = time.monotonic()
        return found

    def known(self, model: str | None) -> Known:
        """Return what is known of all slides, predictions by a model.

        Raises:
            NotThereError: there is no such model.
            UserError: a table of the run is damaged.
        """
        with self._lock:
            if model not in self._known:
                self._known[model] = self._read_known(model)
            return self._known[model]

    def _read_known(self, model: str | None) -> Known:
        run = self._viewer.run
        wanted = None if model is None else run.model(model)
        slides: dict[SlideKey, tuple[str | None, str | None, str | None]] = {}
        order: dict[str, None] = {}
        label = None
        for cohort in run.cohorts.values():
            numbers = numbers_of(run, cohort, wanted)
            task = numbers.task
            column = f"label_{task.label}" if task else ""
            if task:
                label = label or task.label
                order |= dict.fromkeys(v for values in task.classes.values() for v in values)
            has = column in cohort.table.columns
            scores = pl.col(column).cast(pl.String) if has else pl.lit(None, pl.String)
            table = cohort.table.unique("slide_id", keep="first").select("slide_id", score=scores)
            joined = table.join(numbers.table, on="slide_id", how="left")
            columns = ("slide_id", "score", "truth", "predicted")
            for slide_id, score, truth, predicted in joined.select(columns).iter_rows():
                if truth is None and task and score is not None:  # not predicted by this model
                    index = task.class_index(score)
                    truth = None if index is None else task.class_names[index]
                slides[cohort.key, slide_id] = score, truth, predicted
        others = sorted({score for score, *_ in slides.values() if score and score not in order})
        return Known(slides, (*order, *others), label)
