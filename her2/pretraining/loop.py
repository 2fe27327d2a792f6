"""Stage 1, pre-training: epochs, validation and a checkpoint that a killed job resumes from.

All that is random in an epoch comes from (seed, epoch), so a resumed run needs no memory of the
random numbers before: it ends with the weights of a run that was never killed.
"""

import logging
import math
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from her2.core.errors import UserError
from her2.core.files import atomic_path
from her2.encoders.backbones import Encoder
from her2.pretraining.augment import moved, plain, restain, stain_changes
from her2.pretraining.patch_set import PatchSet

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
Batch = tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]
"""Patches uint8 (b, size, size, 3), labels (b,), changes of stain (None: leave them alone)."""


class Classifier(nn.Module):
    """An encoder and a linear layer on its embedding; the layer is thrown away afterwards."""

    def __init__(self, encoder: Encoder, dimension: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(dimension, classes)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches (b, h, w, 3) in [0, 255] -> logits (b, c)."""
        return self.head(self.encoder(patches))


@dataclass(frozen=True, slots=True)
class Epoch:
    """One line of the history. Figures are of the validation part, each class counted alike."""

    epoch: int
    train_loss: float
    validation_loss: float
    balanced_accuracy: float
    mean_auc: float

    @property
    def rank(self) -> tuple[float, float]:
        """What the best epoch has most of: balanced accuracy; of equals the lower loss wins."""
        return self.balanced_accuracy, -self.validation_loss


@dataclass
class TrainingState:
    """Where a run is: all that a checkpoint holds beside model and optimiser."""

    history: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)

    def finished(self, epochs: int, patience: int) -> bool:
        """Whether no epoch is left, or too many have passed since the best one."""
        done = len(self.history)
        return done >= epochs or (done > 0 and done - 1 - self.best_epoch >= patience)


@dataclass(frozen=True, slots=True)
class PatchBatches:
    """Patches on their way to the device: cut and moved in threads, in a fixed order."""

    patches: PatchSet
    size_px: int
    window_px: float | None
    batch_size: int
    augmentation: float
    threads: int

    def training(self, indices: NDArray[np.int64], seed: int, epoch: int) -> Iterator[Batch]:
        """An epoch: as many draws as there are patches, every class as often."""
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

        return _ahead(load, len(parts), self.threads)

    def validation(self, indices: NDArray[np.int64]) -> Iterator[Batch]:
        """Every patch once, as it is."""
        parts = _parts(indices, 2 * self.batch_size)

        def load(number: int) -> Batch:
            images = [
                plain(self.patches.read(i), self.size_px, self.window_px)
                for i in parts[number].tolist()
            ]
            return self._batch(images, parts[number], None)

        return _ahead(load, len(parts), self.threads)

    def steps(self, patches: int) -> int:
        """Batches of an epoch over so many patches."""
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
    """As many draws as patches, shuffled: each class equally often, and within a class each patch.

    A class runs through permutations of its patches: none comes a second time before all came
    once. Counts of classes differ by one at most.
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
    """Linear rise over the first `warmup` share of all steps, then half a cosine down to 0."""
    rise = warmup * steps
    if step < rise:
        return peak * (step + 1) / (rise + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))


def train_epoch(
    model: Classifier,
    optimiser: torch.optim.Optimizer,
    batches: Iterator[Batch],
    rates: Sequence[float],
    *,
    device: torch.device,
    dtype: torch.dtype,
    name: str,
) -> float:
    """One pass; returns the mean cross-entropy.

    Raises:
        UserError: the loss is not finite.
    """
    model.train()
    total = torch.zeros((), device=device)
    bar = tqdm(batches, name, len(rates), unit="batch", leave=False, disable=None)
    for rate, (patches, labels, changes) in zip(rates, bar, strict=True):
        for group in optimiser.param_groups:
            group["lr"] = rate
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
    model: Classifier, batches: Iterator[Batch], *, device: torch.device, dtype: torch.dtype
) -> tuple[float, float, float]:
    """Cross-entropy and balanced accuracy (each class counted alike), mean one-vs-rest AUC.

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
        aucs = [roc_auc_score(target == c, probabilities[:, c]) for c in present]
    return (
        float(np.mean([losses[target == c].mean() for c in present])),
        float(np.mean([hits[target == c].mean() for c in present])),
        float(np.mean(aucs)),
    )


def save_checkpoint(
    folder: Path,
    identity: str,
    model: Classifier,
    optimiser: torch.optim.Optimizer,
    progress: TrainingState,
) -> None:
    """Write the state after an epoch: whole, or not at all."""
    values = {
        "identity": identity,
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "history": [asdict(epoch) for epoch in progress.history],
        "best_epoch": progress.best_epoch,
        "best_state": progress.best_state,
    }
    with atomic_path(folder / CHECKPOINT) as temporary:
        torch.save(values, temporary)


def load_checkpoint(
    folder: Path, identity: str, model: Classifier, optimiser: torch.optim.Optimizer
) -> TrainingState:
    """Continue where the folder's checkpoint stopped; from the start where it is of another run."""
    for leftover in folder.glob(f".*.tmp.{CHECKPOINT}"):
        leftover.unlink(missing_ok=True)
    path = folder / CHECKPOINT
    if not path.exists():
        return TrainingState()
    try:
        values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if values["identity"] != identity:
            log.info("%s: is of other data or settings; starting anew", path)
            return TrainingState()
        progress = TrainingState(
            [Epoch(**epoch) for epoch in values["history"]],
            values["best_epoch"],
            values["best_state"],
        )
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        log.warning("%s: cannot be read (%s); starting anew", path, str(error).splitlines()[:1])
        return TrainingState()
    model.load_state_dict(values["model"])
    optimiser.load_state_dict(values["optimiser"])
    log.info("%s: resuming after epoch %d", path, len(progress.history))
    return progress


def _autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def _parts(indices: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Batches of nearly equal size: batch statistics of a last, small one would be noise."""
    return np.array_split(indices, max(1, round(len(indices) / batch_size)))


def _ahead(load: Callable[[int], Batch], count: int, threads: int) -> Iterator[Batch]:
    """`load(0), load(1), ...`, made in threads a few ahead of the consumer."""
    with ThreadPoolExecutor(threads, thread_name_prefix="reader") as pool:
        pending: deque[Future[Batch]] = deque()
        try:
            for number in range(count):
                pending.append(pool.submit(load, number))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
