"""Stage 2, explanation: held-out slides and their attention by models that never saw them.

Of several training seeds, these are the models of the first.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from her2.cohort.folds import check_disjoint
from her2.cohort.manifest import buckets_of
from her2.config import Task
from her2.config.jobs import AttentionSpec, HeatmapSpec
from her2.config.names import run_name
from her2.core.errors import UserError
from her2.core.tables import read_result, read_row
from her2.explanation.sources import Source
from her2.explanation.tiles import SlideTiles, tiles_of_store
from her2.mil.maps import MAPS_NAME, read_maps
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, read_all_entries, read_folds
from her2.storage.fold_files import check_fold, read_fold_card
from her2.storage.products import FindProduct, find_product

_READ = ("attention.parquet", "predictions.parquet", MAPS_NAME)
"""The files of a fold that explanations read."""


@dataclass(frozen=True, slots=True)
class HeldOutSlide:
    """A labelled slide with features, and the repeat and fold that tested it."""

    slide_id: str
    patient_id: str
    label: str
    repeat: int
    fold: int

    @property
    def run(self) -> str:
        """Return the run whose model never saw its patient."""
        return run_name(self.repeat, self.fold)

    @property
    def by(self) -> str:
        """Return who predicted it, to end a sentence."""
        return f"by the model of fold {self.fold}, which never saw the patient"

    @property
    def models(self) -> dict[str, object]:
        """Return the fold, a column of the lists of pictures."""
        return {"fold": self.fold}


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The held-out slides of an encoder, head and task, with the places of their products.

    `slides` are by name and repeat, `attention` is (slide, repeat) -> (n,), and `models` is run ->
    (folder, key). `repeats` counts those of the cross-validation.
    """

    task: Task
    repeats: int
    slides: tuple[HeldOutSlide, ...]
    attention: Mapping[tuple[str, int], NDArray[np.float32]]
    models: Mapping[str, tuple[Path, str]]
    cache: Cache
    features: Path
    entries: Mapping[str, FeatureEntry]
    find: FindProduct = find_product

    def store(self, slide_id: str) -> Path:
        """Return the feature store of a slide; a missing one is a UserError."""
        name = self.features / f"{slide_id}.zarr.zip"
        return self.find(self.cache, "features", self.entries[slide_id].key or "", name)

    def source(self) -> Source:
        """Return the slides and attention of the first repeat, to be drawn or measured."""
        first = {slide.slide_id: slide for slide in self.slides if slide.repeat == 0}
        return Source(
            class_names=self.task.class_names,
            kind="held-out slide",
            slides=tuple(first.values()),
            attention={name: self.attention[name, 0] for name in first},
            tiles=lambda name: read_tiles(self, first[name]),
            store=self.store,
            masks_key="cohort.masks",
        )


def find_held_out(
    spec: AttentionSpec | HeatmapSpec,
    cache: Cache,
    *,
    folds: Path,
    models: Path,
    features: Path,
    repeat: int | None = 0,
    only: str | None = None,
    check: Callable[[Path, Iterable[str]], None] = check_fold,
    find: FindProduct = find_product,
) -> HeldOut:
    """Find all slides with features that a fold tested, of the first repeat or of others.

    Slides of a fold without a model are left out.

    Args:
        spec: the job.
        cache: holds the models and features.
        folds: the task's folds table.
        models: the folder of the chunks' entries.
        features: the encoder's folder of feature entries.
        repeat: the repeat that slides are found for; None: every one.
        only: id of a slide; no entry or attention of others is then read.
        check: checks some files of a fold as `check_fold` does, for one who remembers them.
        find: finds products.

    Raises:
        UserError: a model is missing or was changed, or a slide's attention is absent, not finite
            or does not match its tiles.
    """
    table = read_result(folds)
    check_disjoint(table)
    buckets = spec.buckets if only is None else buckets_of(only, spec.buckets)
    entries = read_all_entries(features, buckets, FeatureEntry)
    trained = read_folds(models, spec.chunks)
    usable = [name for name, one in entries.items() if one.status == "ok" and only in (None, name)]
    tested = table.filter((pl.col("role") == "test") & pl.col("slide_id").is_in(usable))
    rows = tested.select("slide_id", "patient_id", "label", "repeat", "fold")
    slides = tuple(
        HeldOutSlide(slide_id, patient_id, spec.task.class_names[label], number, fold)
        for slide_id, patient_id, label, number, fold in rows.sort("slide_id", "repeat").iter_rows()
        if repeat in (None, number) and run_name(number, fold) in trained
    )
    found = {}
    for run in sorted({slide.run for slide in slides}):
        key = trained[run].key
        found[run] = find(cache, "models", key, models / run), key
        check(found[run][0], _READ)
    return HeldOut(
        task=spec.task,
        repeats=table["repeat"].n_unique(),
        slides=slides,
        attention=_attention(slides, found, entries, only),
        models=found,
        cache=cache,
        features=features,
        entries=entries,
        find=find,
    )


def runs_of(
    spec: AttentionSpec | HeatmapSpec, slide_id: str, *, folds: Path, models: Path
) -> dict[str, tuple[int, int]]:
    """Return the runs that tested a slide, each as its repeat and fold.

    Raises:
        UserError: the folds cannot be read, or no fold could be trained.
    """
    trained = read_folds(models, spec.chunks)
    tested = read_result(folds).filter(
        (pl.col("role") == "test") & (pl.col("slide_id") == slide_id)
    )
    rows = tested.select("repeat", "fold").sort("repeat").iter_rows()
    return {run_name(*row): row for row in rows if run_name(*row) in trained}


def read_tiles(held_out: HeldOut, held: HeldOutSlide) -> SlideTiles:
    """Read what the model that never saw a slide stored for its tiles.

    Raises:
        UserError: the fold has no prediction for the slide, its features are missing, or a map of
            it is not finite or does not match its tiles and the model's outputs.
    """
    task, (model, key) = held_out.task, held_out.models[held.run]
    attention = held_out.attention[held.slide_id, held.repeat]
    table = read_row(model / "predictions.parquet", "slide_id", held.slide_id)
    probabilities = table.select(f"prob_{name}" for name in task.class_names)
    if len(probabilities) != 1:
        raise unusable(held, f"has no prediction in {model}")
    try:
        outputs = read_fold_card(model)["outputs"]
    except (ValueError, KeyError) as error:
        raise unusable(
            held, f"has a model in {model} whose card cannot be used ({error})"
        ) from None
    maps = {}
    for kind, values in read_maps(model, held.slide_id).items():
        shape, whose = (len(attention), len(outputs)), f"its map {kind} in {model}"
        if values.shape != shape:
            raise unusable(held, f"{whose} is {values.shape}, not (tiles, outputs) {shape}")
        if not np.isfinite(values).all():  # JSON cannot express NaN
            raise unusable(held, f"{whose} is not finite")
        for column, name in enumerate(outputs):
            maps[f"{kind}_{name}"] = np.ascontiguousarray(values[:, column])
    found = probabilities.row(0)
    # Like `her2.mil.model.Prediction`: for an ordered task, the highest threshold that is passed.
    thresholds = len(outputs) < len(task.class_names)
    shown = f"contribution_{outputs[max(0, int(np.argmax(found)) - thresholds)]}"
    return tiles_of_store(
        held_out.store(held.slide_id),
        held,
        class_names=task.class_names,
        attention=attention,
        probabilities=found,
        model={"model": key, "repeat": held.repeat, "fold": held.fold},
        maps=maps,
        shown=shown if shown in maps else None,
    )


def unusable(slide: HeldOutSlide, problem: str) -> UserError:
    """Return the error about what a fold stored for a slide."""
    again = "Delete the models' entries files and run snakemake again."
    return UserError(f"{slide.slide_id}: {problem}. {again}")


def _attention(
    slides: Sequence[HeldOutSlide],
    models: Mapping[str, tuple[Path, str]],
    entries: Mapping[str, FeatureEntry],
    only: str | None,
) -> dict[tuple[str, int], NDArray[np.float32]]:
    found = {}
    for run, (folder, _) in models.items():
        path = folder / "attention.parquet"
        table = read_result(path) if only is None else read_row(path, "slide_id", only)
        rows = {name: index for index, name in enumerate(table["slide_id"])}
        for slide in (slide for slide in slides if slide.run == run):
            index, tiles = rows.get(slide.slide_id), entries[slide.slide_id].tiles
            if index is None:
                raise unusable(slide, f"has no attention in {folder}")
            values = np.asarray(table["attention"][index].to_numpy(), np.float32)
            if len(values) != tiles:
                found_tiles = f"has attention for {len(values)} tiles but features of {tiles} tiles"
                raise unusable(slide, f"{found_tiles} in {folder}")
            if not np.isfinite(values).all():
                raise unusable(slide, f"has attention that is not finite in {folder}")
            found[slide.slide_id, slide.repeat] = values
    return found
