"""Stage 2, train: batches of sub-bags, gathered by a worker that stays ahead of the step."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from her2.config import TrainingSection
from her2.mil.bags import Bag, sample_batch

AHEAD = 3
"""Batches that are ready or being gathered while one is trained on."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Sub-bags of some slides: features (b, n, d), mask (b, n), labels (b,)."""

    bags: tuple[Bag, ...]
    features: Tensor
    mask: Tensor
    labels: Tensor


class BagBatches:
    """The batches of an epoch. All that is random in them comes from (seed, epoch).

    The worker is a thread: what takes time in it (faulting pages in, copying rows) runs without
    the interpreter's lock, and threads share the mapped stores. `waited_seconds` is how long the
    consumer stood still for it.
    """

    def __init__(
        self, bags: Sequence[Bag], training: TrainingSection, *, seed: int, epoch: int
    ) -> None:
        self.training = training
        self.root = (seed, epoch)
        self.waited_seconds = 0.0
        order = epoch_order(bags, training, np.random.default_rng(self.root))
        size = training.bags_per_batch
        self.batches = [
            tuple(bags[i] for i in order[start : start + size])
            for start in range(0, len(order), size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        with ThreadPoolExecutor(1, thread_name_prefix="gather") as pool:
            pending: deque[Future[Batch]] = deque()
            try:
                for number in range(len(self)):
                    pending.append(pool.submit(self._load, number))
                    if len(pending) > AHEAD:
                        yield self._next(pending)
                while pending:
                    yield self._next(pending)
            finally:
                for future in pending:
                    future.cancel()

    def _next(self, pending: "deque[Future[Batch]]") -> Batch:
        start = time.perf_counter()
        batch = pending.popleft().result()
        self.waited_seconds += time.perf_counter() - start
        return batch

    def _load(self, number: int) -> Batch:
        generator = np.random.default_rng((*self.root, number))
        bags = self.batches[number]
        return Batch(
            bags, *sample_batch(bags, bag_size=self.training.bag_size, generator=generator)
        )


def epoch_order(
    bags: Sequence[Bag], training: TrainingSection, generator: np.random.Generator
) -> np.ndarray:
    """Which bags an epoch takes: each once, or as many draws with every class as likely."""
    if training.balance in ("none", "loss"):
        return generator.permutation(len(bags))
    count = len(bags)
    if training.steps_per_epoch is not None:
        count = training.steps_per_epoch * training.bags_per_batch
    if training.balance == "slides":
        return generator.choice(len(bags), size=count)
    labels = np.array([bag.label for bag in bags])
    weights = 1 / np.bincount(labels)[labels]
    return generator.choice(len(bags), size=count, p=weights / weights.sum())
