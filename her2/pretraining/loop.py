"""Stage 1, pre-training: batches of patches, an epoch and its validation.

All randomness in an epoch derives from (seed, epoch).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from her2.core.errors import UserError
from her2.encoders.backbones import Encoder
from her2.metrics.auc import ranking_area
from her2.pretraining.augment import moved, plain, restain, stain_changes
from her2.pretraining.patch_set import PatchSet
from her2.training.prefetch import Prefetch
from her2.training.schedule import factor, set_rate

Batch = tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]
"""Patches uint8 (b, size, size, 3), labels (b,), changes of stain (None: no change)."""


class Classifier(nn.Module):
    """An encoder and a linear layer on its embedding; the layer is discarded after training."""

    def __init__(self, encoder: Encoder, dimension: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(dimension, classes)

    def forward(self, patches: Tensor) -> Tensor:
        """Classify patches (b, h, w, 3) in [0, 255]: logits (b, c)."""
        return self.head(self.encoder(patches))


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch of the history; figures on the validation part weigh each class equally."""

    epoch: int
    train_loss: float
    validation_loss: float
    balanced_accuracy: float
    mean_auc: float

    @property
    def rank(self) -> tuple[float, float]:
        """The rank by which the best epoch is chosen: balanced accuracy, then lower loss."""
        return self.balanced_accuracy, -self.validation_loss


@dataclass(frozen=True, slots=True)
class PatchBatches:
    """Batches of patches that threads cut and augment, in a fixed order."""

    patches: PatchSet
    size_px: int
    window_px: float | None
    batch_size: int
    augmentation: float
    threads: int

    def training(self, indices: NDArray[np.int64], seed: int, epoch: int) -> Prefetch[Batch]:
        """Return an epoch's batches: as many draws as patches, the same number from each class."""
        order = balanced_order(self.patches.labels[indices], np.random.default_rng([seed, epoch]))
        parts = _parts(indices[order], self.batch_size)

        def load(number: int) -> Batch:
            generator = np.random.default_rng([seed, epoch, number])
            images = [
                moved(self.patches.read(i), self.size_px, self.window_px, self.augmentation, g)
                for i, g in zip(
                    parts[number].tolist(), generator.spawn(len(parts[number])), strict=True
                )
            ]
            changes = stain_changes(len(images), self.augmentation, generator)
            return self._batch(images, parts[number], changes)

        return Prefetch(load, len(parts), ahead=2 * self.threads, threads=self.threads)

    def validation(self, indices: NDArray[np.int64]) -> Prefetch[Batch]:
        """Return batches of every patch once, without augmentation."""
        parts = _parts(indices, 2 * self.batch_size)

        def load(number: int) -> Batch:
            images = [
                plain(self.patches.read(i), self.size_px, self.window_px)
                for i in parts[number].tolist()
            ]
            return self._batch(images, parts[number], None)

        return Prefetch(load, len(parts), ahead=2 * self.threads, threads=self.threads)

    def steps(self, patches: int) -> int:
        """Return the number of batches in an epoch over `patches` patches."""
        return len(_parts(np.arange(patches), self.batch_size))

    def _batch(
        self,
        images: Sequence[NDArray[np.uint8]],
        indices: NDArray[np.int64],
        changes: tuple[Tensor, Tensor] | None,
    ) -> Batch:
        labels = torch.from_numpy(self.patches.labels[indices])
        return torch.from_numpy(np.stack(images)), labels, changes


def balanced_order(labels: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Draw as many patches as there are, shuffled, with each class equally often.

    Each class runs through permutations of its patches, so that no patch repeats before all others
    of its class were drawn. The counts of the classes differ by at most one.
    """
    classes = generator.permutation(np.unique(labels))
    draws = []
    shares = [len(part) for part in np.array_split(labels, len(classes))]
    for share, label in zip(shares, classes, strict=True):
        members = np.flatnonzero(labels == label)
        rounds = math.ceil(share / len(members))
        cycle = np.concatenate([generator.permutation(members) for _ in range(rounds)])
        draws.append(cycle[:share])
    return generator.permutation(np.concatenate(draws))


def learning_rate(step: int, steps: int, *, peak: float, warmup: float) -> float:
    """Return a step's learning rate: a rise over the `warmup` share of steps, then a cosine."""
    rise = warmup * steps
    return peak * factor(step, rise=rise + 1, decay_from=rise, total=steps)


def train_epoch(
    model: Classifier,
    optimiser: torch.optim.Optimizer,
    batches: Prefetch[Batch],
    rates: Sequence[float],
    *,
    device: torch.device,
    dtype: torch.dtype,
    name: str,
) -> float:
    """Train one pass; return the mean cross-entropy.

    Raises:
        UserError: the loss is not finite.
    """
    model.train()
    total = torch.zeros((), device=device)
    bar = tqdm(batches, name, len(rates), unit="batch", leave=False, disable=None)
    for rate, (patches, labels, changes) in zip(rates, bar, strict=True):
        set_rate(optimiser, rate)
        patches, labels = patches.to(device), labels.to(device)
        if changes is not None:
            patches = restain(patches, changes[0].to(device), changes[1].to(device))
        with _autocast(device, dtype):
            logits = model(patches)
        loss = functional.cross_entropy(logits.float(), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        total += loss.detach()
    if not math.isfinite(mean := total.item() / len(rates)):
        raise UserError(f"{name}: the loss is {mean}; lower pretraining.learning_rate.")
    return mean


@torch.inference_mode()
def validate(
    model: Classifier, batches: Prefetch[Batch], *, device: torch.device, dtype: torch.dtype
) -> tuple[float, float, float]:
    """Return cross-entropy, balanced accuracy and one-vs-rest AUC, all as means over the classes.

    The AUC is NaN where only one class is present.

    Raises:
        UserError: the outputs are not finite.
    """
    model.eval()
    all_labels, all_probabilities = [], []
    for patches, labels, _ in batches:
        with _autocast(device, dtype):
            logits = model(patches.to(device))
        all_probabilities.append(logits.double().softmax(dim=1).cpu())
        all_labels.append(labels)
    target = torch.cat(all_labels).numpy()
    probabilities = torch.cat(all_probabilities).numpy()
    if not np.isfinite(probabilities).all():
        raise UserError("the model's outputs are not finite; lower pretraining.learning_rate.")
    losses = -np.log(np.maximum(probabilities[np.arange(len(target)), target], 1e-12))
    hits = probabilities.argmax(axis=1) == target
    present = np.unique(target)
    aucs = [math.nan]
    if len(present) > 1:
        aucs = [ranking_area(target == c, probabilities[:, c]) for c in present]
    return (
        float(np.mean([losses[target == c].mean() for c in present])),
        float(np.mean([hits[target == c].mean() for c in present])),
        float(np.mean(aucs)),
    )


def _autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def _parts(indices: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Split into batches of nearly equal size, as the statistics of a small one would be noisy."""
    return np.array_split(indices, max(1, round(len(indices) / batch_size)))
