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

from her2.mil.heads.head import Head, Output, masked_softmax


class DualStream(Head):
    """Max pooling and attention around its choice, averaged."""

    def __init__(
        self, dimension: int, outputs: int, *, query: int, hidden: int, dropout: float
    ) -> None:
        super().__init__(dimension, hidden, dropout)
        self.instance = nn.Linear(self.width, outputs)
        self.query = nn.Linear(self.width, query)
        self.value = nn.Linear(self.width, self.width)
        self.classifier = nn.Linear(outputs * self.width, outputs)

    def encode(self, bag: Tensor) -> tuple[Tensor, ...]:
        """Features (b, n, d) -> instances (b, n, width), logits (b, n, o), (b, n, query)."""
        h = self.project(self.dropout(bag))  # (b, n, width)
        return h, self.instance(h), self.query(h)

    def pool(self, parts: tuple[Tensor, ...], mask: Tensor) -> Output:
        """What `encode` gave -> logits (b, o), attention (b, n, o)."""
        h, scores, q = parts
        scores = scores.masked_fill(~mask[:, :, None], -torch.inf)  # (b, n, o)
        best, critical = scores.max(dim=1)  # (b, o), (b, o)
        q_critical = q.gather(1, critical[:, :, None].expand(-1, -1, q.shape[2]))  # (b, o, query)
        alike = torch.einsum("bnq,boq->bno", q, q_critical) / q.shape[2] ** 0.5  # (b, n, o)
        weights = masked_softmax(alike, mask)  # (b, n, o)
        # The map v is linear and a map's weights sum to one: v of the mean is the mean of v.
        z = self.value(torch.einsum("bno,bnw->bow", weights, h.to(weights.dtype)))  # (b, o, width)
        return Output((best + self.classifier(z.flatten(1))) / 2, weights)


HEAD = DualStream
