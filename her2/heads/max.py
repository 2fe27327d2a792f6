r"""Max pooling of instance logits.

    logits_c = max_k (W h_k + b)_c,    h_k = x_k, or ReLU(P x_k + p)

This is the instance-level maximum (mi-Net): a slide is as positive as its most positive tile. Each
output has its own map, which is one on the deciding instance and zero elsewhere.

Source: Wang, Yan, Tang, Bai, Liu, Revisiting multiple instance neural networks, Pattern
Recognition 74, 2018 (arXiv 1610.02501); on slides, Campanella et al., Nature Medicine 25, 2019.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from her2.heads import Projected, named

if TYPE_CHECKING:
    from her2.heads.layers import Head


class MaxSection(Projected):
    """Max pooling."""

    head: Literal["max"] = named("max")
    label = "max pooling"
    citations: ClassVar = {}


def network(options: MaxSection, dimension: int, outputs: int) -> "Head":
    """Build a classifier of instances; a bag gets the largest logit of each output."""
    import torch
    from torch import Tensor, nn

    from her2.heads.layers import Head, Output

    class MaxPooling(Head):
        def __init__(self) -> None:
            super().__init__(options, dimension)
            self.classifier = nn.Linear(self.width, outputs)

        def encode(self, bag: Tensor) -> tuple[Tensor, ...]:
            """Encode features (b, n, d): instance logits (b, n, o)."""
            return (self.classifier(self.project(self.dropout(bag))),)

        def pool(self, parts: tuple[Tensor, ...], mask: Tensor) -> Output:
            scores = parts[0].masked_fill(~mask[:, :, None], -torch.inf)
            logits, deciding = scores.max(dim=1)  # (b, o), (b, o)
            weights = torch.zeros_like(scores, dtype=torch.float32)  # (b, n, o)
            weights.scatter_(1, deciding[:, None], 1.0)
            return Output(logits, weights)

    return MaxPooling()
