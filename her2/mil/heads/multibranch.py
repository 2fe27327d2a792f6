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

from her2.mil.heads.head import Attention, Output, masked_softmax


class MultiBranch(Attention):
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
        super().__init__(
            dimension,
            1 if shared else outputs,
            attention=attention,
            gated=gated,
            hidden=hidden,
            dropout=dropout,
        )
        self.shared = shared
        self.classifier = nn.Linear(self.width, outputs)

    def pool(self, parts: tuple[Tensor, ...], mask: Tensor) -> Output:
        """Instances (b, n, width), scores (b, n, o or 1) -> logits (b, o), attention.

        Attention is (b, n, o), or (b, n) where the map is shared.
        """
        h, scores = parts[:2]
        weights = masked_softmax(scores, mask)  # (b, n, o or 1)
        z = torch.einsum("bnm,bnw->bmw", weights, h.to(weights.dtype))  # (b, o or 1, width)
        logits = (z * self.classifier.weight).sum(dim=2) + self.classifier.bias  # (b, o)
        return Output(logits, weights.squeeze(2) if self.shared else weights)


HEAD = MultiBranch
