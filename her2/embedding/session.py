"""Stage 1, embed: an encoder on a device, and the storing and publishing of its features."""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from her2.core.errors import UserError
from her2.core.events import count_encoded
from her2.embedding.augment import Landing
from her2.embedding.inference import (
    Compile,
    Forward,
    batch_limit,
    compile_if_faster,
    compiling_pays,
    prepare,
)
from her2.embedding.reading import PendingSlide, TileGroup
from her2.encoders.device import DTYPES
from her2.encoders.stage import read_encoder

log = logging.getLogger(__name__)

_WARM_BATCHES = 3
"""Number of batches after which the encoder's pace is measured; the first ones are slow."""
_PUBLISHING = 8
"""Number of slides that may wait for the writer."""
_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest difference of a compiled encoder's features, as a share of the largest value."""

Publish = Callable[[PendingSlide, "ComputeFacts"], None]


@dataclass(frozen=True, slots=True)
class ComputeFacts:
    """Facts of a job's computation, for the receipts of its slides."""

    device: str
    on_cpu: bool
    precision: str
    threads: int
    workers: int
    """Number of workers over which the `seconds` of a slide are summed."""
    batch_size: int
    compiled: bool


class Embedder:
    """An encoder, loaded from its folder, on a device.

    `publish` is called in a separate thread for each slide whose tiles are all done.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        precision: str,
        *,
        batch_size: int,
        threads: int,
        compiling: Compile,
        publish: Publish,
    ) -> None:
        encoder, self.card = read_encoder(folder)
        self.device, self.precision = device, precision
        self.threads, self.compiling, self.publish = threads, compiling, publish
        self.batch_size = batch_limit(self.card.patch_px, batch_size, device)
        self.encoder = prepare(encoder, device, precision)
        self.compiled: Forward | None = None
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self._compile_lock = threading.Lock()
        self._paces: list[float] = []

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Publish finished slides from a separate thread while the block runs.

        Raises:
            UserError: a value is not finite, or a slide could not be published.
        """
        self._room = threading.Semaphore(_PUBLISHING)
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="writer") as self._writer:
                yield
        finally:
            # When Ctrl-C interrupts the join of a thread, Python 3.11 considers it finished and
            # exits in the middle of writing a store. So wait here for the slides being published.
            for _ in range(_PUBLISHING):
                self._room.acquire()
        if self._errors:
            raise self._errors[0]

    def forward(self, patches: Tensor) -> Tensor:
        """Embed uint8 patches (b, h, w, 3): float32 (b, d), both on the device."""
        dtype = DTYPES[self.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return self.encoder(patches).float()

    def encode(self, patches: Tensor) -> Tensor:
        """Embed patches like `forward`, with the compiled encoder where that is faster."""
        full = len(patches) == self.batch_size
        return (self.compiled if full and self.compiled else self.forward)(patches)

    def consider_compiling(self, patches: Tensor, seconds: float, left: int, workers: int) -> None:
        """Decide once, after a few full batches, whether compiling pays for the rest of the job."""
        if self.compiling == "never" or len(patches) < self.batch_size:
            return
        with self._compile_lock:
            self._paces.append(seconds / len(patches))
            if len(self._paces) != _WARM_BATCHES * workers:
                return
            pace = min(self._paces)
        seconds_left = pace * left / workers
        if self.compiling == "always" or compiling_pays(self.encoder, self.device, seconds_left):
            self.compiled = compile_if_faster(self.forward, patches, _TOLERANCE[self.precision])

    def fail(self, error: BaseException) -> None:
        """Stop the job, so that no thread starts another batch."""
        self._errors.append(error)
        self._stop.set()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def land(self, values: NDArray[np.float32], parts: list[Landing]) -> None:
        """Store the rows of each slide: `values` (b, d), in the order of the parts.

        Raises:
            UserError: a value is not finite, or the rows cannot be written.
        """
        start = 0
        for slide, rows, view in parts:
            begin = time.perf_counter()
            part = values[start : start + len(rows)]
            start += len(rows)
            with np.errstate(over="ignore"):
                stored = part.astype(self.card.storage)
            if not np.isfinite(stored).all():
                raise UserError(self._not_finite(slide.slide_id, part))
            try:
                slide.spools[view].put(rows, stored)
            except OSError as error:
                raise UserError(no_space(slide.spools[view].folder, slide, error)) from error
            slide.add("writing", time.perf_counter() - begin)
            if view == min(slide.spools):
                count_encoded(slide.slide_id, len(rows))
            self.advance(slide, len(rows))

    def give_up(self, group: TileGroup) -> None:
        """Count the unreadable tiles of a group as done."""
        if len(group.failed):
            group.slide.readable[group.failed] = False
            count_encoded(group.slide.slide_id, len(group.failed))
            self.advance(group.slide, len(group.failed) * len(group.slide.spools))

    def advance(self, slide: PendingSlide, rows: int) -> None:
        """Count rows of a slide as done, and publish the slide after the last of them."""
        with slide.lock:
            slide.waiting -= rows
            done = slide.waiting == 0
        if done:
            self._room.acquire()
            try:
                future = self._writer.submit(self._publish, slide)
            except RuntimeError:  # the writer is shut down because the job is stopping
                self._room.release()
                raise
            future.add_done_callback(self._published)

    def _publish(self, slide: PendingSlide) -> None:
        """Publish a finished slide, even after a failure elsewhere, so that it is not redone."""
        on_cpu = self.device.type == "cpu"
        cpu = f"CPU ({os.uname().machine})"
        facts = ComputeFacts(
            device=cpu if on_cpu else torch.cuda.get_device_name(self.device),
            on_cpu=on_cpu,
            precision=self.precision,
            threads=self.threads,
            workers=self.threads if on_cpu else 1,
            batch_size=self.batch_size,
            compiled=self.compiled is not None,
        )
        try:
            self.publish(slide, facts)
        finally:
            for spool in slide.spools.values():
                spool.close()

    def _published(self, future: Future[None]) -> None:
        self._room.release()
        if (error := future.exception()) is not None:
            self.fail(error)

    def _not_finite(self, slide_id: str, values: NDArray[np.float32]) -> str:
        if np.isfinite(values).all():
            return (
                f"{slide_id}: its features exceed the range of {self.card.storage}; set "
                "`storage: float32` for the encoder."
            )
        if self.precision == "float32":
            return (
                f"{slide_id}: the encoder's output is not finite in float32, the widest precision: "
                f"weights of {self.card.architecture} are damaged or too large. Delete the "
                "encoder's folder and make it from an intact weights file."
            )
        return (
            f"{slide_id}: the encoder's output is not finite in {self.precision}; set "
            "`precision: float32` for the encoder."
        )


def no_space(path: Path, slide: PendingSlide, error: OSError) -> str:
    """Return the message for features that the disk does not take."""
    spools = slide.spools.values()
    megabytes = sum(2 * math.prod(one.shape) * one.dtype.itemsize for one in spools) / 1e6
    return (
        f"{slide.slide_id}: its features cannot be written to {path} ({error.strerror}). About "
        f"{megabytes:,.1f} MB are needed there. Free space (`df -h`, `her2 cache prune`) or set "
        "another `cache`, then run snakemake again."
    )
