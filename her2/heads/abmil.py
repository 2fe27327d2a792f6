r"""Attention-based MIL.

    z = sum_k a_k h_k,    a = softmax_k( w^T (tanh(V h_k) * sigm(U h_k)) )    (gated, equation 9)
                          a = softmax_k( w^T  tanh(V h_k) )                   (equation 8)

Source: Ilse, Tomczak, Welling, Attention-based Deep Multiple Instance Learning, ICML 2018
(arXiv 1802.04712).
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from her2.heads import Attending, named

if TYPE_CHECKING:
    from her2.heads.layers import Head


class AttentionSection(Attending):
    """Attention-based MIL with one map."""

    head: Literal["abmil"] = named("abmil")
    label = "attention-based pooling"
    citations: ClassVar = {"Ilse et al. 2018": "ICML, PMLR 80"}


def network(options: AttentionSection, dimension: int, outputs: int) -> "Head":
    """Build one attention map for all outputs, then a linear classifier on the weighted mean."""
    import torch
    from torch import Tensor, nn

    from her2.heads.layers import Attention, Output, masked_softmax

    class AttentionMIL(Attention):
        def __init__(self) -> None:
            super().__init__(options, dimension, maps=1)
            self.classifier = nn.Linear(self.width, outputs)

        def pool(self, parts: tuple[Tensor, ...], mask: Tensor) -> Output:
            h, scores = parts
            weights = masked_softmax(scores, mask).squeeze(2)  # (b, n)
            z = torch.einsum("bn,bnd->bd", weights, h.to(weights.dtype))  # (b, width)
            return Output(self.classifier(z), weights)

    return AttentionMIL()
