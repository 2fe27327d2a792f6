r"""Mean pooling, the baseline for every attention head.

    logits = W (1/n) sum_k h_k + b,    h_k = x_k, or ReLU(P x_k + p)

With `hidden: 0` this is a linear model of the slide's mean embedding; `logistic` fits the same
model by logistic regression instead of gradient steps. With a projection it is the embedding-level
mean of MI-Net.

Source: Wang, Yan, Tang, Bai, Liu, Revisiting multiple instance neural networks, Pattern
Recognition 74, 2018 (arXiv 1610.02501).
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from her2.heads import Projected, named

if TYPE_CHECKING:
    from her2.heads.layers import Head


class MeanSection(Projected):
    """Mean pooling."""

    head: Literal["mean"] = named("mean")
    label = "mean pooling"
    citations: ClassVar = {}
    even = True
    takes_vectors = True


def network(options: MeanSection, dimension: int, outputs: int) -> "Head":
    """Build a linear classifier on the mean instance; every instance has the same attention."""
    import torch
    from torch import Tensor, nn

    from her2.heads.layers import Head, Output

    class MeanPooling(Head):
        def __init__(self) -> None:
            super().__init__(options, dimension)
            self.classifier = nn.Linear(self.width, outputs)

        def pool(self, parts: tuple[Tensor, ...], mask: Tensor) -> Output:
            weights = mask / mask.sum(dim=1, keepdim=True)  # (b, n)
            z = torch.einsum("bn,bnw->bw", weights, parts[0].to(weights.dtype))  # (b, width)
            return Output(self.classifier(z), weights)

    return MeanPooling()
