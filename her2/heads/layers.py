"""Parts of the heads' networks: their base class, learned attention, and Nystrom's self-attention.

A head is a module called with features (b, n, d) and a mask (b, n), True on instances that exist
(at least one per bag). b bags, n instances, d features, o outputs (`losses.output_count`: one per
class, or one per threshold between ordered classes).

This imports torch, so heads import it inside `network`. Sources: Ilse et al. 2018 (equations in
`her2.heads.abmil`), Lu et al. 2021 (in `her2.heads.multibranch`); Xiong et al., Nystromformer,
AAAI 2021 (arXiv 2102.03902).
"""

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from her2.heads import Attending, Projected

ATTENTION_HEADS = 8
ATTENTION_DROPOUT = 0.1
"""Dropout rate of the self-attention's output."""


class Output(NamedTuple):
    """The result of a head.

    `attention` is (b, n), or (b, n, o) where each output has its own map; it is zero on masked
    instances, and each map of a bag sums to one. `contribution` (b, n, o) is the summand of each
    instance in each logit (b, o) of an additive head. `instances` are the input of the head's own
    `instance_loss`, in a shape of its own.
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


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the softmax of scores (b, n, m) over instances in the mask (b, n), in float32."""
    return scores.float().masked_fill(~mask[:, :, None], -torch.inf).softmax(dim=1)


def tanh(x: Tensor) -> Tensor:
    """Return tanh(x) = 2 sigm(2x) - 1, on a CPU in a third of the time of torch's own tanh."""
    # The subtraction would lose most of the eight bits of a bfloat16.
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return torch.tanh(x)
    return 2 * torch.sigmoid(2 * x) - 1


class Attention(Head):
    """A head with m attention maps over the projected instances (Ilse 2018)."""

    def __init__(self, options: Attending, dimension: int, *, maps: int) -> None:
        super().__init__(options, dimension)
        self.value = nn.Linear(self.width, options.attention)
        self.gate = nn.Linear(self.width, options.attention) if options.gated else None
        self.score = nn.Linear(options.attention, maps)

    def encode(self, bag: Tensor) -> tuple[Tensor, ...]:
        """Encode features (b, n, d): instances (b, n, width) and their scores (b, n, m)."""
        h = self.project(self.dropout(bag))  # (b, n, width)
        a = tanh(self.value(h))  # (b, n, attention)
        if self.gate is not None:
            a = a * torch.sigmoid(self.gate(h))  # (b, n, attention)
        return h, self.score(a)


class MultiBranch(Attention):
    """A head with one attention map, shared or per output, and a linear classifier per output."""

    def __init__(self, options: Attending, dimension: int, outputs: int, *, shared: bool) -> None:
        super().__init__(options, dimension, maps=1 if shared else outputs)
        self.shared = shared
        self.classifier = nn.Linear(self.width, outputs)

    def pool(self, parts: tuple[Tensor, ...], mask: Tensor) -> Output:
        """Pool instances (b, n, width) by scores (b, n, o or 1): logits (b, o), attention.

        The attention is (b, n, o), or (b, n) where the map is shared.
        """
        h, scores = parts[:2]
        weights = masked_softmax(scores, mask)  # (b, n, o or 1)
        z = torch.einsum("bnm,bnw->bmw", weights, h.to(weights.dtype))  # (b, o or 1, width)
        logits = (z * self.classifier.weight).sum(dim=2) + self.classifier.bias  # (b, o)
        return Output(logits, weights.squeeze(2) if self.shared else weights)


class NystromAttention(nn.Module):
    """Multi-head self-attention of one sequence, linear in its length.

    softmax(Q K~^T) pinv( softmax(Q~ K~^T) ) softmax(Q~ K^T) V,    Q~, K~ means of m segments

    The convolution of the values is TransMIL's.
    """

    def __init__(self, width: int, landmarks: int) -> None:
        super().__init__()
        self.landmarks = landmarks
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        m = ATTENTION_HEADS
        self.skip = nn.Conv2d(m, m, (33, 1), padding=(16, 0), groups=m, bias=False)
        self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout(ATTENTION_DROPOUT))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Attend tokens (n, width): their increments (n, width), the first's attention (n,)."""
        parts = self.qkv(x).unflatten(1, (3, ATTENTION_HEADS, -1)).permute(1, 2, 0, 3)
        q, k, v = parts  # each (heads, n, width / heads)
        q = q * q.shape[2] ** -0.5
        mixed = nystrom(q, k, v, self.landmarks) + self.skip(v[None])[0]  # (heads, n, ...)
        row = (q[:, :1] @ k.mT).float().softmax(dim=2)[:, 0].mean(dim=0)  # (n,)
        return self.out(mixed.transpose(0, 1).flatten(1)), row


def nystrom(q: Tensor, k: Tensor, v: Tensor, landmarks: int) -> Tensor:
    """Return softmax(q k^T) v of (heads, n, e) each, approximated where n exceeds `landmarks`."""
    if q.shape[1] <= landmarks:
        return (q @ k.mT).softmax(dim=2) @ v
    q_few, k_few = segment_means(q, landmarks), segment_means(k, landmarks)  # (heads, m, e)
    inverse = pseudo_inverse((q_few @ k_few.mT).softmax(dim=2))  # (heads, m, m)
    gathered = (q_few @ k.mT).softmax(dim=2) @ v  # (heads, m, e)
    return (q @ k_few.mT).softmax(dim=2) @ (inverse.to(v.dtype) @ gathered)


def segment_means(x: Tensor, count: int) -> Tensor:
    """Return the means (heads, m, e) of `count` = m nearly equal consecutive segments."""
    length, longer = divmod(x.shape[1], count)
    head, tail = x.split([longer * (length + 1), x.shape[1] - longer * (length + 1)], dim=1)
    means = [
        part.unflatten(1, (segments, -1)).mean(dim=2)
        for part, segments in ((head, longer), (tail, count - longer))
        if segments
    ]
    return torch.cat(means, dim=1)


def pseudo_inverse(matrix: Tensor, iterations: int = 6) -> Tensor:
    """Return the Moore-Penrose inverse (heads, m, m) by Nystromformer's iteration."""
    with torch.autocast(matrix.device.type, enabled=False):
        a = matrix.float()
        size = a.abs().sum(dim=1).amax(dim=1) * a.abs().sum(dim=2).amax(dim=1)  # (heads,)
        z = a.mT / size[:, None, None]
        one = torch.eye(a.shape[1], device=a.device)
        for _ in range(iterations):
            az = a @ z
            z = z @ (13 * one - az @ (15 * one - az @ (7 * one - az))) / 4
        return z
