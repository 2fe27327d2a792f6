"""Stage 2, explanation: external slides and their attention by the frozen model.

`her2 apply` stored its probabilities and its attention, each the mean over the models of all folds,
none of which saw the cohort. Labels come from the cohort's table, as for the figures.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from her2.cohort.manifest import buckets_of
from her2.config.external_jobs import ExternalAttentionSpec, ExternalHeatmapSpec, Truth
from her2.core.errors import problem_list
from her2.core.tables import read_result, read_row
from her2.core.types import Floats
from her2.evaluation.external.cohort import slide_classes
from her2.evaluation.external.truth import summed
from her2.explanation.sources import Source
from her2.explanation.tiles import SlideTiles, tiles_of_store
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, read_all_entries
from her2.storage.products import FindProduct, find_product


@dataclass(frozen=True, slots=True)
class ExternalSlide:
    """A slide of an external cohort that `count` models together predicted."""

    slide_id: str
    patient_id: str
    label: str | None
    count: int

    @property
    def by(self) -> str:
        """Return who predicted it, to end a sentence."""
        who = f"the mean of {self.count} fold models" if self.count > 1 else "one model"
        return f"by {who},\ndeveloped on other patients"

    @property
    def models(self) -> dict[str, object]:
        """Return the number of models, a column of the lists of pictures."""
        return {"models": self.count}


@dataclass(frozen=True, slots=True)
class External:
    """The predicted slides of an external cohort, with the places of their features.

    `slides` are by name, and `attention` is slide -> (n,). `probabilities` are those of the classes
    of the truth (t,).
    """

    cohort: str
    truth: Truth
    slides: tuple[ExternalSlide, ...]
    attention: Mapping[str, NDArray[np.float32]]
    probabilities: Mapping[str, Floats]
    cache: Cache
    features: Path
    entries: Mapping[str, FeatureEntry]
    find: FindProduct = find_product

    def store(self, slide_id: str) -> Path:
        """Return the feature store of a slide; a missing one is a UserError."""
        name = self.features / f"{slide_id}.zarr.zip"
        return self.find(self.cache, "features", self.entries[slide_id].key or "", name)

    def source(self) -> Source:
        """Return the slides and their attention, to be drawn or measured."""
        slides = {slide.slide_id: slide for slide in self.slides}
        return Source(
            class_names=self.truth.truth.class_names,
            kind="external slide",
            slides=self.slides,
            attention=self.attention,
            tiles=lambda name: self._tiles(slides[name]),
            store=self.store,
            masks_key=f"validation.{self.cohort}.masks",
        )

    def _tiles(self, slide: ExternalSlide) -> SlideTiles:
        return tiles_of_store(
            self.store(slide.slide_id),
            slide,
            class_names=self.truth.truth.class_names,
            attention=self.attention[slide.slide_id],
            probabilities=self.probabilities[slide.slide_id].tolist(),
            model={"cohort": self.cohort, **slide.models},
        )


def find_external(
    spec: ExternalHeatmapSpec | ExternalAttentionSpec,
    cache: Cache,
    *,
    predictions: Path,
    table: Path,
    features: Path,
    only: str | None = None,
    find: FindProduct = find_product,
) -> External:
    """Find all slides of an external cohort that were predicted, with or without a label.

    Args:
        spec: the job.
        cache: holds the features.
        predictions: the folder that `her2 apply` wrote.
        table: the cohort's table of slides.
        features: the encoder's folder of feature entries of the cohort.
        only: id of a slide; no entry or attention of others is then read.
        find: finds products.

    Raises:
        UserError: predictions and features do not go together, or patients have labels of
            different classes that the rule does not settle.
    """

    def read(name: str) -> pl.DataFrame:
        path = predictions / f"{name}.parquet"
        return read_result(path) if only is None else read_row(path, "slide_id", only)

    given, stored = read("predictions").sort("slide_id"), read("attention")
    buckets = spec.buckets if only is None else buckets_of(only, spec.buckets)
    entries = read_all_entries(features, buckets, FeatureEntry)
    listed = read_result(table).unique("slide_id", keep="first", maintain_order=True)
    if only is not None:  # with the others of its patient, whose labels may decide about it
        owner = listed.filter(pl.col("slide_id") == only)["patient_id"]
        listed = listed.filter(pl.col("patient_id").is_in(owner.to_list()))
    known = slide_classes(listed, spec)
    owners = dict(known.select("slide_id", "patient_id").iter_rows())
    classes = dict(known.select("slide_id", "target").iter_rows())
    attention = {
        name: np.asarray(values.to_numpy(), np.float32)
        for name, values in zip(stored["slide_id"], stored["attention"], strict=True)
    }
    columns = [f"prob_{name}" for name in spec.truth.task.class_names]
    values = given.select(columns).cast(pl.Float64).to_numpy().reshape(len(given), len(columns))
    names, sums = given["slide_id"].to_list(), summed(values, spec.truth)
    problems = [
        f"{name}: {problem}"
        for name, own in zip(names, sums, strict=True)
        if (problem := _problem(attention.get(name), own, entries.get(name), name in owners))
    ]
    if problems:
        raise problem_list(
            f"{predictions}: what was predicted does not fit the slides and features of "
            f"validation.{spec.cohort}; delete the folder and run snakemake again",
            problems,
        )
    return External(
        cohort=spec.cohort,
        truth=spec.truth,
        slides=tuple(
            ExternalSlide(name, owners[name], _label(spec.truth, classes[name]), count)
            for name, count in given.select("slide_id", "models").iter_rows()
        ),
        attention=attention,
        probabilities=dict(zip(names, sums, strict=True)),
        cache=cache,
        features=features,
        entries=entries,
        find=find,
    )


def _label(truth: Truth, index: int | None) -> str | None:
    return None if index is None else truth.truth.class_names[index]


def _problem(
    attention: NDArray[np.float32] | None,
    probabilities: Floats,
    entry: FeatureEntry | None,
    listed: bool,
) -> str | None:
    """Return why a predicted slide cannot be explained, or None."""
    if not listed:
        return "is not in the cohort's table"
    if entry is None or entry.status != "ok":
        return "has no features"
    if attention is None:
        return "has no attention"
    if len(attention) != entry.tiles:
        return f"has attention for {len(attention)} tiles but features of {entry.tiles} tiles"
    if not np.isfinite(attention).all():
        return "has attention that is not finite"
    if not np.isfinite(probabilities).all():
        return "has probabilities that are not finite"
    return None
