r"""Additive attention-MIL: each tile contributes a summand to each logit.

    logits_c = sum_k g_kc,    g_k = a_k psi(h_k),    psi(h) = W_2 ReLU(W_1 h) + b
    a_k as in `abmil`

The explanation of a bag is exact: nothing but the contributions g enters a logit, and their sign
says whether a tile speaks for or against it, which attention cannot. Javed et al. write
psi(a_k h_k). Without biases psi is homogeneous and both forms are the same. With biases the
paper's sum would count psi(0) once per tile, so a model trained on sub-bags would be shifted on
whole slides. Here the bias of the sum is b for any number of tiles, because the weights sum to one.

Source: Javed, Juyal, Padigela, Taylor-Weiner, Yu, Prakash, Additive MIL: intrinsically
interpretable multiple instance learning for pathology, NeurIPS 2022 (arXiv 2206.01794).
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from her2.core.section import Units
from her2.heads import Attending, named

if TYPE_CHECKING:
    from her2.heads.layers import Head


class AdditiveSection(Attending):
    """Additive attention-MIL (Javed 2022), with each tile's contribution to each output."""

    head: Literal["additive"] = named("additive")
    label = "additive attention"
    citations: ClassVar = {"Javed et al. 2022": "NeurIPS 35"}
    classifier: Units = Field(64, description="width of the tile classifier's hidden layer")


def network(options: AdditiveSection, dimension: int, outputs: int) -> "Head":
    """Build a classifier of instances whose logits are summed with attention weights."""
    from torch import Tensor, nn

    from her2.heads.layers import Attention, Output, masked_softmax

    class AdditiveMIL(Attention):
        def __init__(self) -> None:
            super().__init__(options, dimension, maps=1)
            self.classifier = nn.Sequential(
                nn.Linear(self.width, options.classifier, bias=False),
                nn.ReLU(),
                nn.Linear(options.classifier, outputs),
            )

        def encode(self, bag: Tensor) -> tuple[Tensor, ...]:
            """Encode features (b, n, d): instance logits (b, n, o) and scores (b, n, 1)."""
            h, scores = super().encode(bag)  # (b, n, width), (b, n, 1)
            return self.classifier(h), scores

        def pool(self, parts: tuple[Tensor, ...], mask: Tensor) -> Output:
            """Pool instance logits (b, n, o) by scores (b, n, 1): `Output` with contributions."""
            logits, scores = parts
            weights = masked_softmax(scores, mask)  # (b, n, 1)
            contribution = weights * logits  # (b, n, o)
            return Output(contribution.sum(dim=1), weights.squeeze(2), contribution)

    return AdditiveMIL()
