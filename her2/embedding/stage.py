"""Stage 1, embed: run a bucket of slides through one encoder into feature stores.

The cache is searched without loading torch; slides that it lacks go through
`her2.embedding.session`.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

import her2
from her2.cohort.manifest import Cohort
from her2.config.jobs import EmbedSpec
from her2.core.events import write_event
from her2.core.files import link
from her2.core.hardware import allowed_cpus, auto_precision
from her2.embedding.identity import (
    JSON,
    changed_since_tiling,
    feature_key,
    find_features,
    identity,
)
from her2.embedding.reading import PendingSlide
from her2.encoders.card import EncoderCard, read_card
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, TileEntry, read_entries, write_entries
from her2.storage.facts import StoredSlide
from her2.storage.features import RowSpool, write_rows
from her2.storage.products import find_product, note_intact
from her2.storage.tiles import TileTable, read_table

if TYPE_CHECKING:
    import torch

    from her2.embedding.session import ComputeFacts

log = logging.getLogger(__name__)


def embed_bucket(
    spec: EmbedSpec,
    cohort: Cohort,
    cache: Cache,
    *,
    tiles: Path,
    encoder: Path,
    output: Path,
    batch_size: int = 64,
    threads: int = 1,
    compiling: Literal["auto", "never", "always"] = "auto",
    scratch: str | None = None,
) -> dict[str, FeatureEntry]:
    """Embed the slides of a bucket that the cache does not hold yet.

    Args:
        spec: the job's spec.
        cohort: the cohort, which locates the slides.
        cache: receives the stores.
        tiles: the entries file of the bucket's tiles.
        encoder: the encoder's folder.
        output: the entries file to write; links to the stores, named by slide, go beside it.
        batch_size: largest number of patches per batch.
        threads: number of threads; no more are used than the job's allocation has.
        compiling: when to use `torch.compile`.
        scratch: folder on a local disk to which slides are copied before they are read.

    Raises:
        UserError: a store cannot be written, or values do not fit the storage type.
    """
    found = read_entries(tiles, TileEntry)
    tables: dict[str, tuple[Path, TileTable]] = {}
    entries: dict[str, FeatureEntry] = {}
    for row in cohort.bucket(spec.bucket):
        entry = found[row.slide_id]
        if entry.status != "ok" or entry.key is None:
            entries[row.slide_id] = FeatureEntry(status=entry.status, reason=entry.reason)
            write_event("left_out", row.slide_id, reason=entry.reason or "")
            continue
        path = find_product(cache, "tiles", entry.key, tiles.parent / f"{row.slide_id}.parquet")
        tables[row.slide_id] = cohort.file(row), read_table(path, entry.key)
    entries |= embed_tables(
        spec,
        cache,
        tables,
        encoder=encoder,
        batch_size=batch_size,
        threads=threads,
        compiling=compiling,
        scratch=scratch,
    )
    _name_stores(cache, entries, output.parent)
    write_entries(output, entries)
    return entries


def embed_tables(
    spec: EmbedSpec,
    cache: Cache,
    tables: Mapping[str, tuple[Path, TileTable]],
    *,
    encoder: Path,
    batch_size: int = 64,
    threads: int = 1,
    compiling: Literal["auto", "never", "always"] = "auto",
    scratch: str | None = None,
) -> dict[str, FeatureEntry]:
    """Embed tiled slides that the cache does not hold yet.

    Args:
        spec: the job's spec.
        cache: receives the stores.
        tables: slide -> its file and its tiles, of which there is at least one.
        encoder: the encoder's folder.
        batch_size, threads, compiling, scratch: see `embed_bucket`.

    Raises:
        UserError: a store cannot be written, or values do not fit the storage type.
    """
    card = read_card(encoder)
    entries: dict[str, FeatureEntry] = {}
    threads = min(threads, allowed_cpus())
    device = None
    precision = card.precision if card.precision != "auto" else auto_precision()
    if precision is None:
        device, precision = _device(card, threads)
    todo = _look_up(spec, cache, card, precision, tables, entries)
    if todo and device is None:
        device, used = _device(card, threads)
        if used != precision:  # the driver and torch disagree, and torch does the computing
            precision = used
            todo = _look_up(spec, cache, card, precision, tables, entries)
    if todo and device is not None:
        from her2.embedding.run import embed_slides
        from her2.embedding.session import Embedder

        def publish(slide: PendingSlide, compute: "ComputeFacts") -> None:
            entries[slide.slide_id] = _publish(spec, cache, card, slide, compute)

        embedder = Embedder(
            encoder,
            device,
            precision,
            batch_size=batch_size,
            threads=threads,
            compiling=compiling,
            publish=publish,
        )
        embed_slides(embedder, todo, scratch)
    return entries


def _device(card: EncoderCard, threads: int) -> "tuple[torch.device, str]":
    from her2.encoders.device import pick_device, resolve_precision

    device = pick_device(threads)
    return device, resolve_precision(card.precision, device)  # type: ignore[arg-type]


def _look_up(
    spec: EmbedSpec,
    cache: Cache,
    card: EncoderCard,
    precision: str,
    tables: Mapping[str, tuple[Path, TileTable]],
    entries: dict[str, FeatureEntry],
) -> list[PendingSlide]:
    """Add an entry for each slide in the cache, and return the slides still to embed."""
    todo = []
    for slide_id, (slide, own) in tables.items():
        table, attributes = find_features(spec, cache, own, card, precision)
        key = feature_key(spec, table, card, precision)
        if attributes is not None:
            entries[slide_id] = _entry(spec, key, attributes)
            log.info("%s: %d features from the cache", slide_id, entries[slide_id].tiles)
            write_event("embedded", slide_id, tiles=entries[slide_id].tiles, cached=True)
        elif (reason := changed_since_tiling(slide, table, cache)) is not None:
            log.warning("%s: failed: %s", slide_id, reason)
            entries[slide_id] = FeatureEntry(status="failed", reason=reason)
            write_event("left_out", slide_id, reason=reason)
        else:
            folder = cache.path("features", key).parent
            spool = RowSpool(len(table), card.dimension, card.storage, folder)
            todo.append(PendingSlide(slide_id, slide, table, key, spool))
    return todo


def _publish(
    spec: EmbedSpec, cache: Cache, card: EncoderCard, slide: PendingSlide, compute: "ComputeFacts"
) -> FeatureEntry:
    kept = slide.readable
    failed = int(np.count_nonzero(~kept))
    if slide.error is not None:
        write_event("left_out", slide.slide_id, reason=slide.error)
        return FeatureEntry(status="failed", reason=slide.error)
    if failed > spec.max_failed_tiles * len(kept) or not kept.any():
        entry = _excluded(spec, failed, len(kept))
        log.warning("%s: excluded: %s", slide.slide_id, entry.reason)
        write_event("left_out", slide.slide_id, reason=entry.reason or "")
        return entry
    begin = time.perf_counter()
    attributes: JSON = {}

    def finished() -> JSON:
        slide.add("writing", time.perf_counter() - begin)
        attributes.update(_attributes(spec, card, slide, failed, compute))
        return attributes

    megabytes = slide.spool.shape[0] * slide.spool.shape[1] * slide.spool.dtype.itemsize / 1e6
    with cache.publish("features", slide.key, megabytes=megabytes) as path:
        shape = (len(kept) - failed, card.dimension)
        blocks = slide.spool.blocks(kept)
        write_rows(path, blocks, shape, slide.spool.dtype, slide.table.coords[kept], finished)
    note_intact(cache, slide.key)
    log.info("%s: %d patches embedded, %d failed", slide.slide_id, shape[0], failed)
    write_event("embedded", slide.slide_id, tiles=shape[0])
    return _entry(spec, slide.key, attributes)


def _attributes(
    spec: EmbedSpec, card: EncoderCard, slide: PendingSlide, failed: int, compute: "ComputeFacts"
) -> JSON:
    grid = slide.table.grid
    tiles = int(slide.readable.sum())
    return {
        "key": slide.key,
        "identity": identity(spec, slide.table, card, compute.precision),
        "tiles": tiles,
        "failed_tiles": failed,
        "dimension": card.dimension,
        "slide": asdict(StoredSlide.of(slide.table.facts, grid)),
        "target": {"mpp": grid.target_mpp, "px": grid.tile_px},
        "encoder": {
            "digest": card.digest,
            "architecture": f"{card.library}/{card.architecture}",
            "feature": card.feature,
            "weights_sha256": card.weights_sha256,
        },
        "precision": compute.precision,
        "software": {"her2": her2.__version__, "torch": metadata.version("torch")},
        "receipt": receipt(slide, tiles, compute),
    }


def receipt(slide: PendingSlide, tiles: int, compute: "ComputeFacts") -> JSON:
    """Return a record of how a slide's features were computed.

    On a CPU all `seconds_` are summed over the threads. On CUDA only `seconds_reading` is, and it
    overlaps with the others. `patches_per_second` is the job's pace during this slide.
    """
    spent = {name: round(value, 3) for name, value in slide.seconds.items()}
    busy = spent["waiting"] + spent["encoding"]
    if compute.on_cpu:
        busy += spent["reading"] + spent["writing"]
    return {
        **asdict(compute),
        "reader": slide.reader,
        "cold": slide.cold,
        **{f"seconds_{name}": value for name, value in spent.items()},
        "patches_per_second": round(tiles * compute.workers / busy, 2) if busy else None,
    }


def _name_stores(cache: Cache, entries: dict[str, FeatureEntry], folder: Path) -> None:
    for slide_id, made in entries.items():
        name = folder / f"{slide_id}.zarr.zip"
        if made.key and made.status == "ok":
            link(cache.path("features", made.key), name)
        else:
            name.unlink(missing_ok=True)


def _entry(spec: EmbedSpec, key: str, attributes: JSON) -> FeatureEntry:
    tiles, failed = attributes["tiles"], attributes["failed_tiles"]
    if failed > spec.max_failed_tiles * (tiles + failed):
        return _excluded(spec, failed, tiles + failed)
    return FeatureEntry("ok", None, key, tiles, failed, attributes["dimension"])


def _excluded(spec: EmbedSpec, failed: int, tiles: int) -> FeatureEntry:
    reason = (
        f"{failed} of {tiles} tiles cannot be read "
        f"(embedding.max_failed_tiles {spec.max_failed_tiles:g})"
    )
    return FeatureEntry(status="excluded", reason=reason, failed_tiles=failed)
