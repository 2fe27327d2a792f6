"""The slides that a model was developed on, and the feature stores of slides."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl

from her2.core.errors import UserError
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry
from her2.storage.features import (
    FeatureStore,
    allow_open_files,
    is_sealed,
    open_store,
    seal_holds,
)
from her2.storage.products import find_product


def development_slides(folds: pl.DataFrame) -> pl.DataFrame:
    """Return the labelled slides of a folds table: `slide_id, patient_id, label`, sorted.

    Each of them trained, tuned or tested some model, whatever the fold.
    """
    return (
        folds.drop_nulls("label")
        .select("slide_id", "patient_id", "label")
        .unique()
        .sort("slide_id")
    )


def stores_of(
    slides: Iterable[str],
    entries: Mapping[str, FeatureEntry],
    features: Path,
    cache: Cache | None = None,
) -> dict[str, FeatureStore]:
    """Open the stores of those slides that have features.

    Args:
        slides: their ids.
        entries: what embedding said of each.
        features: the folder of the entries files, with `{slide_id}.zarr.zip` beside them.
        cache: where the stores are; None for those beside the entries files.

    Raises:
        UserError: a slide has no entry, or its store is absent or was changed.
    """
    names = list(slides)
    absent = [name for name in names if name not in entries]
    if absent:
        raise UserError(
            f"{features}: no entries file has {', '.join(absent[:5])}; run snakemake again, so "
            "that the features are of the slides in the manifest."
        )
    allow_open_files(len(names))
    found = {}
    for name in names:
        entry = entries[name]
        if entry.status == "ok" and entry.key is not None:
            found[name] = _open(features / f"{name}.zarr.zip", entry.key, cache)
    return found


def bucket_names(features: Path) -> tuple[str, ...]:
    """Return the names of the entries files in a folder of features.

    Raises:
        UserError: there is none, or there are those of several numbers of buckets, of which only
            one can be current.
    """
    names = sorted(path.stem for path in features.glob("*-of-*.json"))
    counts = {name.split("-of-")[1] for name in names}
    if not names:
        raise UserError(f"{features}: holds no entries file of features; see `her2 embed`.")
    if len(counts) > 1:
        raise UserError(
            f"{features}: holds entries files of several numbers of buckets "
            f"({', '.join(f'*-of-{count}.json' for count in sorted(counts))}), of which only those "
            "of the last run are current. Delete the others."
        )
    return tuple(names)


def _open(path: Path, key: str, cache: Cache | None) -> FeatureStore:
    if cache is not None:
        return open_store(find_product(cache, "features", key, path), key)
    store = open_store(path, key)
    if is_sealed(store) and not seal_holds(store):
        raise UserError(f"{path}: was edited after it was made. Delete it and run snakemake again.")
    return store
