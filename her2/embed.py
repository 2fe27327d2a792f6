"""Stage 1, embed: a bucket of slides through one encoder into feature stores.

Three things happen at once: reader threads cut tiles, the device encodes, a writer publishes
finished slides. Batches cross slide borders, so the device never drains between slides.
"""

import logging
import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import her2
from her2.cache import Cache
from her2.cohort import Cohort
from her2.device import DTYPES, pick_device, resolve_precision
from her2.encoders.card import EncoderCard, read_card
from her2.encoders.materialise import load_encoder
from her2.errors import UserError
from her2.files import digest, link
from her2.manifest import FeatureEntry, TileEntry, read_manifest, write_manifest
from her2.reading import READ_GROUP, Passage, TileGroup, read_groups
from her2.specs import EmbedSpec
from her2.store import read_attributes, write_store
from her2.tiling import TileTable, read_table

log = logging.getLogger(__name__)

Owners = list[tuple[Passage, NDArray[np.int64]]]
"""Whose rows a batch holds, in the batch's order."""


def feature_key(spec: EmbedSpec, table: TileTable, card: EncoderCard, precision: str) -> str:
    """Identity of a feature store: everything that determines its bits, and nothing else."""
    return digest(
        {
            "stage": "embed",
            "version": spec.version,
            "fingerprint": table.meta.fingerprint,
            "tiles": table.coords_digest,
            "encoder": card.digest,
            "precision": precision,
            "storage": card.storage,
        }
    )


def embed_bucket(
    spec: EmbedSpec,
    cohort: Cohort,
    cache: Cache,
    *,
    tiles: Path,
    encoder: Path,
    output: Path,
    batch_size: int,
    threads: int,
    scratch: str | None = None,
) -> dict[str, FeatureEntry]:
    """Embed the slides of a bucket that the cache does not hold yet.

    Args:
        spec: the job.
        cohort: where the slides are.
        cache: gets the stores.
        tiles: the bucket's tile manifest.
        encoder: the encoder's folder.
        output: the manifest to write; links with the slides' names go beside it.
        batch_size: patches a batch.
        threads: of the readers, and of the CPU as a device.
        scratch: a folder of this machine to copy slides to before they are read.

    Raises:
        UserError: a store cannot be written, or values do not fit the storage type.
    """
    entries: dict[str, FeatureEntry] = {}
    found = read_manifest(tiles, TileEntry)
    card = read_card(encoder)
    device = pick_device(threads)
    precision = resolve_precision(card.precision, device)  # type: ignore[arg-type]
    todo = []
    for row in cohort.bucket(spec.bucket):
        entry = found[row.slide_id]
        if entry.status != "ok" or entry.key is None:
            entries[row.slide_id] = FeatureEntry(status=entry.status, reason=entry.reason)
            continue
        if (path := cache.find("tiles", entry.key)) is None:
            raise UserError(
                f"{row.slide_id}: its tile table ({entry.key[:12]}) is no longer in the cache "
                f"{cache.root}; delete {tiles} and run snakemake again."
            )
        table = read_table(path)
        key = feature_key(spec, table, card, precision)
        if (path := cache.find("features", key)) is not None:
            entries[row.slide_id] = _entry(spec, key, read_attributes(path))
            log.info("%s: %d features from the cache", row.slide_id, entries[row.slide_id].tiles)
        else:
            todo.append(_new_slide(row.slide_id, cohort.file(row), table, key, card))
    if todo:
        run = _Run(spec, cache, card, encoder, device, precision, batch_size, threads)
        entries |= run(todo, scratch)
    for slide_id, made in entries.items():
        name = output.parent / f"{slide_id}.zarr.zip"
        if made.key and made.status == "ok":
            link(cache.path("features", made.key), name)
        else:
            name.unlink(missing_ok=True)
    write_manifest(output, entries)
    return entries


class _Run:
    """One pass of the device over many slides."""

    def __init__(
        self,
        spec: EmbedSpec,
        cache: Cache,
        card: EncoderCard,
        folder: Path,
        device: torch.device,
        precision: str,
        batch_size: int,
        threads: int,
    ) -> None:
        self.spec, self.cache, self.card = spec, cache, card
        self.device, self.precision = device, precision
        self.batch_size, self.threads = batch_size, threads
        encoder, _ = load_encoder(folder)
        self.encoder = encoder.to(device)
        self.encoder.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.flying: deque[tuple[torch.Tensor, Owners, float]] = deque()
        self.entries: dict[str, FeatureEntry] = {}
        self.publishing: list[tuple[str, Future[FeatureEntry]]] = []

    def __call__(self, slides: list[Passage], scratch: str | None) -> dict[str, FeatureEntry]:
        size = self.card.size
        ahead = 2 * self.threads + 2 * self.batch_size // READ_GROUP
        batch = self._buffer(size)
        owners: Owners = []
        filled = 0
        with ThreadPoolExecutor(1, thread_name_prefix="writer") as self.writer:
            for group in read_groups(slides, self.threads, ahead=ahead, scratch=scratch):
                self._give_up(group)
                start = 0
                while start < len(group.rows):
                    count = min(self.batch_size - filled, len(group.rows) - start)
                    part = slice(start, start + count)
                    batch[filled : filled + count] = torch.from_numpy(group.images[part])
                    owners.append((group.slide, group.rows[part]))
                    filled, start = filled + count, start + count
                    if filled == self.batch_size:
                        self._encode(batch, owners)
                        batch, owners, filled = self._buffer(size), [], 0
            if filled:
                self._encode(batch[:filled], owners)
            while self.flying:
                self._land()
            return self.entries | {name: future.result() for name, future in self.publishing}

    def _buffer(self, size: int) -> torch.Tensor:
        """A new one each time: the copy to the device may still be reading the last."""
        pinned = self.device.type == "cuda"
        return torch.empty((self.batch_size, size, size, 3), dtype=torch.uint8, pin_memory=pinned)

    def _encode(self, batch: torch.Tensor, owners: Owners) -> None:
        """Start a batch; on CUDA the call returns while it still computes."""
        begin = time.perf_counter()
        dtype = DTYPES[self.precision]
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32),
        ):
            result = self.encoder(batch.to(self.device, non_blocking=True)).float()
        self.flying.append((result, owners, time.perf_counter() - begin))
        if len(self.flying) > 1:
            self._land()

    def _land(self) -> None:
        """Fetch the oldest batch and hand each slide its rows."""
        result, owners, seconds = self.flying.popleft()
        begin = time.perf_counter()
        values = result.cpu().numpy()
        seconds += time.perf_counter() - begin
        start = 0
        for slide, rows in owners:
            part = values[start : start + len(rows)]
            start += len(rows)
            if not np.isfinite(part).all():
                raise UserError(
                    f"{slide.slide_id}: the encoder gave values that are not finite in "
                    f"{self.precision}; set the encoder's `precision: float32`."
                )
            with np.errstate(over="ignore"):
                slide.features[rows] = part
            slide.seconds["encoding"] += seconds * len(rows) / len(values)
            self._advance(slide, len(rows))

    def _give_up(self, group: TileGroup) -> None:
        slide = group.slide
        slide.seconds["reading"] += group.seconds
        if len(group.failed):
            slide.readable[group.failed] = False
            self._advance(slide, len(group.failed))

    def _advance(self, slide: Passage, rows: int) -> None:
        slide.waiting -= rows
        if slide.waiting == 0:
            if slide.handle is not None:
                slide.handle.close()
            for _, future in self.publishing:
                if future.done():
                    future.result()  # a writer's error stops the job here
            self.publishing.append((slide.slide_id, self.writer.submit(self._publish, slide)))

    def _publish(self, slide: Passage) -> FeatureEntry:
        kept = slide.readable
        failed = int(np.count_nonzero(~kept))
        if slide.error is not None:
            return FeatureEntry(status="failed", reason=slide.error)
        if failed > self.spec.max_failed_tiles * len(kept) or not kept.any():
            entry = _excluded(self.spec, failed, len(kept))
            log.warning("%s: excluded: %s", slide.slide_id, entry.reason)
            return entry
        features = slide.features[kept]
        if not np.isfinite(features).all():
            raise UserError(
                f"{slide.slide_id}: features beyond the range of {features.dtype}; set the "
                "encoder's `storage: float32`."
            )
        attributes = self._attributes(slide, failed)
        with self.cache.publish("features", slide.key) as path:
            write_store(path, features, slide.table.coords[kept], attributes)
        slide.features = np.empty((0, 0), np.float16)  # or a bucket's features pile up in memory
        log.info("%s: %d patches embedded, %d failed", slide.slide_id, len(features), failed)
        return _entry(self.spec, slide.key, attributes)

    def _attributes(self, slide: Passage, failed: int) -> dict[str, Any]:
        card, meta = self.card, slide.table.meta
        return {
            "key": slide.key,
            "tiles": int(slide.readable.sum()),
            "failed_tiles": failed,
            "dimension": card.dimension,
            "slide": {
                "fingerprint": meta.fingerprint,
                "mpp": [meta.mpp_x, meta.mpp_y],
                "mpp_source": meta.mpp_source,
                "level0_tile": [meta.level0_width, meta.level0_height],
                "size_px": [meta.width_px, meta.height_px],
            },
            "target": {"mpp": meta.target_mpp, "px": meta.tile_px},
            "encoder": {
                "digest": card.digest,
                "architecture": f"{card.library}/{card.architecture}",
                "feature": card.feature,
                "weights_sha256": card.weights_sha256,
            },
            "precision": self.precision,
            "software": {"her2": her2.__version__, "torch": torch.__version__},
            "receipt": {
                "device": _device_name(self.device),
                "threads": self.threads,
                "batch_size": self.batch_size,
                "seconds_reading": round(slide.seconds["reading"], 3),
                "seconds_encoding": round(slide.seconds["encoding"], 3),
            },
        }


def _new_slide(slide_id: str, path: Path, table: TileTable, key: str, card: EncoderCard) -> Passage:
    shape = (len(table), card.dimension)
    return Passage(
        slide_id=slide_id,
        path=path,
        table=table,
        key=key,
        features=np.zeros(shape, card.storage),
        readable=np.ones(len(table), bool),
        waiting=len(table),
    )


def _entry(spec: EmbedSpec, key: str, attributes: dict[str, Any]) -> FeatureEntry:
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


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({os.uname().machine})"
