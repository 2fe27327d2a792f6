"""Stage 2, train: one fold. The tune part picks the epoch; the test part is not seen here."""

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from her2.config import HeadSection, LogisticSection, TrainingSection
from her2.errors import UserError
from her2.mil.bags import Bag, check_dimensions, sample_batch, statistics, whole_bag
from her2.mil.baseline import fit_baseline
from her2.mil.heads import build_head
from her2.mil.heads.head import InstanceSupervised, Output
from her2.mil.losses import Loss, bag_loss, class_logits, members, output_count

log = logging.getLogger(__name__)


class Model(nn.Module):
    """Standardisation by the train part's statistics, then a head."""

    def __init__(
        self, head: nn.Module, mean: Tensor, std: Tensor, loss: Loss = "cross_entropy"
    ) -> None:
        super().__init__()
        self.head = head
        self.loss: Loss = loss
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, bag: Tensor, mask: Tensor) -> Output:
        """Features (b, n, d) and mask (b, n) -> logits (b, o) and attention (b, n) or (b, n, o)."""
        return self.head((bag - self.mean) / self.std, mask)


@dataclass(frozen=True, slots=True)
class Epoch:
    """One line of a fold's history; losses are mean cross-entropies a slide."""

    epoch: int
    train_loss: float
    tune_loss: float
    tune_accuracy: float


@dataclass(frozen=True, slots=True)
class Trained:
    """A fold's model (of its best epoch) and how it got there."""

    model: Model
    history: tuple[Epoch, ...]
    best_epoch: int

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
) -> Trained:
    """Train on the train part until the tune part's loss stops falling.

    With `keep_last` all epochs are trained and the last is kept; the tune part may then be empty.

    Raises:
        UserError: a class is absent from the train part, the tune part is empty, or the loss
            is not finite.
    """
    _check_parts(train, tune, class_names, keep_last=keep_last)
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    dimension = check_dimensions([*train, *tune])
    if isinstance(head, LogisticSection):
        return _fit_baseline(train, tune, head, training, len(class_names), device)
    mean, std = torch.zeros(dimension), torch.ones(dimension)
    if training.standardise:
        mean, std = statistics(train, per_bag=256, seed=seed)
    outputs = output_count(training.loss, len(class_names))
    model = Model(build_head(head, dimension, outputs), mean, std, training.loss).to(device)
    optimiser = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[training.optimiser](
        model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
    )
    history: list[Epoch] = []
    best, best_state = 0, copy.deepcopy(model.state_dict())
    for epoch in range(training.epochs):
        loss = _train_epoch(model, optimiser, train, training, generator, epoch, device)
        tune_loss, accuracy = _tune(model, tune, epoch, device)
        history.append(Epoch(epoch, loss, tune_loss, accuracy))
        if keep_last or epoch == 0 or tune_loss < history[best].tune_loss:
            best, best_state = epoch, copy.deepcopy(model.state_dict())
        elif epoch - best >= training.patience:
            break
    model.load_state_dict(best_state)
    return Trained(model.eval(), tuple(history), best)


def _fit_baseline(
    train: Sequence[Bag],
    tune: Sequence[Bag],
    head: LogisticSection,
    training: TrainingSection,
    classes: int,
    device: torch.device,
) -> Trained:
    """Logistic regression of mean embeddings; an "epoch" is a strength."""

    def part(bags: Sequence[Bag]) -> tuple[np.ndarray, np.ndarray]:
        means = [bag.store.all().mean(axis=0, dtype=np.float64) for bag in bags]
        return np.stack(means), np.array([bag.label for bag in bags])

    fit = fit_baseline(
        part(train),
        part(tune),
        classes=classes,
        strengths=head.strengths,
        balanced=training.balance != "none",
    )
    history = tuple(
        Epoch(index, c.train_loss, c.tune_loss, c.tune_accuracy)
        for index, c in enumerate(fit.candidates)
    )
    return Trained(Model(fit.head, fit.mean, fit.std).to(device).eval(), history, fit.best)


@torch.inference_mode()
def predict(model: Model, bag: Bag, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Class probabilities (c,) and attention (n,) of a slide, from all of its tiles; float32.

    Of a head with one map an output, it is the map of the predicted class (or, ordered, of the
    highest threshold that it passes; of the lowest if none).
    """
    features, mask = whole_bag(bag)
    output = model.eval()(features.to(device), mask.to(device))
    probabilities = class_logits(output.logits.double(), model.loss).softmax(dim=1)[0]
    attention = output.attention[0]  # (n,) or (n, o)
    if attention.ndim == 2:
        predicted = int(probabilities.argmax())
        attention = attention[:, max(0, predicted - (model.loss == "ordinal"))]
    return probabilities.float().cpu().numpy(), attention.float().cpu().numpy()


@torch.inference_mode()
def predict_bags(
    model: Model, bags: Sequence[Bag], *, count: int, bag_size: int, seed: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Random bags of random slides, both drawn anew each time.

    Returns:
        Which slide each bag is of (count,), and class probabilities (count, c).
    """
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(bags), size=count)
    parts = []
    for start in range(0, count, 64):
        features, mask, _ = sample_batch(
            [bags[i] for i in drawn[start : start + 64]], bag_size=bag_size, generator=generator
        )
        logits = model.eval()(features.to(device), mask.to(device)).logits
        found = class_logits(logits.double(), model.loss).softmax(dim=1)
        parts.append(found.float().cpu().numpy())
    return drawn, np.concatenate(parts)


def _train_epoch(
    model: Model,
    optimiser: torch.optim.Optimizer,
    bags: Sequence[Bag],
    training: TrainingSection,
    generator: np.random.Generator,
    epoch: int,
    device: torch.device,
) -> float:
    model.train()
    order = _epoch_order(bags, training, generator)
    total = 0.0
    for start in range(0, len(order), training.bags_per_batch):
        batch = [bags[i] for i in order[start : start + training.bags_per_batch]]
        features, mask, labels = (
            tensor.to(device)
            for tensor in sample_batch(batch, bag_size=training.bag_size, generator=generator)
        )
        output = model(features, mask)
        loss = bag_loss(output.logits, labels, loss=model.loss, smoothing=training.label_smoothing)
        if isinstance(head := model.head, InstanceSupervised):
            belongs = members(labels, model.loss, output.logits.shape[1])
            extra = head.instance_loss(output, mask, belongs)
            loss = (1 - head.instance_weight) * loss + head.instance_weight * extra
        if not math.isfinite(value := loss.item()):
            names = ", ".join(bag.slide_id for bag in batch)
            raise UserError(
                f"the loss is {value} in epoch {epoch}, in a batch of the slides {names}; lower "
                "training.learning_rate."
            )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        total += value * len(batch)
    return total / len(order)


def _epoch_order(
    bags: Sequence[Bag], training: TrainingSection, generator: np.random.Generator
) -> np.ndarray:
    """Which bags an epoch takes: each once, or as many draws with every class as likely."""
    if training.balance == "none":
        return generator.permutation(len(bags))
    count = len(bags)
    if training.steps_per_epoch is not None:
        count = training.steps_per_epoch * training.bags_per_batch
    if training.balance == "slides":
        return generator.choice(len(bags), size=count)
    labels = np.array([bag.label for bag in bags])
    weights = 1 / np.bincount(labels)[labels]
    return generator.choice(len(bags), size=count, p=weights / weights.sum())


@torch.inference_mode()
def _tune(
    model: Model, bags: Sequence[Bag], epoch: int, device: torch.device
) -> tuple[float, float]:
    losses, hits = [], []
    if not bags:
        return math.nan, math.nan
    for bag in bags:
        probabilities, _ = predict(model, bag, device)
        if not np.isfinite(probabilities).all():
            raise UserError(
                f"the predictions of the tune slide {bag.slide_id} are not finite in epoch "
                f"{epoch}; lower training.learning_rate."
            )
        losses.append(-math.log(max(1e-12, float(probabilities[bag.label]))))
        hits.append(int(probabilities.argmax()) == bag.label)
    return float(np.mean(losses)), float(np.mean(hits))


def _check_parts(
    train: Sequence[Bag], tune: Sequence[Bag], class_names: Sequence[str], *, keep_last: bool
) -> None:
    present = {bag.label for bag in train}
    absent = [name for index, name in enumerate(class_names) if index not in present]
    if absent:
        raise UserError(
            f"no usable slide of class {', '.join(absent)} in the train part; lower folds.number, "
            "merge classes in `tasks`, or see the audit for slides that were left out."
        )
    if not tune and not keep_last:
        raise UserError("no usable slide in the tune part; raise folds.tune or add slides.")
