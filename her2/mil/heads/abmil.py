r"""Stage 2, train: attention-based MIL.

    z = sum_k a_k h_k,    a = softmax_k( w^T (tanh(V h_k) * sigm(U h_k)) )    (gated, equation 9)
                          a = softmax_k( w^T  tanh(V h_k) )                   (equation 8)

Source: Ilse, Tomczak, Welling, Attention-based Deep Multiple Instance Learning, ICML 2018
(arXiv 1802.04712).
"""

import torch
from torch import Tensor, nn

from her2.mil.heads.head import Output, masked_softmax, projection


class AttentionMIL(nn.Module):
    """One attention map for all classes, then a linear classifier on the weighted mean."""

    def __init__(
        self,
        dimension: int,
        outputs: int,
        *,
        attention: int,
        gated: bool,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.project = projection(dimension, hidden)
        width = hidden or dimension
        self.value = nn.Linear(width, attention)
        self.gate = nn.Linear(width, attention) if gated else None
        self.score = nn.Linear(attention, 1)
        self.classifier = nn.Linear(width, outputs)

    def forward(self, bag: Tensor, mask: Tensor) -> Output:
        """Classify bags.

        Args:
            bag: (b, n, d) features.
            mask: bool (b, n), True on instances that exist; at least one a bag.
        """
        h = self.project(self.dropout(bag))  # (b, n, width)
        a = torch.tanh(self.value(h))  # (b, n, attention)
        if self.gate is not None:
            a = a * torch.sigmoid(self.gate(h))  # (b, n, attention)
        weights = masked_softmax(self.score(a), mask).squeeze(2)  # (b, n)
        z = torch.einsum("bn,bnd->bd", weights, h)  # (b, width)
        return Output(self.classifier(z), weights)
