"""`her2 view`: what may be looked at, by name: the cohorts, slides and models of a finished run.

Nothing else can be asked for: a request names a cohort and a slide, and their files are looked up
here. So no path ever comes from outside.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from her2.cohort.audit import read_cohort_table
from her2.cohort.manifest import Cohort, SlideRow
from her2.cohort.reading import read_slides
from her2.config import CohortSection, Config, ValidationSection
from her2.config.names import cohort_folder
from her2.core.errors import UserError
from her2.explanation.places import RunPlaces
from her2.frozen.bundle.asked import Wanted

DEVELOPMENT = "development"
"""Key of the development cohort."""
EXTERNAL = "external:"
"""Begins the keys of external cohorts; no name in a config has a colon."""


class NotThereError(Exception):
    """What a request asks for by name does not exist; the message is for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewedCohort:
    """A cohort as the run left it.

    Attributes:
        key: its name in addresses.
        title: its name for people.
        synthetic: whether its slides were drawn by a program.
        folder: its part of the results; for the development cohort the results themselves.
        table: its `slides.parquet`, one row per slide and grid.
        cohort: its manifest as it is now, which has the paths.
        rows: slide id -> row of that manifest.
        masks: folder of ground truths, if any.
    """

    key: str
    title: str
    synthetic: bool
    folder: Path
    table: pl.DataFrame
    cohort: Cohort
    rows: Mapping[str, SlideRow]
    masks: Path | None

    @property
    def external(self) -> str | None:
        """Return its name in the config's `validation`, or None for the development cohort."""
        return self.key.removeprefix(EXTERNAL) if self.key.startswith(EXTERNAL) else None

    @property
    def slide_ids(self) -> tuple[str, ...]:
        """Return the ids of its slides, sorted, whether they could be used or not."""
        return tuple(self.table["slide_id"].unique().sort())

    def row(self, slide_id: str) -> SlideRow:
        """Return a slide's row of the manifest.

        Raises:
            NotThereError: the cohort has no such slide, or it is absent from the manifest now.
        """
        if slide_id not in self.rows:
            raise NotThereError(f"{self.title}: has no slide of that id in its manifest.")
        return self.rows[slide_id]

    def file(self, slide_id: str) -> Path:
        """Return the path of a slide's file.

        Raises:
            NotThereError: there is no such slide, or it has no file: only features came.
        """
        row = self.row(slide_id)
        if not row.path:
            raise NotThereError(f"{slide_id}: there is no slide file, only its features.")
        return self.cohort.file(row)


@dataclass(frozen=True, slots=True)
class ViewedRun:
    """A finished run: its config, cohorts by key, and evaluated models by key."""

    folder: Path
    places: RunPlaces
    cohorts: Mapping[str, ViewedCohort]
    models: Mapping[str, Wanted]

    @property
    def config(self) -> Config:
        """Return the config of the run."""
        return self.places.config

    def cohort(self, key: str) -> ViewedCohort:
        """Return a cohort by key.

        Raises:
            NotThereError: there is none.
        """
        if key not in self.cohorts:
            raise NotThereError(
                f"there is no cohort of that name; there are {', '.join(self.cohorts)}."
            )
        return self.cohorts[key]

    def model(self, key: str) -> Wanted:
        """Return a model by key, `task/encoder/head`.

        Raises:
            NotThereError: there is none.
        """
        if key not in self.models:
            raise NotThereError(
                f"there is no model of that name; there are {', '.join(self.models)}."
            )
        return self.models[key]


def open_run(results: Path, config: Config | None = None) -> ViewedRun:
    """Open a finished run to look at it.

    Args:
        results: the results folder.
        config: says where slides and cache are; default: the config of the report.

    Raises:
        UserError: it is none, or is not finished.
    """
    if not results.is_dir():
        raise UserError(f"{results}: is no folder; give the results of a run.")
    places = RunPlaces.of(results, config)
    own = places.config
    cohorts = [
        _cohort(places, DEVELOPMENT, "development", own.cohort, results),
        *(
            _cohort(places, EXTERNAL + name, name, section, results / cohort_folder(name))
            for name, section in own.validation.items()
        ),
    ]
    found = sorted(
        path.parent.relative_to(results / "evaluation").parts
        for path in results.glob("evaluation/*/*/*/predictions.parquet")
    )
    return ViewedRun(
        folder=results,
        places=places,
        cohorts={one.key: one for one in cohorts},
        models={"/".join(names): Wanted(results, *names) for names in found},
    )


def _cohort(
    places: RunPlaces,
    key: str,
    title: str,
    section: CohortSection | ValidationSection,
    folder: Path,
) -> ViewedCohort:
    manifest = read_slides(
        places.root / section.slides, root=places.path(section.root), absent=True
    )
    return ViewedCohort(
        key=key,
        title=title,
        synthetic=places.config.cohort.synthetic,
        folder=folder,
        table=read_cohort_table(folder / "cohort"),
        cohort=manifest,
        rows={row.slide_id: row for row in manifest.rows},
        masks=places.path(section.masks),
    )
