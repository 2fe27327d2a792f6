"""Base class of every head's network: features and a mask in, logits and attention out.

A head is a module called with features (b, n, d) and a mask (b, n), True on instances that exist
(at least one per bag). b bags, n instances, d features, o outputs (`losses.output_count`: one per
class, or one per threshold between ordered classes).
"""

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from her2.heads import Projected


class Output(NamedTuple):
    """The result of a head.

    Attributes:
        logits: (b, o).
        attention: (b, n), or (b, n, o) where each output has its own map; zero on masked
            instances, and each map of a bag sums to one.
        contribution: (b, n, o), the summand of each instance in each logit of an additive head.
        instances: input of the head's own `instance_loss`, in a shape of its own.
    """

    logits: Tensor
    attention: Tensor
    contribution: Tensor | None = None
    instances: Tensor | None = None


@runtime_checkable
class InstanceSupervised(Protocol):
    """A head with an instance loss, which replaces `instance_weight` of the bag's loss."""

    instance_weight: float

    def instance_loss(self, output: Output, mask: Tensor, members: Tensor) -> Tensor:
        """Return the loss, a scalar, from the head's output and the labels' `members` (b, o)."""


def projection(dimension: int, hidden: int) -> nn.Module:
    """Build linear + ReLU to `hidden` features, or the identity for 0."""
    return nn.Sequential(nn.Linear(dimension, hidden), nn.ReLU()) if hidden else nn.Identity()


class FeatureDropout(nn.Module):
    """Dropout of input features that is fast on a CPU.

    There are so many features that torch's own dropout would take half of a training step on a
    CPU. One random byte decides on a feature, so the probability is rounded to a multiple of 1/256.
    Kept features are divided by the kept share, which preserves the mean. The seed of the bytes is
    drawn from torch's generator. On a GPU torch's dropout is used.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.dropped = min(255, max(1, round(256 * probability))) if probability else 0

    def forward(self, x: Tensor) -> Tensor:
        """Drop features of a tensor of any shape; outside of training return it unchanged."""
        if not self.training or not self.dropped:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.probability)
        generator = np.random.Generator(np.random.SFC64(int(torch.randint(2**62, (1,)))))
        words = generator.integers(2**64, size=-(-x.numel() // 8), dtype=np.uint64)
        noise = torch.from_numpy(words.view(np.uint8)[: x.numel()]).view(x.shape)
        kept = (noise >= self.dropped).view(torch.uint8)  # multiplying by a bool would be slow
        return (x * kept).mul_(256 / (256 - self.dropped))


class Head(nn.Module, ABC):
    """A network that encodes tiles one by one (dropout, projection, ...) and pools them per bag.

    `forward` is `pool(encode(bag), mask)`. Because `encode` treats every tile alone, a whole slide
    can be encoded in pieces: only the input of `pool` is held for all of its tiles at once.
    """

    pools_in_products = False
    """True where `pool` does matrix products large enough to gain from mixed precision."""

    def __init__(self, options: Projected, dimension: int) -> None:
        super().__init__()
        self.width = options.hidden or dimension
        self.dropout = FeatureDropout(options.dropout)
        self.project = projection(dimension, options.hidden)

    def encode(self, bag: Tensor) -> tuple[Tensor, ...]:
        """Encode features (b, n, d): the parts of each instance that `pool` reads (b, n, ...)."""
        return (self.project(self.dropout(bag)),)  # (b, n, width)

    @abstractmethod
    def pool(self, parts: tuple[Tensor, ...], mask: Tensor) -> Output:
        """Pool the parts under a mask (b, n): logits (b, o), attention (b, n) or (b, n, o)."""

    def forward(self, bag: Tensor, mask: Tensor) -> Output:
        """Classify bags: features (b, n, d), mask bool (b, n), True on instances that exist."""
        return self.pool(self.encode(bag), mask)
