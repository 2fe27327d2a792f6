"""Learned attention over the instances of a bag, and pooling by one map per output.

Sources: Ilse et al. 2018 (equations in `her2.heads.abmil`), Lu et al. 2021 (in
`her2.heads.multibranch`).
"""

import torch
from torch import Tensor, nn

from her2.heads import Attending
from her2.heads.layers.head import Head, Output


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
