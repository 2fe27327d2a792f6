r"""Stage 2, train: TransMIL, a transformer over the tiles of a slide.

    H_0 = [class token; ReLU(P x_k + p)]      tiles repeated from the first on, to fill a square
    H_1 = H_0 + MSA(LN(H_0))
    H_2 = [class token; PPEG(tiles of H_1)]   sum of identity and 7x7, 5x5, 3x3 depthwise
                                              convolutions over the square
    H_3 = H_2 + MSA(LN(H_2)),    logits = W LN(H_3)_class + b

MSA is Nystrom attention with m landmarks (means of m segments of the sequence), linear in n:

    softmax(Q K~^T) pinv( softmax(Q~ K~^T) ) softmax(Q~ K^T) V + conv_33(V)

**Not permutation-invariant**: PPEG and the convolution read the tiles in the order of the tile
table. Masked tiles are taken out before that order matters, one bag at a time, so padding changes
nothing.

Departures: a sequence of at most m tokens uses exact attention, which the formula equals when
every token is a landmark; landmarks are means of segments that differ by at most one token,
instead of a sequence filled with zero tokens that others attend to; each matrix, not the whole
batch, scales its own pseudo-inverse, which runs in float32. `attention` is the last layer's exact
softmax of the class token over the tiles, averaged over the heads (the paper maps the same row).

Sources: Shao et al., TransMIL: transformer based correlated multiple instance learning for whole
slide image classification, NeurIPS 2021 (arXiv 2106.00908); Xiong et al., Nystromformer, AAAI 2021
(arXiv 2102.03902).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from her2.mil.heads.head import Head, Output

ATTENTION_HEADS = 8

ATTENTION_DROPOUT = 0.1
"""On what the self-attention adds."""


class TransMIL(Head):
    """Two self-attention layers with a convolution over the tiles in between."""

    pools_in_products = True

    def __init__(
        self, dimension: int, outputs: int, *, hidden: int, landmarks: int, dropout: float
    ) -> None:
        super().__init__(dimension, hidden, dropout)
        self.token = nn.Parameter(torch.randn(1, hidden))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(3))
        self.layers = nn.ModuleList(NystromAttention(hidden, landmarks) for _ in range(2))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(hidden, hidden, size, padding=size // 2, groups=hidden) for size in (7, 5, 3)
        )
        self.classifier = nn.Linear(hidden, outputs)

    def pool(self, parts: tuple[Tensor, ...], mask: Tensor) -> Output:
        """Instances (b, n, hidden) -> logits (b, o), attention (b, n)."""
        h = parts[0]
        logits, attention = [], torch.zeros(mask.shape, device=mask.device)
        for index in range(len(h)):
            tokens, weights = self._encode(h[index][mask[index]])  # (hidden,), (present,)
            with torch.autocast(mask.device.type, enabled=False):
                logits.append(self.classifier(tokens.float()))
            attention[index, mask[index]] = weights
        return Output(torch.stack(logits), attention)

    def _encode(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles (n, hidden) of one bag -> class token (hidden,), its attention (n,)."""
        n, side = len(tiles), math.isqrt(len(tiles) - 1) + 1
        # What layers add up in stays float32 under mixed precision.
        tiles = tiles.to(self.token.dtype)
        x = torch.cat([self.token, tiles, tiles[: side**2 - n]])  # (1 + side^2, hidden)
        x = x + self.layers[0](self.norms[0](x))[0]
        grid = x[1:].T.unflatten(1, (side, side))  # (hidden, side, side)
        grid = grid + sum(convolve(grid[None])[0] for convolve in self.convolutions)
        x = torch.cat([x[:1], grid.flatten(1).T])  # (1 + side^2, hidden)
        added, row = self.layers[1](self.norms[1](x))
        # A repeated tile's weight belongs to the tile; the class token's own is left out.
        weights = row[1 : n + 1] + functional.pad(row[n + 1 :], (0, 2 * n - side**2))  # (n,)
        return self.norms[2](x[0] + added[0]), weights / weights.sum()


class NystromAttention(nn.Module):
    """Multi-head self-attention of one sequence, linear in its length."""

    def __init__(self, width: int, landmarks: int) -> None:
        super().__init__()
        self.landmarks = landmarks
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        m = ATTENTION_HEADS
        self.skip = nn.Conv2d(m, m, (33, 1), padding=(16, 0), groups=m, bias=False)
        self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout(ATTENTION_DROPOUT))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (n, width) -> what they gain (n, width), the first one's attention (n,)."""
        parts = self.qkv(x).unflatten(1, (3, ATTENTION_HEADS, -1)).permute(1, 2, 0, 3)
        q, k, v = parts  # each (heads, n, width / heads)
        q = q * q.shape[2] ** -0.5
        mixed = nystrom(q, k, v, self.landmarks) + self.skip(v[None])[0]  # (heads, n, ...)
        row = (q[:, :1] @ k.mT).float().softmax(dim=2)[:, 0].mean(dim=0)  # (n,)
        return self.out(mixed.transpose(0, 1).flatten(1)), row


def nystrom(q: Tensor, k: Tensor, v: Tensor, landmarks: int) -> Tensor:
    """softmax(q k^T) v with q, k, v (heads, n, e), approximated where n is beyond `landmarks`."""
    if q.shape[1] <= landmarks:
        return (q @ k.mT).softmax(dim=2) @ v
    q_few, k_few = segment_means(q, landmarks), segment_means(k, landmarks)  # (heads, m, e)
    inverse = pseudo_inverse((q_few @ k_few.mT).softmax(dim=2))  # (heads, m, m)
    gathered = (q_few @ k.mT).softmax(dim=2) @ v  # (heads, m, e)
    return (q @ k_few.mT).softmax(dim=2) @ (inverse.to(v.dtype) @ gathered)


def segment_means(x: Tensor, count: int) -> Tensor:
    """Means of `count` consecutive segments, as even as can be: (heads, n, e) -> (heads, m, e)."""
    length, longer = divmod(x.shape[1], count)
    head, tail = x.split([longer * (length + 1), x.shape[1] - longer * (length + 1)], dim=1)
    means = [
        part.unflatten(1, (segments, -1)).mean(dim=2)
        for part, segments in ((head, longer), (tail, count - longer))
        if segments
    ]
    return torch.cat(means, dim=1)


def pseudo_inverse(matrix: Tensor, iterations: int = 6) -> Tensor:
    """Moore-Penrose inverse (heads, m, m) by Nystromformer's iteration."""
    with torch.autocast(matrix.device.type, enabled=False):
        a = matrix.float()
        size = a.abs().sum(dim=1).amax(dim=1) * a.abs().sum(dim=2).amax(dim=1)  # (heads,)
        z = a.mT / size[:, None, None]
        one = torch.eye(a.shape[1], device=a.device)
        for _ in range(iterations):
            az = a @ z
            z = z @ (13 * one - az @ (15 * one - az @ (7 * one - az))) / 4
        return z


HEAD = TransMIL
