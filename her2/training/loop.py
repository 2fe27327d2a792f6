"""The loop over epochs, with early stopping and a checkpoint after each epoch."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from her2.training.checkpoint import Checkpoint
from her2.training.state import Rank, TrainingState

E = TypeVar("E")


def train_epochs(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    run_epoch: Callable[[int], E],
    *,
    rank: Rank[E] | None,
    epochs: int,
    patience: int | None,
    checkpoint: Checkpoint[E] | None,
) -> TrainingState[E]:
    """Train a model, and leave it with the weights of its best epoch.

    All randomness in an epoch must derive from its number. A resumed training then needs no earlier
    random state and ends with the same weights as one that was never killed.

    Args:
        model: changed in place.
        optimiser: the optimiser of its parameters.
        run_epoch: trains and measures the epoch with a given number (from 0).
        rank: the value that is largest for the best epoch; None: the last epoch is kept.
        epochs: the largest number of epochs.
        patience: number of epochs without improvement before stopping; None: never stop early.
        checkpoint: resumed from if it exists, and written after every epoch. When an epoch fails,
            it still holds the previous one.
    """
    state = TrainingState[E]() if checkpoint is None else checkpoint.load(model, optimiser)
    while not state.finished(epochs, patience):
        state.add(run_epoch(len(state.history)), model, rank)
        if checkpoint is not None:
            checkpoint.save(model, optimiser, state)
    model.load_state_dict(state.best_state)
    return state
