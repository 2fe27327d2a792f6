r"""Stage 2, train: attention with one map per output.

    a_kc = softmax_k( (W_a (tanh(V h_k) * sigm(U h_k)))_c ),    z_c = sum_k a_kc h_k
    logits_c = w_c^T z_c + b_c

The hidden layers V and U are shared, each output has its own row of W_a and its own classifier:
what speaks for 3+ may lie elsewhere than what speaks for 0. This is CLAM-MB without its instance
loss.

Source: Lu et al., Data-efficient and weakly supervised computational pathology on whole-slide
images, Nature Biomedical Engineering 5, 2021 (arXiv 2004.09666); the attention is equation 9
(`gated`) or 8 of Ilse 2018.
"""

import torch
from torch import Tensor, nn

from her2.mil.heads.head import Attention, Output


class MultiBranch(nn.Module):
    """`maps` attention maps (one, or one an output), then a linear classifier for each output."""

    def __init__(
        self,
        dimension: int,
        outputs: int,
        *,
        attention: int,
        gated: bool,
        hidden: int,
        dropout: float,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.shared = shared
        self.attention = Attention(
            dimension,
            1 if shared else outputs,
            attention=attention,
            gated=gated,
            hidden=hidden,
            dropout=dropout,
        )
        self.classifier = nn.Linear(self.attention.width, outputs)

    def forward(self, bag: Tensor, mask: Tensor) -> Output:
        """Features (b, n, d), mask (b, n) -> logits (b, o), attention (b, n, o)."""
        h, weights = self.attention(bag, mask)  # (b, n, width), (b, n, o)
        return Output(self.classify(h, weights), weights)

    def classify(self, h: Tensor, weights: Tensor) -> Tensor:
        """Instances (b, n, width), weights (b, n, o or 1) -> logits (b, o)."""
        z = torch.einsum("bnm,bnw->bmw", weights, h)  # (b, o or 1, width)
        return (z * self.classifier.weight).sum(dim=2) + self.classifier.bias
