"""Progress of a training: its history, its best epoch and whether it is finished."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor, nn

E = TypeVar("E")
"""One epoch of a history: a dataclass of numbers."""

Rank = Callable[[E], tuple[float, ...]]
"""Function of an epoch whose value is largest for the best one."""


@dataclass
class TrainingState(Generic[E]):
    """Progress of a training; `best_state` holds the weights of its best epoch, on the CPU."""

    history: list[E] = field(default_factory=list)
    best_epoch: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)

    def add(self, epoch: E, model: nn.Module, rank: Rank[E] | None) -> None:
        """Record an epoch, and keep its weights if it is the best so far.

        Without a rank the last epoch is always the best. Among equal epochs the first is kept.
        """
        self.history.append(epoch)
        number = len(self.history) - 1
        if rank is None or number == 0 or rank(epoch) > rank(self.history[self.best_epoch]):
            self.best_epoch = number
            self.best_state = {
                name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()
            }

    def finished(self, epochs: int, patience: int | None) -> bool:
        """Tell whether all epochs are done, or the last `patience` ones were no better."""
        done = len(self.history)
        stale = patience is not None and done > 0 and done - 1 - self.best_epoch >= patience
        return done >= epochs or stale
