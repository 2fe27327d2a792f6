"""Stage 2, train: batches of sub-bags, gathered by a worker ahead of the training step."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from her2.config import TrainingSection
from her2.mil.bags import Bag, sample_batch
from her2.training.prefetch import Prefetch

AHEAD = 3
"""Number of batches that are ready or being gathered while one is trained on."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Sub-bags of some slides: features (b, n, d), mask (b, n), labels (b,)."""

    bags: tuple[Bag, ...]
    features: Tensor
    mask: Tensor
    labels: Tensor


def bag_batches(
    bags: Sequence[Bag], training: TrainingSection, *, seed: int, epoch: int
) -> Prefetch[Batch]:
    """Return the batches of an epoch; all randomness in them derives from (seed, epoch)."""
    order = epoch_order(bags, training, np.random.default_rng((seed, epoch)))
    size = training.bags_per_batch
    batches = [
        tuple(bags[i] for i in order[start : start + size]) for start in range(0, len(order), size)
    ]

    def load(number: int) -> Batch:
        generator = np.random.default_rng((seed, epoch, number))
        chosen = batches[number]
        drawn = sample_batch(
            chosen, bag_size=training.bag_size, generator=generator, augmented=True
        )
        return Batch(chosen, *drawn)

    return Prefetch(load, len(batches), ahead=AHEAD)


def epoch_order(
    bags: Sequence[Bag], training: TrainingSection, generator: np.random.Generator
) -> np.ndarray:
    """Return the indices of an epoch's bags: each once, or random draws, by `training.balance`."""
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
