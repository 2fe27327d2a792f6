"""Self-attention that is linear in the number of tokens, by Nystrom's method.

    softmax(Q K~^T) pinv( softmax(Q~ K~^T) ) softmax(Q~ K^T) V,    Q~, K~ means of m segments

Source: Xiong et al., Nystromformer, AAAI 2021 (arXiv 2102.03902). The convolution of the values is
TransMIL's.
"""

import torch
from torch import Tensor, nn

ATTENTION_HEADS = 8

ATTENTION_DROPOUT = 0.1
"""Dropout rate of the self-attention's output."""


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
        """Attend tokens (n, width): their increments (n, width), the first's attention (n,)."""
        parts = self.qkv(x).unflatten(1, (3, ATTENTION_HEADS, -1)).permute(1, 2, 0, 3)
        q, k, v = parts  # each (heads, n, width / heads)
        q = q * q.shape[2] ** -0.5
        mixed = nystrom(q, k, v, self.landmarks) + self.skip(v[None])[0]  # (heads, n, ...)
        row = (q[:, :1] @ k.mT).float().softmax(dim=2)[:, 0].mean(dim=0)  # (n,)
        return self.out(mixed.transpose(0, 1).flatten(1)), row


def nystrom(q: Tensor, k: Tensor, v: Tensor, landmarks: int) -> Tensor:
    """Return softmax(q k^T) v of (heads, n, e) each, approximated where n exceeds `landmarks`."""
    if q.shape[1] <= landmarks:
        return (q @ k.mT).softmax(dim=2) @ v
    q_few, k_few = segment_means(q, landmarks), segment_means(k, landmarks)  # (heads, m, e)
    inverse = pseudo_inverse((q_few @ k_few.mT).softmax(dim=2))  # (heads, m, m)
    gathered = (q_few @ k.mT).softmax(dim=2) @ v  # (heads, m, e)
    return (q @ k_few.mT).softmax(dim=2) @ (inverse.to(v.dtype) @ gathered)


def segment_means(x: Tensor, count: int) -> Tensor:
    """Return the means (heads, m, e) of `count` = m nearly equal consecutive segments."""
    length, longer = divmod(x.shape[1], count)
    head, tail = x.split([longer * (length + 1), x.shape[1] - longer * (length + 1)], dim=1)
    means = [
        part.unflatten(1, (segments, -1)).mean(dim=2)
        for part, segments in ((head, longer), (tail, count - longer))
        if segments
    ]
    return torch.cat(means, dim=1)


def pseudo_inverse(matrix: Tensor, iterations: int = 6) -> Tensor:
    """Return the Moore-Penrose inverse (heads, m, m) by Nystromformer's iteration."""
    with torch.autocast(matrix.device.type, enabled=False):
        a = matrix.float()
        size = a.abs().sum(dim=1).amax(dim=1) * a.abs().sum(dim=2).amax(dim=1)  # (heads,)
        z = a.mT / size[:, None, None]
        one = torch.eye(a.shape[1], device=a.device)
        for _ in range(iterations):
            az = a @ z
            z = z @ (13 * one - az @ (15 * one - az @ (7 * one - az))) / 4
        return z
