"""Stage 2, train: train one fold; the tuning set picks the epoch, the test set is not used."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from her2.config import HeadSection, TrainingSection
from her2.core.errors import UserError
from her2.core.files import digest
from her2.heads import Fitted
from her2.heads.layers import InstanceSupervised, Output
from her2.metrics import selecting_metrics
from her2.mil.bags import Bag, check_dimensions, statistics
from her2.mil.baseline import fit_baseline
from her2.mil.batches import Batch, bag_batches
from her2.mil.losses import bag_loss, members, output_count
from her2.mil.model import Model, predict
from her2.mil.selection import UNDEFINED, Epoch, TuneFigures, tune_figures
from her2.training.checkpoint import Checkpoint
from her2.training.loop import train_epochs
from her2.training.prefetch import Prefetch
from her2.training.schedule import factor, set_rate

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trained:
    """A fold's model (its best epoch) and its history.

    `head` holds the options it was built with. `seconds` and `waited_seconds` (for data) count the
    training steps of this process only, which may have resumed from a checkpoint.
    """

    model: Model
    head: HeadSection
    history: tuple[Epoch, ...]
    best_epoch: int
    seconds: float = 0.0
    waited_seconds: float = 0.0

    @property
    def best(self) -> Epoch:
        """The epoch that was kept."""
        return self.history[self.best_epoch]


def train_fold(
    train: Sequence[Bag],
    tune: Sequence[Bag],
    *,
    head: HeadSection,
    training: TrainingSection,
    class_names: Sequence[str],
    seed: int,
    device: torch.device,
    keep_last: bool = False,
    kept: int | None = None,
    checkpoint: Path | None = None,
) -> Trained:
    """Train on the training set until predictions for the tuning set stop improving.

    Args:
        train: bags of the training set.
        tune: bags of the tuning set, which pick the epoch by `training.select`.
        head: the head's section, without a search.
        training: the `training` section of the config.
        class_names: classes of the task, in order.
        seed: seed of weights, draws and dropout.
        device: device to train on.
        keep_last: train all epochs and keep the last; the tuning set may then be empty.
        kept: with `keep_last`, the epoch (from 0) that is the last, or the estimator of a fitted
            head that is kept. The learning rate falls over `training.epochs` all the same.
        checkpoint: file to resume from if it exists, written after every epoch. When training
            fails, it still holds the last good epoch.

    Raises:
        UserError: a class is absent from the training set, the tuning set is empty or lacks a class
            that `training.select` needs, or the loss is not finite.
    """
    if problem := parts_problem(train, tune, class_names, training, keep_last=keep_last):
        raise UserError(f"{problem}.")
    dimension = check_dimensions([*train, *tune])
    if isinstance(head, Fitted):
        return _fit_baseline(train, tune, head, training, len(class_names), device, kept)
    torch.manual_seed(seed)
    mean, std = torch.zeros(dimension), torch.ones(dimension)
    if training.standardise:
        mean, std = statistics(train, per_bag=256, seed=seed)
    outputs = output_count(training.loss, len(class_names))
    network = head.build(dimension, outputs)
    model = Model(network, mean, std, training.loss, training.precision).to(device)
    optimiser = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[training.optimiser](
        model.parameters(),
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
        fused=True,
    )
    weights = _class_weights(train, training, len(class_names), device)
    seconds = waited = 0.0

    def run_epoch(epoch: int) -> Epoch:
        nonlocal seconds, waited
        batches = bag_batches(train, training, seed=seed, epoch=epoch)
        torch.manual_seed(int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0]))
        try:
            start = time.perf_counter()
            loss, rate = train_epoch(model, optimiser, batches, training, weights, epoch)
            seconds += time.perf_counter() - start
            waited += batches.waited_seconds
            return Epoch(epoch, rate, loss, _tune(model, tune, epoch))
        except _NotFiniteError as error:
            raise UserError(f"{error}{_kept(checkpoint, epoch)}") from None

    state = train_epochs(
        model,
        optimiser,
        run_epoch,
        rank=None if keep_last else lambda epoch: epoch.tune.rank(training.select),
        epochs=training.epochs if kept is None else kept + 1,
        patience=None if keep_last else training.patience,
        checkpoint=_checkpoint(checkpoint, [*train, *tune]) if checkpoint else None,
    )
    history = tuple(state.history)
    return Trained(model.eval(), head, history, state.best_epoch, seconds, waited)


def rate_factor(step: int, steps_per_epoch: int, training: TrainingSection) -> float:
    """Return the factor of the learning rate in a step (from 0)."""
    warmup = training.warmup_epochs * steps_per_epoch
    return factor(
        step,
        rise=warmup,
        decay_from=warmup if training.schedule == "cosine" else None,
        total=training.epochs * steps_per_epoch,
    )


class _NotFiniteError(Exception):
    """A message about a loss or prediction that is not finite."""


def _checkpoint(path: Path, bags: Sequence[Bag]) -> Checkpoint[Epoch]:
    """Return a fold's checkpoint, which says whose it is and what was read, as its path cannot."""
    identity = digest([path.name, [(bag.slide_id, bag.read) for bag in bags]])
    return Checkpoint(path, Epoch, identity)


def _kept(checkpoint: Path | None, epoch: int) -> str:
    if checkpoint is None or epoch == 0:
        return ""
    return f" The last good epoch ({epoch - 1}) is kept in {checkpoint}."


def _fit_baseline(
    train: Sequence[Bag],
    tune: Sequence[Bag],
    head: Fitted,
    training: TrainingSection,
    classes: int,
    device: torch.device,
    kept: int | None,
) -> Trained:
    """Fit a classifier of mean embeddings; each estimator counts as an epoch of the history."""

    def part(bags: Sequence[Bag]) -> tuple[np.ndarray, np.ndarray]:
        means = [bag.store.features.mean(axis=0, dtype=np.float64) for bag in bags]
        return np.array(means), np.array([bag.label for bag in bags])

    fit = fit_baseline(
        part(train),
        part(tune),
        head=head,
        classes=classes,
        balanced=training.balance in ("sampling", "loss"),
        select=training.select,
        kept=kept,
    )
    history = tuple(Epoch(i, 0.0, c.train_loss, c.tune) for i, c in enumerate(fit.candidates))
    model = Model(fit.head, fit.mean, fit.std).to(device).eval()
    return Trained(model, head, history, fit.best)


def train_epoch(
    model: Model,
    optimiser: torch.optim.Optimizer,
    batches: Prefetch[Batch],
    training: TrainingSection,
    weights: Tensor | None,
    epoch: int,
) -> tuple[float, float]:
    """Train one pass; return the mean loss per slide and the last step's learning rate."""
    model.train()
    device = model.mean.device
    steps, total, count, rate = len(batches), 0.0, 0, 0.0
    for step, batch in enumerate(batches):
        rate = training.learning_rate * rate_factor(epoch * steps + step, steps, training)
        set_rate(optimiser, rate)
        features, mask, labels = (
            tensor.to(device, non_blocking=True)
            for tensor in (batch.features, batch.mask, batch.labels)
        )
        output = model(features, mask)
        loss = _loss(model, output, mask, labels, training, weights)
        if not math.isfinite(value := loss.item()):
            raise _NotFiniteError(_blame(model, output, batch, epoch, value))
        optimiser.zero_grad()
        loss.backward()
        if training.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
        optimiser.step()
        total += value * len(batch.bags)
        count += len(batch.bags)
    return total / count, rate


def _loss(
    model: Model,
    output: Output,
    mask: Tensor,
    labels: Tensor,
    training: TrainingSection,
    weights: Tensor | None,
) -> Tensor:
    loss = bag_loss(
        output.logits,
        labels,
        loss=model.loss,
        smoothing=training.label_smoothing,
        weights=weights,
    )
    if isinstance(head := model.head, InstanceSupervised):
        belongs = members(labels, model.loss, output.logits.shape[1])
        extra = head.instance_loss(output, mask, belongs)
        loss = (1 - head.instance_weight) * loss + head.instance_weight * extra
    return loss


def _blame(model: Model, output: Output, batch: Batch, epoch: int, value: float) -> str:
    """Return a message that names the slides whose loss is not finite, or all of the batch."""
    losses = [
        bag_loss(output.logits[i : i + 1].cpu(), batch.labels[i : i + 1], loss=model.loss)
        for i in range(len(batch.bags))
    ]
    named = [
        bag.slide_id
        for bag, loss in zip(batch.bags, losses, strict=True)
        if not math.isfinite(loss.item())
    ]
    names = ", ".join(dict.fromkeys(named or [bag.slide_id for bag in batch.bags]))
    return (
        f"the loss is {value} in epoch {epoch} for the slides {names}; lower "
        "training.learning_rate, or look for damaged stores with `her2 cache verify`."
    )


def _class_weights(
    bags: Sequence[Bag], training: TrainingSection, classes: int, device: torch.device
) -> Tensor | None:
    """Return class weights (c,) for `balance: loss`, inverse to the classes' counts of slides.

    Their mean over the slides is 1.
    """
    if training.balance != "loss":
        return None
    counts = np.bincount([bag.label or 0 for bag in bags], minlength=classes)
    return torch.tensor(len(bags) / (classes * counts), dtype=torch.float32, device=device)


def _tune(model: Model, bags: Sequence[Bag], epoch: int) -> TuneFigures:
    if not bags:
        return UNDEFINED
    found = []
    for bag in bags:
        probabilities = predict(model, bag).probabilities
        if not np.isfinite(probabilities).all():
            raise _NotFiniteError(
                f"the prediction for slide {bag.slide_id} of the tuning set is not finite in epoch "
                f"{epoch}; lower training.learning_rate."
            )
        found.append(probabilities)
    return tune_figures(np.stack(found), [bag.label or 0 for bag in bags])


def parts_problem(
    train: Sequence[Bag],
    tune: Sequence[Bag],
    class_names: Sequence[str],
    training: TrainingSection,
    *,
    keep_last: bool,
) -> str:
    """Return what a training lacks in its training or tuning set, and the fix; "" if nothing.

    Raises:
        UserError: a bag has no tiles.
    """
    empty = [bag.slide_id for bag in (*train, *tune) if len(bag) == 0]
    if empty:
        raise UserError(
            f"{', '.join(empty)}: the feature store contains no tiles; embed the slide again."
        )
    if absent := _absent(train, class_names):
        return (
            f"no usable slide of class {', '.join(absent)} in the training set; see the report's "
            "list of excluded slides, or merge classes in `tasks`"
        )
    if keep_last:
        return ""
    if not tune:
        return "no usable slide in the tuning set; raise folds.tune or add slides"
    if training.select == "loss":
        return ""
    needs = selecting_metrics()[training.select][1].needs
    absent = _absent(tune, class_names)
    if needs == "all" and absent:
        return (
            f"training.select {training.select} is not defined: no usable slide of class "
            f"{', '.join(absent)} in the tuning set; raise folds.tune, or select by loss"
        )
    if needs == "two" and len(class_names) - len(absent) < 2:
        return (
            f"training.select {training.select} is not defined: the tuning set has only one class; "
            "raise folds.tune, or select by loss"
        )
    return ""


def _absent(bags: Sequence[Bag], class_names: Sequence[str]) -> list[str]:
    present = {bag.label for bag in bags}
    return [name for index, name in enumerate(class_names) if index not in present]
