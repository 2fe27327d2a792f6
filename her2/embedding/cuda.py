"""Stage 1, embed: encode tiles on a CUDA device that reader threads feed.

Readers cut tiles ahead. Batches are copied from pinned memory on a separate stream, computed
asynchronously, copied back into pinned memory and fetched one batch late. So device, copies and
readers work at the same time.
"""

import queue
import threading
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from her2.embedding.augment import Landing, view_images
from her2.embedding.reading import TileGroup, TileQueue, read_part
from her2.embedding.session import Embedder

READ_GROUP = 16
"""Number of tiles that a reader takes at a time."""


@dataclass(frozen=True, slots=True)
class _Flight:
    """A batch on the device: its result, its start and end, and its rows."""

    landed: Tensor
    started: torch.cuda.Event
    done: torch.cuda.Event
    parts: list[Landing]


def run_on_cuda(embedder: Embedder, tiles: TileQueue) -> None:
    """Encode every tile of the queue."""
    CudaPass(embedder, tiles).run()


class CudaPass:
    """One run of a CUDA device over a queue of tiles, with its readers and copies."""

    def __init__(self, owner: Embedder, tiles: TileQueue) -> None:
        self.owner, self.tiles = owner, tiles
        ahead = 2 * owner.threads + 3 * owner.batch_size // READ_GROUP
        self.groups: queue.Queue[TileGroup | None] = queue.Queue(ahead)
        self.flying: deque[_Flight] = deque()
        self.copies = torch.cuda.Stream(owner.device)
        self.pinned = owner.device.type == "cuda"
        self.last: torch.cuda.Event | None = None
        """End of the previous batch."""

    def run(self) -> None:
        owner = self.owner
        readers = [
            threading.Thread(target=self._read, name=f"reader-{i}") for i in range(owner.threads)
        ]
        for reader in readers:
            reader.start()
        try:
            with torch.no_grad():
                self._encode_all(len(readers))
        except BaseException as error:
            owner.fail(error)
        finally:
            while any(reader.is_alive() for reader in readers):
                try:  # a reader may be blocked by a full queue
                    self.groups.get(timeout=0.05)
                except queue.Empty:
                    continue

    def _read(self) -> None:
        size = self.owner.card.patch_px
        try:
            torch.set_num_threads(1)  # of augmentation; applies to the calling thread only
            while not self.owner.stopped:
                parts = self.tiles.take(READ_GROUP, across=False)
                if not parts:
                    break
                ((slide, rows),) = parts
                images = np.empty((len(rows), size, size, 3), np.uint8)
                self._hand_over(read_part(slide, rows, images))
        except BaseException as error:
            self.owner.fail(error)
        finally:
            self.groups.put(None)

    def _hand_over(self, group: TileGroup) -> None:
        """Hand over cut tiles in each view that their slide needs; the first counts the failed."""
        for number, view in enumerate(group.slide.spools):
            images = view_images(group.slide, group.rows, group.images, view)
            failed = group.failed[:0] if number else group.failed
            self.groups.put(replace(group, images=images, failed=failed, view=view))

    def _encode_all(self, readers: int) -> None:
        owner = self.owner
        batch, parts, filled = self._pinned(), list[Landing](), 0
        while readers and not owner.stopped:
            group = self.groups.get()
            if group is None:
                readers -= 1
                continue
            owner.give_up(group)
            start = 0
            while start < len(group.rows):
                count = min(owner.batch_size - filled, len(group.rows) - start)
                part = slice(start, start + count)
                batch[filled : filled + count] = torch.from_numpy(group.images[part])
                parts.append(Landing(group.slide, group.rows[part], group.view))
                filled, start = filled + count, start + count
                if filled == owner.batch_size:
                    self._start(batch, parts)
                    batch, parts, filled = self._pinned(), [], 0
        if filled and not owner.stopped:
            self._start(batch[:filled], parts)
        while self.flying and not owner.stopped:
            self._land()

    def _pinned(self) -> Tensor:
        """Allocate a pinned batch; torch reuses the memory once its copy has finished."""
        size = self.owner.card.patch_px
        shape = (self.owner.batch_size, size, size, 3)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self.pinned)

    def _start(self, batch: Tensor, parts: list[Landing]) -> None:
        """Start copies and kernels of a batch, and return while they run."""
        owner = self.owner
        computing = torch.cuda.current_stream(owner.device)
        with torch.cuda.stream(self.copies):
            patches = batch.to(owner.device, non_blocking=True)
        computing.wait_stream(self.copies)
        patches.record_stream(computing)
        started, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started.record(computing)
        result = owner.encode(patches)
        landed = torch.empty(result.shape, dtype=result.dtype, pin_memory=self.pinned)
        landed.copy_(result, non_blocking=True)
        done.record(computing)
        self.flying.append(_Flight(landed, started, done, parts))
        if len(self.flying) > 1:
            seconds = self._land()
            owner.consider_compiling(patches, seconds, self.tiles.left, 1)

    def _land(self) -> float:
        """Fetch the oldest batch; return the seconds that the device spent on it."""
        flight = self.flying.popleft()
        flight.done.synchronize()
        seconds = flight.started.elapsed_time(flight.done) / 1000
        idle = self.last.elapsed_time(flight.started) / 1000 if self.last else 0.0
        self.last = flight.done
        for slide, rows, _ in flight.parts:
            share = len(rows) / len(flight.landed)
            slide.add("encoding", seconds * share)
            slide.add("waiting", max(0.0, idle) * share)
        self.owner.land(flight.landed.numpy(), flight.parts)
        return seconds
