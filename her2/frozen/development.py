"""What a model was developed on: counts and distributions, without data of single patients.

A bundle carries it, so that whoever predicts a slide elsewhere can be told where the slide lies
outside of it (`her2.frozen.cautions`).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from her2.config import Task
from her2.core.errors import UserError
from her2.core.section import Section
from her2.core.tables import read_result
from her2.evaluation.controls.covariates import MISSING, NUMBERS, covariates_of
from her2.frozen.distance import EmbeddingReference, embedding_reference
from her2.frozen.distribution import Distribution, distribution, shown
from her2.frozen.stores import bucket_names, development_slides, stores_of
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, read_all_entries

UNITS = {"tissue": "mm2", "size": "px"}
"""Units of covariates whose label does not have it."""


class Count(Section):
    """Patients and slides of a class, a site, or another group."""

    name: str
    patients: int
    slides: int


class ClassAtSite(Section):
    """Patients and slides of a class at a site."""

    class_name: str
    site: str
    patients: int
    slides: int


class Number(Section):
    """A numeric covariate of the slides; `label` and `unit` are for people."""

    name: str
    label: str
    unit: str
    distribution: Distribution


class Category(Section):
    """A categorical covariate of the slides, with the slides of each value."""

    name: str
    label: str
    values: tuple[Count, ...]


class Development(Section):
    """The slides with features and a label that a frozen model was trained and tested on.

    Attributes:
        patients, slides: number of them.
        classes: of the task, in its order; one without slides has zeros.
        sites: sorted by name; `(missing)` where the manifest has none.
        classes_at_sites: those that have slides.
        vendors: what wrote the files.
        numbers: covariates, among them `mpp` (um/px), `tissue` (mm2) and `tiles` (per slide).
        categories: covariates, among them `site` and `scanner`.
        embeddings: how the slides look to the encoder; None for too few patients.
    """

    patients: int
    slides: int
    classes: tuple[Count, ...]
    sites: tuple[Count, ...]
    classes_at_sites: tuple[ClassAtSite, ...]
    vendors: tuple[Count, ...]
    numbers: tuple[Number, ...]
    categories: tuple[Category, ...]
    embeddings: EmbeddingReference | None

    def number(self, name: str) -> Distribution | None:
        """Return the distribution of a covariate; None if no slide has a value."""
        return next((one.distribution for one in self.numbers if one.name == name), None)

    def known(self, name: str) -> tuple[Count, ...]:
        """Return the values of `vendor` or a categorical covariate that slides have."""
        found = {one.name: one.values for one in self.categories} | {"vendor": self.vendors}
        return tuple(value for value in found.get(name, ()) if value.name != MISSING)

    def sentences(self) -> tuple[str, ...]:
        """Return the facts in lines for people, such as those of a model card."""
        lines = [
            f"{self.slides:,} slides of {self.patients:,} patients",
            f"classes: {_listed(self.classes)}",
            f"sites: {_listed(self.sites)}",
            f"files from: {_listed(self.vendors)}",
        ]
        lines += [
            f"{one.label}: {_listed(one.values)}"
            for one in self.categories
            if one.name != "site" and self.known(one.name)
        ]
        lines += [
            f"{one.label}{one.unit and f' ({one.unit})'}: median {shown(one.distribution.at(50))}, "
            f"{shown(one.distribution.lowest)} to {shown(one.distribution.highest)}"
            for one in self.numbers
        ]
        return tuple(lines)


def read_development(
    folds: Path,
    cohort: Path,
    features: Path,
    *,
    grid: str,
    task: Task,
    columns: Sequence[str] = (),
    buckets: Sequence[str] = (),
    cache: Cache | None = None,
) -> Development:
    """Read what the models of a task and encoder were developed on from a results folder.

    Args:
        folds: the task's folds table.
        cohort: the cohort's table, `cohort/slides.parquet`.
        features: the encoder's folder of feature entries.
        grid: the encoder's grid.
        task: the task.
        columns: further columns of the manifest that are covariates (`evaluation.covariates`).
        buckets: names of the entries files; default: those in the folder.
        cache: where the stores are; None for the links in `features`.

    Raises:
        UserError: tables or features do not go together, are absent or were changed.
    """
    slides = development_slides(read_result(folds))
    entries = read_all_entries(features, buckets or bucket_names(features), FeatureEntry)
    stores = stores_of(slides["slide_id"], entries, features, cache)
    used = slides.filter(pl.col("slide_id").is_in(list(stores)))
    patients = dict(used.select("slide_id", "patient_id").iter_rows())
    table = read_result(cohort).filter(pl.col("grid") == grid)
    return development_of(
        used, table, task, columns=columns, embeddings=embedding_reference(stores, patients)
    )


def development_of(
    slides: pl.DataFrame,
    cohort: pl.DataFrame,
    task: Task,
    *,
    columns: Sequence[str] = (),
    embeddings: EmbeddingReference | None = None,
) -> Development:
    """Return the facts of development slides.

    Args:
        slides: `slide_id, patient_id, label` (class index) of those with features and a label.
        cohort: the rows of the cohort's table for the encoder's grid, one per slide.
        task: the task, for the names of its classes.
        columns: further columns of the manifest that are covariates.
        embeddings: the reference of their embeddings.

    Raises:
        UserError: there is no slide, the cohort's table lacks one, or one of `columns`.
    """
    lacking = sorted(set(slides["slide_id"]) - set(cohort["slide_id"]))
    if lacking or not len(slides):
        raise UserError(
            "the cohort's table lacks slides of the folds table on this grid "
            f"({', '.join(lacking[:5]) or 'it has none'}). Run snakemake again."
        )
    table = slides.join(cohort.select("slide_id", "vendor", "site"), on="slide_id", how="left")
    table = table.with_columns(
        pl.col("vendor", "site").fill_null(MISSING),
        class_name=pl.col("label").replace_strict(
            dict(enumerate(task.class_names)), return_dtype=pl.String
        ),
    )
    by_class = {one.name: one for one in _counts(table, "class_name")}
    at_sites = _grouped(table, "class_name", "site").iter_rows(named=True)
    place = task.class_names.index
    numbers, categories = _covariates(table, cohort, columns)
    return Development(
        patients=table["patient_id"].n_unique(),
        slides=len(table),
        classes=tuple(
            by_class.get(name, Count(name=name, patients=0, slides=0)) for name in task.class_names
        ),
        sites=_counts(table, "site"),
        classes_at_sites=tuple(
            sorted(
                (ClassAtSite(**row) for row in at_sites),
                key=lambda one: (place(one.class_name), one.site),
            )
        ),
        vendors=_counts(table, "vendor"),
        numbers=numbers,
        categories=categories,
        embeddings=embeddings,
    )


def _covariates(
    table: pl.DataFrame, cohort: pl.DataFrame, columns: Sequence[str]
) -> tuple[tuple[Number, ...], tuple[Category, ...]]:
    """Return the covariates of the controls, in their own units."""
    found = covariates_of(cohort, table["slide_id"].to_list(), columns=columns)
    owners = table.select("slide_id", "patient_id")
    numbers, categories = [], []
    for name, described in zip(
        found.table.columns[1:], found.inputs.iter_rows(named=True), strict=True
    ):
        label = described["covariate"]
        if described["kind"] == "category":
            values = owners.join(found.table.select("slide_id", name), on="slide_id")
            categories.append(Category(name=name, label=label, values=_counts(values, name)))
            continue
        known = found.table[name].drop_nulls().to_numpy()
        known = np.exp(known) if name in NUMBERS else known  # of these it has the logarithm
        if len(known):
            spread = distribution(known, missing=described["missing"])
            unit = UNITS.get(name, "")
            numbers.append(Number(name=name, label=label, unit=unit, distribution=spread))
    return tuple(numbers), tuple(categories)


def _listed(counts: Sequence[Count]) -> str:
    return "; ".join(
        f"{one.name} ({one.slides:,} slides of {one.patients:,} patients)" for one in counts
    )


def _counts(table: pl.DataFrame, column: str) -> tuple[Count, ...]:
    """Return patients and slides of each value of a column, sorted."""
    grouped = _grouped(table, column)
    return tuple(
        Count(name=row[column], patients=row["patients"], slides=row["slides"])
        for row in grouped.iter_rows(named=True)
    )


def _grouped(table: pl.DataFrame, *columns: str) -> pl.DataFrame:
    return (
        table.group_by(columns)
        .agg(patients=pl.col("patient_id").n_unique(), slides=pl.len())
        .sort(columns)
    )
