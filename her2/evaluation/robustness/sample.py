"""Stage 2, robustness: a sample of tiles of the cohort, the same for every encoder.

At most `PATIENTS` patients, evenly from the sites, and of each the same number of tiles, evenly
from at most `SLIDES` of their slides. Which tiles of a slide is decided by a hash of their
position, so encoders of one grid have the same tiles, also where some could not be read for one of
them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from her2.core.files import digest
from her2.core.types import Floats, Ints
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry
from her2.storage.features import open_store, read_coords
from her2.storage.products import find_product

PATIENTS = 1000
"""Most patients. More make the probes dearer (by their cube) and hardly more precise."""
SLIDES = 16
"""Most slides of a patient, so that a cohort of many slides a patient costs no more either."""
READ = 64
"""Tiles of a patient that their slides' mean embeddings are computed from."""
KEPT = 32
"""Most tiles of a patient that are kept as rows: for neighbours, covariance and similarity."""
TILES = 16_000
"""Most tiles that are kept in all: 100 MB of 1,536 features."""


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """Features of the sampled tiles and slides by one encoder.

    Attributes:
        means: mean embedding of each slide (s, d), in the order of the sample.
        tiles: features of the tiles that are kept (t, d), float32.
        owner: index of each tile's slide (t,).
        places: top left corner of each tile (t, 2), level-0 px.
    """

    means: Floats
    tiles: NDArray[np.float32]
    owner: Ints
    places: NDArray[np.int32]


def draw_slides(cohort: pl.DataFrame, usable: Collection[str], *, seed: int) -> pl.DataFrame:
    """Return the slides of the sample, sorted, with the patients drawn evenly from the sites.

    Of a patient with more than `SLIDES` slides, so many are drawn.

    Args:
        cohort: one row per slide, with `slide_id, patient_id, site`.
        usable: the slides that have features by every encoder.
        seed: of the draw.
    """
    table = cohort.filter(pl.col("slide_id").is_in(list(usable))).sort("slide_id")
    patients = table.group_by("patient_id").agg(pl.col("site").drop_nulls().first())
    patients = patients.with_columns(
        lot=pl.Series([digest([seed, name]) for name in patients["patient_id"]], dtype=pl.String)
    )
    turns = patients.with_columns(turn=pl.col("lot").rank("ordinal").over("site"))
    drawn = turns.sort("turn", "lot").head(PATIENTS)["patient_id"]
    table = table.filter(pl.col("patient_id").is_in(drawn.implode()))
    lots = pl.Series("lot", [digest([seed, name]) for name in table["slide_id"]], dtype=pl.String)
    kept = pl.col("lot").rank("ordinal").over("patient_id") <= SLIDES
    return table.with_columns(lots).filter(kept).drop("lot")


def read_sample(
    slides: pl.DataFrame,
    entries: Mapping[str, FeatureEntry],
    features: Path,
    cache: Cache,
    *,
    seed: int,
) -> Sampled:
    """Read the features of the sampled tiles by one encoder; no other rows of a store are read.

    Args:
        slides: the slides of the sample.
        entries: the encoder's entries, in which all of them are usable.
        features: the encoder's folder of entries.
        cache: the cache with the stores.
        seed: of the draw.

    Raises:
        UserError: a store is absent or damaged.
    """
    sizes = dict(slides.group_by("patient_id").len().iter_rows())
    kept = min(KEPT, max(1, TILES // max(1, len(sizes))))
    means, tiles, owner, places = [], [], [], []
    for index, (slide_id, patient_id) in enumerate(
        slides.select("slide_id", "patient_id").iter_rows()
    ):
        key = entries[slide_id].key
        assert key is not None
        path = find_product(cache, "features", key, features / f"{slide_id}.zarr.zip")
        store, coords = open_store(path), read_coords(path)
        order = _order(coords, int(digest([seed, slide_id])[:15], 16))
        read, keep = (-(-number // sizes[patient_id]) for number in (READ, kept))
        rows = order[: max(read, keep)]
        values = store.gather(rows).astype(np.float32)
        means.append(values.mean(axis=0, dtype=np.float64))
        tiles.append(values[:keep])
        places.append(coords[rows[:keep]])
        owner.append(np.full(len(values[:keep]), index))
    return Sampled(
        np.stack(means),
        np.concatenate(tiles),
        np.concatenate(owner),
        np.concatenate(places),
    )


def _order(coords: NDArray[np.int32], seed: int) -> Ints:
    """Return the tiles of a slide in the order in which they are drawn (n,).

    Features of another program may not say where they are; their rows are then drawn.
    """
    if not coords.any():
        coords = np.stack([np.arange(len(coords), dtype=np.int32)] * 2, axis=1)
    return np.argsort(_lots(coords, seed), kind="stable")


def _lots(coords: NDArray[np.int32], seed: int) -> NDArray[np.uint64]:
    """Return a number for each position (n, 2) that looks random, by SplitMix64."""
    place = (coords[:, 0].astype(np.uint64) << np.uint64(32)) ^ coords[:, 1].astype(np.uint64)
    mixed = place + np.uint64(seed)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    found: NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return found
