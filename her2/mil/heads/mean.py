r"""Stage 2, train: mean pooling, the baseline of every attention.

    logits = W (1/n) sum_k h_k + b,    h_k = x_k, or ReLU(P x_k + p)

With `hidden: 0` a linear model of the slide's mean embedding; `baseline` fits that one by
logistic regression instead of by gradient steps. With a projection it is the embedding-level mean
of MI-Net.

Source: Wang, Yan, Tang, Bai, Liu, Revisiting multiple instance neural networks, Pattern
Recognition 74, 2018 (arXiv 1610.02501).
"""

import torch
from torch import Tensor, nn

from her2.mil.heads.head import Head, Output


class MeanPooling(Head):
    """A linear classifier on the mean instance; every instance has the same attention."""

    def __init__(self, dimension: int, outputs: int, *, hidden: int, dropout: float) -> None:
        super().__init__(dimension, hidden, dropout)
        self.classifier = nn.Linear(self.width, outputs)

    def pool(self, parts: tuple[Tensor, ...], mask: Tensor) -> Output:
        """Instances (b, n, width) -> logits (b, o), attention (b, n)."""
        weights = mask / mask.sum(dim=1, keepdim=True)  # (b, n)
        z = torch.einsum("bn,bnw->bw", weights, parts[0].to(weights.dtype))  # (b, width)
        return Output(self.classifier(z), weights)


HEAD = MeanPooling
