r"""Stage 2, train: dual-stream MIL.

    stream 1  s_k = W_0 h_k + b_0,    m_c = argmax_k s_kc     (the critical instance of c)
    stream 2  q_k = W_q h_k + b_q,    v_k = W_v h_k + b_v
              a_kc = softmax_k( q_k^T q_{m_c} / sqrt(len q) ),    z_c = sum_k a_kc v_k
              t_c = sum_c' w_cc'^T z_c' + b_c
    logits    (max_k s_k + t) / 2

Attention is similarity to the critical instance of each output. The paper's bag score is the
mean of the two streams, so one loss on it trains both; the authors' code instead gives each
stream its own loss and predicts from the second or the mean. The scaling by sqrt(len q) and the
biases follow that code.

Source: Li, Li, Eliceiri, Dual-stream multiple instance learning network for whole slide image
classification with self-supervised contrastive learning, CVPR 2021 (arXiv 2011.08939).
"""

import torch
from torch import Tensor, nn

from her2.mil.heads.head import Output, masked_softmax, projection


class DualStream(nn.Module):
    """Max pooling and attention around its choice, averaged."""

    def __init__(
        self, dimension: int, outputs: int, *, query: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        width = hidden or dimension
        self.dropout = nn.Dropout(dropout)
        self.project = projection(dimension, hidden)
        self.instance = nn.Linear(width, outputs)
        self.query = nn.Linear(width, query)
        self.value = nn.Linear(width, width)
        self.classifier = nn.Linear(outputs * width, outputs)

    def forward(self, bag: Tensor, mask: Tensor) -> Output:
        """Features (b, n, d), mask (b, n) -> logits (b, o), attention (b, n, o)."""
        h = self.project(self.dropout(bag))  # (b, n, width)
        scores = self.instance(h).masked_fill(~mask[:, :, None], -torch.inf)  # (b, n, o)
        best, critical = scores.max(dim=1)  # (b, o), (b, o)
        q = self.query(h)  # (b, n, query)
        q_critical = q.gather(1, critical[:, :, None].expand(-1, -1, q.shape[2]))  # (b, o, query)
        alike = torch.einsum("bnq,boq->bno", q, q_critical) / q.shape[2] ** 0.5  # (b, n, o)
        weights = masked_softmax(alike, mask)  # (b, n, o)
        # The map v is linear and a map's weights sum to one: v of the mean is the mean of v.
        z = self.value(torch.einsum("bno,bnw->bow", weights, h))  # (b, o, width)
        return Output((best + self.classifier(z.flatten(1))) / 2, weights)
