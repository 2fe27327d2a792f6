"""Stage 1, embed: run a bucket of slides through one encoder into feature stores.

The cache is searched without loading torch; slides that it lacks go through
`her2.embedding.session`.
"""

import logging
import math
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
from her2.core.files import digest, link
from her2.core.hardware import allowed_cpus, auto_precision
from her2.embedding.identity import (
    JSON,
    changed_since_tiling,
    feature_key,
    find_features,
)
from her2.embedding.reading import PendingSlide
from her2.embedding.views import lacking_views, rows_before, view_identity, view_keys
from her2.encoders.card import EncoderCard, read_card
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, TileEntry, read_entries, write_entries
from her2.storage.facts import StoredSlide
from her2.storage.features import read_attributes, write_rows
from her2.storage.products import find_product, note_intact
from her2.storage.spool import RowSpool
from her2.storage.tiles import TileTable, read_table
from her2.storage.views import view_links, view_path

if TYPE_CHECKING:
    import torch

    from her2.embedding.session import ComputeFacts

log = logging.getLogger(__name__)

NO_VIEWS = "its augmented views cannot be made"
"""How the reason of a slide begins that has a plain store, and lacks views."""


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
    """Add an entry for each slide in the cache, and return the slides still to embed.

    A slide is also embedded for the views that the cache lacks alone.
    """
    todo = []
    for slide_id, (slide, own) in tables.items():
        table, attributes = find_features(spec, cache, own, card, precision)
        key = feature_key(spec, table, card, precision)
        keys = view_keys(spec, table, card, precision)
        entry, lacking = None, list(keys)
        if attributes is not None:
            entry = _entry(spec, key, attributes, keys)
            usable = entry.status == "ok"
            lacking = lacking_views(cache, keys, key, attributes) if usable else []
        if entry is not None and not lacking:
            entries[slide_id] = entry
            log.info("%s: %d features from the cache", slide_id, entry.tiles)
            write_event("embedded", slide_id, tiles=entry.tiles, cached=True)
        elif (reason := changed_since_tiling(slide, table, cache)) is not None:
            reason = reason if entry is None else f"{NO_VIEWS}: {reason}"
            log.warning("%s: failed: %s", slide_id, reason)
            entries[slide_id] = FeatureEntry(status="failed", reason=reason)
            write_event("left_out", slide_id, reason=reason)
        else:
            folder = cache.path("features", key).parent
            shape, beside = (len(table), card.dimension), len(lacking) - (attributes is not None)
            spools = {
                view: RowSpool(*shape, card.storage, folder, beside=beside)
                for view in ([] if attributes is not None else [0]) + lacking
            }
            todo.append(
                PendingSlide(
                    *(slide_id, slide, table, key, spools.pop(0, None)),
                    views=spools,
                    seed=spec.seed,
                    std=card.std or (1.0, 1.0, 1.0),
                    before=None
                    if attributes is None
                    else rows_before(cache, table, key, attributes),
                )
            )
    return todo


def _publish(
    spec: EmbedSpec, cache: Cache, card: EncoderCard, slide: PendingSlide, compute: "ComputeFacts"
) -> FeatureEntry:
    kept = slide.readable
    failed = int(np.count_nonzero(~kept))
    reason = slide.error
    if slide.before is not None:
        lost = int(np.count_nonzero(slide.before & ~kept))
        if reason is None and lost:
            reason = (
                f"{lost} of its tiles were embedded before and cannot be read any more; see its "
                f"file, then run `her2 cache forget {slide.slide_id}` and snakemake again"
            )
        if reason is not None:
            reason = f"{NO_VIEWS}: {reason}"
    if reason is not None:
        log.warning("%s: failed: %s", slide.slide_id, reason)
        write_event("left_out", slide.slide_id, reason=reason)
        return FeatureEntry(status="failed", reason=reason)
    if slide.before is None and (failed > spec.max_failed_tiles * len(kept) or not kept.any()):
        entry = _excluded(spec, failed, len(kept))
        log.warning("%s: excluded: %s", slide.slide_id, entry.reason)
        write_event("left_out", slide.slide_id, reason=entry.reason or "")
        return entry
    for view in sorted(slide.spools):  # the plain store first, as views are nothing without it
        _write_store(spec, cache, card, slide, view, compute)
    tiles, views = len(kept) - failed, len(slide.views)
    log.info(
        "%s: %d patches embedded%s, %d failed",
        *(slide.slide_id, tiles, f" in {len(slide.spools)} views" if views else "", failed),
    )
    write_event("embedded", slide.slide_id, tiles=tiles)
    keys = view_keys(spec, slide.table, card, compute.precision)
    attributes = read_attributes(cache.path("features", slide.key), slide.key)
    return _entry(spec, slide.key, attributes, keys)


def _write_store(
    spec: EmbedSpec,
    cache: Cache,
    card: EncoderCard,
    slide: PendingSlide,
    view: int,
    compute: "ComputeFacts",
) -> None:
    """Publish the plain store of a slide (0), or one of its views."""
    begin, spool, kept = time.perf_counter(), slide.spools[view], slide.readable
    stated = view_identity(spec, slide.table, card, compute.precision, view)
    key = digest(stated)

    def finished() -> JSON:
        slide.add("writing", time.perf_counter() - begin)
        return {"key": key, "identity": stated, **_attributes(card, slide, compute)}

    with cache.publish(
        "features", key, megabytes=math.prod(spool.shape) * spool.dtype.itemsize / 1e6
    ) as path:
        shape = (int(np.count_nonzero(kept)), card.dimension)
        write_rows(path, spool.blocks(kept), shape, spool.dtype, slide.table.coords[kept], finished)
    note_intact(cache, key)


def _attributes(card: EncoderCard, slide: PendingSlide, compute: "ComputeFacts") -> JSON:
    grid = slide.table.grid
    tiles = int(slide.readable.sum())
    return {
        "tiles": tiles,
        "failed_tiles": len(slide.table) - tiles,
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
    overlaps with the others. `patches_per_second` is the job's pace during this slide. Where a
    slide was embedded in several views, all of this is of all of them together, and `views` says
    how many these are.
    """
    views = len(slide.spools)
    spent = {name: round(value, 3) for name, value in slide.seconds.items()}
    busy = spent["waiting"] + spent["encoding"]
    if compute.on_cpu:
        busy += spent["reading"] + spent["writing"]
    return {
        **asdict(compute),
        "reader": slide.reader,
        "cold": slide.cold,
        **{f"seconds_{name}": value for name, value in spent.items()},
        "patches_per_second": round(tiles * views * compute.workers / busy, 2) if busy else None,
        **({"views": views} if views > 1 else {}),
    }


def _name_stores(cache: Cache, entries: dict[str, FeatureEntry], folder: Path) -> None:
    for slide_id, made in entries.items():
        name = folder / f"{slide_id}.zarr.zip"
        if made.key and made.status == "ok":
            link(cache.path("features", made.key), name)
        else:
            name.unlink(missing_ok=True)
        wanted = {view_path(folder, slide_id, v): key for v, key in enumerate(made.views, 1)}
        for old in view_links(folder, slide_id):
            if old not in wanted:
                old.unlink()
        for link_name, key in wanted.items():
            link(cache.path("features", key), link_name)


def _entry(spec: EmbedSpec, key: str, attributes: JSON, views: Mapping[int, str]) -> FeatureEntry:
    tiles, failed = attributes["tiles"], attributes["failed_tiles"]
    if failed > spec.max_failed_tiles * (tiles + failed):
        return _excluded(spec, failed, tiles + failed)
    dimension = attributes["dimension"]
    return FeatureEntry("ok", None, key, tiles, failed, dimension, tuple(views.values()))


def _excluded(spec: EmbedSpec, failed: int, tiles: int) -> FeatureEntry:
    reason = (
        f"{failed} of {tiles} tiles cannot be read "
        f"(embedding.max_failed_tiles {spec.max_failed_tiles:g})"
    )
    return FeatureEntry(status="excluded", reason=reason, failed_tiles=failed)
