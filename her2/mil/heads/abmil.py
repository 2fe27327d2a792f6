r"""Stage 2, train: attention-based MIL.

    z = sum_k a_k h_k,    a = softmax_k( w^T (tanh(V h_k) * sigm(U h_k)) )    (gated, equation 9)
                          a = softmax_k( w^T  tanh(V h_k) )                   (equation 8)

Source: Ilse, Tomczak, Welling, Attention-based Deep Multiple Instance Learning, ICML 2018
(arXiv 1802.04712).
"""

import torch
from torch import Tensor, nn

from her2.config import HeadSection
from her2.mil.heads.output import Output


class AttentionMIL(nn.Module):
    """One attention map for all classes, then a linear classifier on the weighted mean."""

    def __init__(
        self,
        dimension: int,
        classes: int,
        *,
        attention: int,
        gated: bool,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.project = (
            nn.Sequential(nn.Linear(dimension, hidden), nn.ReLU()) if hidden else nn.Identity()
        )
        width = hidden or dimension
        self.value = nn.Linear(width, attention)
        self.gate = nn.Linear(width, attention) if gated else None
        self.score = nn.Linear(attention, 1)
        self.classifier = nn.Linear(width, classes)

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
        scores = self.score(a).squeeze(-1)  # (b, n)
        weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=1)  # (b, n)
        z = torch.einsum("bn,bnd->bd", weights, h)  # (b, width)
        return Output(self.classifier(z), weights)


def abmil(options: HeadSection, dimension: int, classes: int) -> nn.Module:
    """The head that `head: abmil` names."""
    return AttentionMIL(
        dimension,
        classes,
        attention=options.attention,
        gated=options.gated,
        hidden=options.hidden,
        dropout=options.dropout,
    )
