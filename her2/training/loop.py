"""Epochs until nothing is left or nothing becomes better, with a checkpoint after each."""

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

    All that is random in an epoch has to come from its number, so a resumed training needs no
    memory of the random numbers before: it ends with the weights of one that was never killed.

    Args:
        model: changed in place.
        optimiser: of its parameters.
        run_epoch: trains the epoch of a number (from 0) and measures it.
        rank: what the best epoch has most of; None: the last is kept.
        epochs: at most.
        patience: epochs that may pass without a better one; None: all are trained.
        checkpoint: to resume from if it is there, and to write after every epoch. It stays when
            an epoch fails: it holds the last good one.
    """
    state = TrainingState[E]() if checkpoint is None else checkpoint.load(model, optimiser)
    while not state.finished(epochs, patience):
        state.add(run_epoch(len(state.history)), model, rank)
        if checkpoint is not None:
            checkpoint.save(model, optimiser, state)
    model.load_state_dict(state.best_state)
    return state
