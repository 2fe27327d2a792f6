"""Bags in memory, and a fold's training, for the tests of stage 2."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from her2.config import HeadSection, TrainingSection
from her2.heads.abmil import AttentionSection
from her2.mil.bags import Bag
from her2.mil.train import Trained, train_fold
from her2.storage.features import FeatureStore

CPU = torch.device("cpu")
HEAD = AttentionSection(head="abmil", attention=8, gated=True, dropout=0.1)
D = 6
BINARY = ("negative", "positive")


def bag(name: str, features: np.ndarray, label: int | None) -> Bag:
    """Return a bag whose store is in memory."""
    store = FeatureStore(Path("/nowhere"), (features,), {"encoder": {"digest": "e"}})
    return Bag(name, f"p-{name}", f"k-{name}", store, label)


def noise(count: int, *, seed: int, tiles: int = 12, classes: int = 2) -> list[Bag]:
    """Return bags that carry no information on their labels."""
    generator = np.random.default_rng(seed)
    return [
        bag(f"n{seed}-{i}", generator.normal(size=(tiles, D)).astype(np.float32), i % classes)
        for i in range(count)
    ]


def key_instances(count: int, *, seed: int, tiles: int = 30) -> list[Bag]:
    """Return bags with mean zero, in which positive ones have three tiles of a special kind."""
    generator = np.random.default_rng(seed)
    bags = []
    for i in range(count):
        features = generator.normal(size=(tiles, D)).astype(np.float32)
        if i % 2:
            features[:3] = 0
            features[:3, 0] = 4
        features -= features.mean(axis=0)
        bags.append(bag(f"k{seed}-{i}", features, i % 2))
    return bags


def training(**changed: object) -> TrainingSection:
    values = {
        "bag_size": 16, "bags_per_batch": 4, "epochs": 4, "patience": 4, "learning_rate": 3e-3,
    }  # fmt: skip
    # Not validated: a test may set a rate beyond the config's limit, so that training explodes.
    rate = {name: changed.pop(name) for name in ("learning_rate",) if name in changed}
    return TrainingSection.model_validate(values | changed).model_copy(update=rate)


def fit(
    train: Sequence[Bag],
    tune: Sequence[Bag],
    *,
    seed: int = 0,
    head: HeadSection = HEAD,
    class_names: Sequence[str] = BINARY,
    checkpoint: Path | None = None,
    **changed: object,
) -> Trained:
    return train_fold(
        train,
        tune,
        head=head,
        training=training(**changed),
        class_names=class_names,
        seed=seed,
        device=CPU,
        checkpoint=checkpoint,
    )


def weights(trained: Trained) -> dict[str, torch.Tensor]:
    return trained.model.state_dict()
