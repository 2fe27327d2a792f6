"""`her2 view`: the feature stores of a run by slide, found and opened without changing anything.

A view is read-only: unlike a job, it restores nothing to the cache and moves nothing aside.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from her2.core.errors import UserError
from her2.core.reading import ABSENT, path_problem
from her2.storage.entries import FeatureEntry, read_entries
from her2.storage.features import FeatureStore, open_store
from her2.viewer.run import NotThereError, ViewedCohort
from her2.viewer.state import Viewer
from her2.viewer.stored import bucket_names

_SUFFIX = ".zarr.zip"


@dataclass(frozen=True, slots=True)
class EmbeddedSlide:
    """A slide with features by an encoder, which are the tiles of its plain store.

    Attributes:
        cohort: key of its cohort.
        slide_id: its id.
        patient_id: its patient.
        tiles: number of its tiles, as its entry says.
        key: of its store.
        paths: where its store may be, the cache first.
    """

    cohort: str
    slide_id: str
    patient_id: str
    tiles: int
    key: str
    paths: tuple[Path, ...]

    def open(self) -> FeatureStore:
        """Open its store.

        Raises:
            UserError: it is absent, damaged or that of another key.
        """
        there = next((path for path in self.paths if path_problem(path) != ABSENT), None)
        if there is None:
            raise UserError(
                f"{self.slide_id}: its features are neither in the cache nor in the results "
                f"({self.paths[-1].name}); run snakemake again."
            )
        return open_store(there, self.key)


@dataclass(frozen=True, slots=True)
class EmbeddedSlides:
    """All slides of a run with features by an encoder, and what could not be read of the lists."""

    slides: tuple[EmbeddedSlide, ...]
    problems: tuple[str, ...]

    def find(self, cohort: str, slide_id: str) -> int:
        """Return the position of a slide.

        Raises:
            NotThereError: it has no features.
        """
        for number, one in enumerate(self.slides):
            if (one.cohort, one.slide_id) == (cohort, slide_id):
                return number
        raise NotThereError(f"{slide_id}: has no features by this encoder.")


def stored_slides(viewer: Viewer, encoder: str) -> EmbeddedSlides:
    """Find the slides of all cohorts with features by an encoder, by cohort and id.

    Raises:
        NotThereError: the run has no encoder of that name.
    """
    viewer.run.check_encoder(encoder)
    problems: list[str] = []
    found = [
        slide
        for cohort in viewer.run.cohorts.values()
        for slide in _of_cohort(viewer, cohort, encoder, problems)
    ]
    return EmbeddedSlides(tuple(found), tuple(problems))


def _of_cohort(
    viewer: Viewer, cohort: ViewedCohort, encoder: str, problems: list[str]
) -> Iterator[EmbeddedSlide]:
    folder = cohort.folder / "features" / encoder
    if not folder.is_dir():  # a run that has not come to it
        return
    patients = dict(cohort.table.select("slide_id", "patient_id").iter_rows())
    entries: dict[str, FeatureEntry] = {}
    try:
        names = bucket_names(viewer.run, cohort)
    except UserError as error:
        problems.append(str(error))
        return
    for name in names:
        try:
            entries |= read_entries(folder / f"{name}.json", FeatureEntry)
        except UserError as error:
            problems.append(str(error))
    for slide_id, entry in sorted(entries.items()):
        if entry.status != "ok" or entry.key is None or slide_id not in patients:
            continue
        paths = viewer.cache.path("features", entry.key), folder / f"{slide_id}{_SUFFIX}"
        yield EmbeddedSlide(cohort.key, slide_id, patients[slide_id], entry.tiles, entry.key, paths)
