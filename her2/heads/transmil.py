r"""TransMIL, a transformer over the tiles of a slide.

    H_0 = [class token; ReLU(P x_k + p)]      tiles, repeated from the first to fill a square
    H_1 = H_0 + MSA(LN(H_0))
    H_2 = [class token; PPEG(tiles of H_1)]   sum of identity and 7x7, 5x5, 3x3 depthwise
                                              convolutions over the square
    H_3 = H_2 + MSA(LN(H_2)),    logits = W LN(H_3)_class + b

MSA is Nystrom attention with m landmarks (means of m segments of the sequence), linear in n:

    softmax(Q K~^T) pinv( softmax(Q~ K~^T) ) softmax(Q~ K^T) V + conv_33(V)

**Not permutation-invariant**: PPEG and the convolution read the tiles in the order of the tile
table. Masked tiles are removed before that order matters, one bag at a time, so padding changes
nothing.

Departures: a sequence of at most m tokens uses exact attention, which the formula equals when
every token is a landmark. Landmarks are means of segments whose lengths differ by at most one
token; the authors instead pad the sequence with zero tokens, which other tokens attend to. The
pseudo-inverse of each matrix is scaled by that matrix, not by the whole batch, and runs in float32.
`attention` is the last layer's exact softmax of the class token over the tiles, averaged over the
heads (the paper maps the same row).

Sources: Shao et al., TransMIL: transformer based correlated multiple instance learning for whole
slide image classification, NeurIPS 2021 (arXiv 2106.00908); Xiong et al., Nystromformer, AAAI 2021
(arXiv 2102.03902).
"""

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from her2.core.section import Units
from her2.heads import Projected, Words, named

if TYPE_CHECKING:
    from her2.heads.layers import Head


class TransMILSection(Projected):
    """TransMIL (Shao 2021), with the defaults of the authors' code."""

    head: Literal["transmil"] = named("transmil")
    label = "TransMIL"
    citations: ClassVar = {"Shao et al. 2021": "NeurIPS 34"}
    reads_order = True
    hidden: Annotated[int, Field(ge=8, le=16_384, multiple_of=8), Words("projection width")] = (
        Field(512, description="width of the transformer")
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="dropout rate of the input features"
    )
    landmarks: Units = Field(
        256, description="number of landmarks that approximate a longer sequence of tiles"
    )

    def bytes_per_tile(self, dimension: int) -> int:
        """Return the peak of a self-attention: queries, keys, values, and similarities."""
        return 48 * (self.hidden + self.landmarks)  # measured: 35 kB with the defaults


def network(options: TransMILSection, dimension: int, outputs: int) -> "Head":
    """Build two self-attention layers with a convolution over the tiles in between."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    from her2.heads.layers import Head, NystromAttention, Output

    class TransMIL(Head):
        pools_in_products = True

        def __init__(self) -> None:
            super().__init__(options, dimension)
            hidden = options.hidden
            self.token = nn.Parameter(torch.randn(1, hidden))
            self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(3))
            self.layers = nn.ModuleList(
                NystromAttention(hidden, options.landmarks) for _ in range(2)
            )
            self.convolutions = nn.ModuleList(
                nn.Conv2d(hidden, hidden, size, padding=size // 2, groups=hidden)
                for size in (7, 5, 3)
            )
            self.classifier = nn.Linear(hidden, outputs)

        def pool(self, parts: tuple[Tensor, ...], mask: Tensor) -> Output:
            h = parts[0]
            logits, attention = [], torch.zeros(mask.shape, device=mask.device)
            for index in range(len(h)):
                tokens, weights = self._encode(h[index][mask[index]])  # (hidden,), (present,)
                with torch.autocast(mask.device.type, enabled=False):
                    logits.append(self.classifier(tokens.float()))
                attention[index, mask[index]] = weights
            return Output(torch.stack(logits), attention)

        def _encode(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
            """Encode one bag's tiles (n, hidden): class token (hidden,), its attention (n,)."""
            n, side = len(tiles), math.isqrt(len(tiles) - 1) + 1
            # The residual stream stays float32 under mixed precision.
            tiles = tiles.to(self.token.dtype)
            x = torch.cat([self.token, tiles, tiles[: side**2 - n]])  # (1 + side^2, hidden)
            x = x + self.layers[0](self.norms[0](x))[0]
            grid = x[1:].T.unflatten(1, (side, side))  # (hidden, side, side)
            grid = grid + sum(convolve(grid[None])[0] for convolve in self.convolutions)
            x = torch.cat([x[:1], grid.flatten(1).T])  # (1 + side^2, hidden)
            added, row = self.layers[1](self.norms[1](x))
            # A repetition's weight goes to its tile; the class token's own weight is left out.
            weights = row[1 : n + 1] + functional.pad(row[n + 1 :], (0, 2 * n - side**2))  # (n,)
            return self.norms[2](x[0] + added[0]), weights / weights.sum()

    return TransMIL()
