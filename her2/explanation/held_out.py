"""Stage 2, heatmaps: which slides are drawn, and the one model that never saw each of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from her2.cache import Cache
from her2.config import Task
from her2.explanation.tiles import Held, SlideTiles, read_tiles
from her2.manifest import FeatureEntry, FoldEntry, read_manifests
from her2.plan import run_name
from her2.products import find_product


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The held-out slides of an encoder, head and task, and where what is known of them lies."""

    task: Task
    slides: tuple[Held, ...]
    cache: Cache
    models: Path
    features: Path
    folds: Mapping[str, FoldEntry]
    entries: Mapping[str, FeatureEntry]

    def tiles(self, held: Held) -> SlideTiles:
        """What the fold that held the slide out says of its tiles.

        Raises:
            UserError: the fold has no attention of it, or a product is lost.
        """
        folder, key = self.model(held.fold)
        name = self.features / f"{held.slide_id}.zarr.zip"
        store = self.entries[held.slide_id].key or ""
        store_path = find_product(self.cache, "features", store, name)
        return read_tiles(held, self.task, folder, key, store_path)

    def model(self, fold: int) -> tuple[Path, str]:
        """Folder and key of a fold's model, of the first repeat."""
        run = run_name(0, fold)
        key = self.folds[run].key
        return find_product(self.cache, "models", key, self.models / run), key

    def attention(self) -> list[NDArray[np.float32]]:
        """Of each slide, in order: (n,), by the fold that held it out.

        Raises:
            UserError: a fold has none of a slide.
        """
        found: dict[int, dict[str, pl.Series]] = {}
        for fold in sorted({held.fold for held in self.slides}):
            table = pl.read_parquet(self.model(fold)[0] / "attention.parquet")
            found[fold] = dict(zip(table["slide_id"], table["attention"], strict=True))
        return [
            np.asarray(found[held.fold][held.slide_id].to_numpy(), np.float32)
            for held in self.slides
        ]


def find_held_out(
    task: Task,
    chunks: Sequence[str],
    buckets: Sequence[str],
    cache: Cache,
    *,
    folds: Path,
    models: Path,
    features: Path,
) -> HeldOut:
    """All slides with features that some fold of the first repeat tested, sorted by name.

    Args:
        task: the task.
        chunks, buckets: names of the manifests.
        cache: holds models and features.
        folds: the task's folds table.
        models: the folder of the chunks' manifests.
        features: the encoder's folder of feature manifests.
    """
    entries = read_manifests(features, buckets, FeatureEntry)
    usable = [name for name, entry in entries.items() if entry.status == "ok" and entry.key]
    table = pl.read_parquet(folds).filter(
        (pl.col("repeat") == 0) & (pl.col("role") == "test") & pl.col("slide_id").is_in(usable)
    )
    columns = table.sort("slide_id").select("slide_id", "patient_id", "label", "fold")
    return HeldOut(
        task=task,
        slides=tuple(Held(*row) for row in columns.iter_rows()),
        cache=cache,
        models=models,
        features=features,
        folds=read_manifests(models, chunks, FoldEntry),
        entries=entries,
    )


def choose(slides: Sequence[Held], number: int, seed: int) -> list[Held]:
    """A seeded choice, the classes in turn so that each gets its share; sorted by class."""
    order = np.random.default_rng(seed).permutation(len(slides))
    by_class: dict[int, list[Held]] = {}
    for index in order:
        by_class.setdefault(slides[index].label, []).append(slides[index])
    chosen: list[Held] = []
    while len(chosen) < number and any(by_class.values()):
        for label in sorted(by_class):
            if by_class[label] and len(chosen) < number:
                chosen.append(by_class[label].pop(0))
    return sorted(chosen, key=lambda held: (held.label, held.slide_id))
