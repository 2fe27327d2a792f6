"""`her2 view`: what may be looked at, by name: the cohorts, slides and models of a finished run.

Nothing else can be asked for: a request names a cohort and a slide, and their files are looked up
here. So no path ever comes from outside.
"""

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import polars as pl

from her2.cohort.audit import TABLE_NAME, read_cohort_table
from her2.cohort.manifest import Cohort, SlideRow
from her2.cohort.reading import read_slides
from her2.config import CohortSection, Config, ValidationSection
from her2.config.names import cohort_folder
from her2.core.errors import UserError
from her2.explanation.places import RunPlaces
from her2.frozen.bundle.asked import Wanted

log = logging.getLogger(__name__)

DEVELOPMENT = "development"
"""Key of the development cohort."""
PREDICTED = "predicted"
"""Key of the slides of `--bundle-predictions`."""
EXTERNAL = "external:"
"""Begins the keys of external cohorts; no name in a config has a colon."""
NO_FILE = "there is no slide file, only its features."


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
        drawn: folder of the slides that `her2 predict --heatmaps` has drawn, if any.
        tile_px: px per side of tiles as the encoder saw them, where no config says so.
    """

    key: str
    title: str
    synthetic: bool
    folder: Path
    table: pl.DataFrame
    cohort: Cohort
    rows: Mapping[str, SlideRow]
    masks: Path | None
    drawn: Path | None = None
    tile_px: int | None = None

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
            raise NotThereError(f"{self.title}: has no slide of that id.")
        return self.rows[slide_id]

    def file(self, slide_id: str) -> Path:
        """Return the path of a slide's file.

        Raises:
            NotThereError: there is no such slide, or it has no file: only features came.
        """
        row = self.row(slide_id)
        if not row.path:
            raise NotThereError(f"{slide_id}: {NO_FILE}")
        return self.cohort.file(row)


@dataclass(frozen=True, slots=True)
class ViewedRun:
    """A run: its absolute folder, its config, cohorts by key, and evaluated models by key.

    The run may be going on: it has what is there of it when it is opened.
    """

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

    def check_encoder(self, name: str) -> None:
        """Check that the run has an encoder of this name.

        Raises:
            NotThereError: it has none.
        """
        if name not in self.config.encoders:
            raise NotThereError(
                f"there is no encoder of that name; there are {', '.join(self.config.encoders)}."
            )


def open_run(results: Path, config: Config | None = None) -> ViewedRun:
    """Open a run to look at it.

    Args:
        results: the results folder.
        config: says where slides and cache are; default: the config of the report. With it, a run
            can be looked at that is not finished, as far as it is.

    Raises:
        UserError: it is none, or has not come to the cohort's table.
    """
    if not results.is_dir():
        raise UserError(
            f"{results}: is no folder; name the results of a run: her2 view path/to/results"
        )
    results = results.absolute()
    places = RunPlaces.of(results, config)
    own = places.config
    cohorts = [_cohort(places, DEVELOPMENT, "development", own.cohort, results)]
    for name, section in own.validation.items():
        folder = results / cohort_folder(name)
        if (folder / "cohort" / TABLE_NAME).is_file():
            cohorts.append(_cohort(places, EXTERNAL + name, name, section, folder))
        else:
            log.warning("the external cohort %s has no table yet, and is left out", name)
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


def page_of(run: ViewedRun, wanted: str) -> str:
    """Return the address of a slide's page, quoted.

    Args:
        run: the run.
        wanted: the slide's id or, where several cohorts have it, `COHORT/ID`; of an external
            cohort the name is enough.

    Raises:
        UserError: there is no such slide, or several; with the names that are meant perhaps.
    """
    named = {
        f"{name}/{slide_id}": (key, slide_id)
        for key, cohort in run.cohorts.items()
        for name in dict.fromkeys((key, cohort.title))
        for slide_id in cohort.slide_ids
    }
    found = {where for name, where in named.items() if wanted in (name, where[1])}
    if len(found) == 1:
        ((key, slide_id),) = found
        return f"/slides/{quote(key, safe=':')}/{quote(slide_id, safe='')}"
    if found:
        names = " or ".join(sorted(f"{key}/{slide_id}" for key, slide_id in found))
        raise UserError(f"{wanted}: several cohorts have this slide; name {names}.")
    known = {*named, *(slide_id for _, slide_id in named.values())}
    near = difflib.get_close_matches(wanted, known, 3, cutoff=0.5)
    meant = f"; do you mean {' or '.join(near)}?" if near else "."
    raise UserError(f"{wanted}: no cohort has this slide{meant}")


def _cohort(
    places: RunPlaces,
    key: str,
    title: str,
    section: CohortSection | ValidationSection,
    folder: Path,
) -> ViewedCohort:
    table = read_cohort_table(folder / "cohort")  # first: without it there is nothing to see
    manifest = read_slides(
        places.root / section.slides, root=places.path(section.root), absent=True
    )
    return ViewedCohort(
        key=key,
        title=title,
        synthetic=places.config.cohort.synthetic,
        folder=folder,
        table=table,
        cohort=manifest,
        rows={row.slide_id: row for row in manifest.rows},
        masks=places.path(section.masks),
    )
