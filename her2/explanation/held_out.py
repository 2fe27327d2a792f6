"""Stage 2, heatmaps: held-out slides, each with the one model that never saw it.

Of several training seeds, that is the model of the first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from her2.config import Task
from her2.config.names import run_name
from her2.explanation.held_out_slides import HeldOutSlide, read_attention, tested_slides
from her2.explanation.tiles import SlideTiles, read_tiles
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, FoldEntry, read_all_entries
from her2.storage.products import find_product


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The held-out slides of an encoder, head and task, with the places of their products.

    `attention` is slide -> (n,), and `models` is run -> (folder, key) for the first repeat.
    """

    task: Task
    slides: tuple[HeldOutSlide, ...]
    attention: Mapping[str, NDArray[np.float32]]
    cache: Cache
    features: Path
    models: Mapping[str, tuple[Path, str]]
    entries: Mapping[str, FeatureEntry]

    def tiles(self, held: HeldOutSlide) -> SlideTiles:
        """Return what the fold that held the slide out stored for its tiles.

        Raises:
            UserError: the fold has no prediction for it, or its features are missing.
        """
        folder, key = self.models[run_name(0, held.fold)]
        name = self.features / f"{held.slide_id}.zarr.zip"
        store = find_product(self.cache, "features", self.entries[held.slide_id].key or "", name)
        attention = self.attention[held.slide_id]
        return read_tiles(held, self.task, attention, model=folder, key=key, store=store)


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
    """Find all slides with features that a fold of the first repeat tested, sorted by name.

    Args:
        task: the task.
        chunks, buckets: names of the entries files.
        cache: holds models and features.
        folds: the task's folds table.
        models: the folder of the chunks' entries.
        features: the encoder's folder of feature entries.

    Raises:
        UserError: a model is missing, or has no valid attention for a slide that it held out.
    """
    entries = read_all_entries(features, buckets, FeatureEntry)
    every = tested_slides(pl.read_parquet(folds), entries, task)
    slides = tuple(slide for slide in every if slide.repeat == 0)
    trained = read_all_entries(models, chunks, FoldEntry)
    found = {
        run: (find_product(cache, "models", trained[run].key, models / run), trained[run].key)
        for run in sorted({run_name(0, slide.fold) for slide in slides})
    }
    attention = read_attention(slides, {run: path for run, (path, _) in found.items()}, entries)
    return HeldOut(
        task=task,
        slides=slides,
        attention={name: values for (name, _), values in attention.items()},
        cache=cache,
        features=features,
        models=found,
        entries=entries,
    )
