"""How far a training has come: its history, its best epoch and when it is over."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor, nn

E = TypeVar("E")
"""One line of a history: a dataclass of numbers."""

Rank = Callable[[E], tuple[float, ...]]
"""What the best epoch has most of."""


@dataclass
class TrainingState(Generic[E]):
    """How far a training has come; `best_state` are the weights of its best epoch, on the CPU."""

    history: list[E] = field(default_factory=list)
    best_epoch: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)

    def add(self, epoch: E, model: nn.Module, rank: Rank[E] | None) -> None:
        """Note an epoch, and keep its weights when it is the best so far.

        Without a rank the last epoch is always the best. Of equals the first stays.
        """
        self.history.append(epoch)
        number = len(self.history) - 1
        if rank is None or number == 0 or rank(epoch) > rank(self.history[self.best_epoch]):
            self.best_epoch = number
            self.best_state = {
                name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()
            }

    def finished(self, epochs: int, patience: int | None) -> bool:
        """Tell whether no epoch is left, or `patience` of them were no better than the best."""
        done = len(self.history)
        stale = patience is not None and done > 0 and done - 1 - self.best_epoch >= patience
        return done >= epochs or stale
