r"""A plain multilayer perceptron on the slide's mean embedding, or on a slide encoder's vector.

    h_0 = (1/n) sum_k x_k,    h_l = ReLU(W_l h_(l-1) + b_l),    logits = W h_L + b

with a dropout after each layer. `mean` is the same without hidden layers, and with `hidden` it
projects each tile before the mean; here the mean comes first, so that a vector of the whole slide
and the mean of tiles go the same way.

Source: Rumelhart, Hinton, Williams, Learning representations by back-propagating errors, Nature
323, 1986; ReLU and dropout in place of the sigmoid and of nothing.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from her2.core.section import Units
from her2.heads import Projected, Words, named

if TYPE_CHECKING:
    from her2.heads.layers import Head


class MlpSection(Projected):
    """A multilayer perceptron on the mean embedding, or on a vector of the whole slide."""

    head: Literal["mlp"] = named("mlp")
    label = "multilayer perceptron on the mean embedding"
    citations: ClassVar = {"Rumelhart et al. 1986": "Nature 323"}
    even = True
    takes_vectors = True
    layers: Annotated[tuple[Units, ...], Words("layer widths")] = Field(
        (128,), min_length=1, max_length=8, description="widths of the hidden layers, in order"
    )


def network(options: MlpSection, dimension: int, outputs: int) -> "Head":
    """Build hidden layers on the mean instance; every instance has the same attention."""
    import torch
    from torch import Tensor, nn

    from her2.heads.layers import Head, Output

    class Perceptron(Head):
        def __init__(self) -> None:
            super().__init__(options, dimension)
            layers: list[nn.Module] = []
            width = self.width
            for wider in options.layers:
                layers += [nn.Linear(width, wider), nn.ReLU(), nn.Dropout(options.dropout)]
                width = wider
            self.hidden = nn.Sequential(*layers)
            self.classifier = nn.Linear(width, outputs)

        def pool(self, parts: tuple[Tensor, ...], mask: Tensor) -> Output:
            weights = mask / mask.sum(dim=1, keepdim=True)  # (b, n)
            z = torch.einsum("bn,bnw->bw", weights, parts[0].to(weights.dtype))  # (b, width)
            return Output(self.classifier(self.hidden(z)), weights)

    return Perceptron()
