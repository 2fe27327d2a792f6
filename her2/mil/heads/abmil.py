r"""Stage 2, train: attention-based MIL.

    z = sum_k a_k h_k,    a = softmax_k( w^T (tanh(V h_k) * sigm(U h_k)) )    (gated, equation 9)
                          a = softmax_k( w^T  tanh(V h_k) )                   (equation 8)

Source: Ilse, Tomczak, Welling, Attention-based Deep Multiple Instance Learning, ICML 2018
(arXiv 1802.04712).
"""

import torch
from torch import Tensor, nn

from her2.mil.heads.head import Attention, Output, masked_softmax


class AttentionMIL(Attention):
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
        super().__init__(
            dimension, 1, attention=attention, gated=gated, hidden=hidden, dropout=dropout
        )
        self.classifier = nn.Linear(self.width, outputs)

    def pool(self, parts: tuple[Tensor, ...], mask: Tensor) -> Output:
        """Instances (b, n, width), scores (b, n, 1) -> logits (b, o), attention (b, n)."""
        h, scores = parts
        weights = masked_softmax(scores, mask).squeeze(2)  # (b, n)
        z = torch.einsum("bn,bnd->bd", weights, h.to(weights.dtype))  # (b, width)
        return Output(self.classifier(z), weights)


HEAD = AttentionMIL
