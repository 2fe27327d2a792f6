"""What every head's network is: features and a mask in, logits and attention out.

A head is a module called with features (b, n, d) and a mask (b, n), True on instances that exist
(at least one a bag). b bags, n instances, d features, o outputs (`losses.output_count`: one a
class, or one a threshold between ordered classes).
"""

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from her2.heads import Projected


class Output(NamedTuple):
    """What a head returns.

    Attributes:
        logits: (b, o).
        attention: (b, n), or (b, n, o) where each output has its own map; zero on masked
            instances, and each map of a bag sums to one.
        contribution: (b, n, o) of an additive head: what each instance adds to each logit.
        instances: what the head's own `instance_loss` needs, in a shape of its own.
    """

    logits: Tensor
    attention: Tensor
    contribution: Tensor | None = None
    instances: Tensor | None = None


@runtime_checkable
class InstanceSupervised(Protocol):
    """A head with a loss on instances: `(1 - instance_weight) * bag + instance_weight * it`."""

    instance_weight: float

    def instance_loss(self, output: Output, mask: Tensor, members: Tensor) -> Tensor:
        """A scalar, from the head's own output and `losses.members` (b, o) of the labels."""


def projection(dimension: int, hidden: int) -> nn.Module:
    """Linear + ReLU to `hidden` features; nothing for 0."""
    return nn.Sequential(nn.Linear(dimension, hidden), nn.ReLU()) if hidden else nn.Identity()


class FeatureDropout(nn.Module):
    """Dropout of input features, whose number makes torch's own half of a training step on a CPU.

    One random byte decides on a feature, so a probability is rounded to a 256th; what is kept is
    scaled by the inverse of the rounded share, and the mean stays. The seed of the bytes is drawn
    from torch's generator. On a GPU torch's dropout is used.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.dropped = min(255, max(1, round(256 * probability))) if probability else 0

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; nothing happens outside of training."""
        if not self.training or not self.dropped:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.probability)
        generator = np.random.Generator(np.random.SFC64(int(torch.randint(2**62, (1,)))))
        words = generator.integers(2**64, size=-(-x.numel() // 8), dtype=np.uint64)
        noise = torch.from_numpy(words.view(np.uint8)[: x.numel()]).view(x.shape)
        kept = (noise >= self.dropped).view(torch.uint8)  # a bool would be multiplied slowly
        return (x * kept).mul_(256 / (256 - self.dropped))


class Head(nn.Module, ABC):
    """Features are dropped out, projected, described tile by tile; then a bag is pooled.

    `forward` is `pool(encode(bag), mask)`. Because `encode` treats every tile alone, a whole slide
    is encoded in pieces, and only what `pool` reads of a tile is ever held for all of them.
    """

    pools_in_products = False
    """Whether `pool` holds matrix products that mixed precision is worth while for."""

    def __init__(self, options: Projected, dimension: int) -> None:
        super().__init__()
        self.width = options.hidden or dimension
        self.dropout = FeatureDropout(options.dropout)
        self.project = projection(dimension, options.hidden)

    def encode(self, bag: Tensor) -> tuple[Tensor, ...]:
        """Features (b, n, d) -> what `pool` reads of each instance, each (b, n, ...)."""
        return (self.project(self.dropout(bag)),)  # (b, n, width)

    @abstractmethod
    def pool(self, parts: tuple[Tensor, ...], mask: Tensor) -> Output:
        """What `encode` gave, and mask (b, n) -> logits (b, o), attention (b, n) or (b, n, o)."""

    def forward(self, bag: Tensor, mask: Tensor) -> Output:
        """Classify bags: features (b, n, d), mask bool (b, n), True on instances that exist."""
        return self.pool(self.encode(bag), mask)
