"""Stage 2, report: readers of results that the development and the external cohorts share."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from her2.config import Config
from her2.core.errors import UserError
from her2.core.tables import read_result
from her2.explanation.listing import read_heatmaps
from her2.pretraining.overlap import Overlap, read_overlap
from her2.storage.entries import FeatureEntry, read_all_entries
from her2.storage.features import read_attributes

ATTENTION = (
    "localisation",
    "localisation_summary",
    "faithfulness",
    "faithfulness_summary",
    "agreement",
)
"""Tables of one model's attention."""


def present(paths: Mapping[str, Path]) -> dict[str, pl.DataFrame]:
    """Read the tables that exist, by name."""
    return {name: read_result(path) for name, path in paths.items() if path.exists()}


def overlaps(config: Config, folder: Path) -> dict[str, Overlap]:
    """Read the overlaps of the encoders that have one, in the folder of a cohort's results.

    Raises:
        UserError: a file is not what the audit writes.
    """
    found = {}
    for name in config.encoders:
        path = folder / "encoders" / name / "overlap.json"
        if path.exists():
            try:
                found[name] = read_overlap(path)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise broken(path, error) from None
    return found


def by_task(path: Path) -> dict[str, pl.DataFrame]:
    """Return the rows of each task; a task with a single model has no comparison."""
    if not path.exists():
        return {}
    parts = read_result(path).partition_by(
        "task", as_dict=True, include_key=False, maintain_order=True
    )
    return {str(task): table for (task,), table in parts.items()}


def store_receipts(buckets: Sequence[str], folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the precisions and devices of the features, from one store per bucket.

    One job computes all features of a bucket, so any of its stores will do.
    """
    precisions, devices = set(), set()
    for bucket in buckets:
        entries = read_all_entries(folder, [bucket], FeatureEntry)
        for slide_id, entry in entries.items():
            store = folder / f"{slide_id}.zarr.zip"
            if entry.status == "ok" and store.exists():
                attributes = read_attributes(store, entry.key)
                precisions.add(str(attributes.get("precision", "not recorded")))
                devices.add(str(attributes.get("receipt", {}).get("device", "not recorded")))
                break
    return tuple(sorted(precisions)), tuple(sorted(devices))


def heatmap_list(path: Path) -> list[dict[str, object]]:
    """Read the list of a folder of pictures.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return read_heatmaps(path)
    except (OSError, ValueError) as error:
        raise broken(path, error) from None


def broken(path: Path, error: Exception) -> UserError:
    """Return the error of a file that is not what its stage writes."""
    return UserError(f"{path}: cannot be read ({error}). Delete it and run snakemake again.")
