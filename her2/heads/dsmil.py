r"""Dual-stream MIL.

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

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from her2.core.section import Units
from her2.heads import Projected, Words, named

if TYPE_CHECKING:
    from her2.heads.layers import Head


class DualStreamSection(Projected):
    """DSMIL (Li 2021), with the defaults of the authors' code."""

    head: Literal["dsmil"] = named("dsmil")
    label = "dual-stream multiple-instance learning"
    citations: ClassVar = {"Li et al. 2021": "CVPR"}
    query: Annotated[Units, Words("query width")] = Field(
        128, description="width of the vectors by which tiles are compared"
    )


def network(options: DualStreamSection, dimension: int, outputs: int) -> "Head":
    """Build the mean of max pooling and attention to the instances that it selects."""
    import torch
    from torch import Tensor, nn

    from her2.heads.layers import Head, Output, masked_softmax

    class DualStream(Head):
        def __init__(self) -> None:
            super().__init__(options, dimension)
            self.instance = nn.Linear(self.width, outputs)
            self.query = nn.Linear(self.width, options.query)
            self.value = nn.Linear(self.width, self.width)
            self.classifier = nn.Linear(outputs * self.width, outputs)

        def encode(self, bag: Tensor) -> tuple[Tensor, ...]:
            """Encode features (b, n, d): instances, logits (b, n, o) and queries (b, n, query)."""
            h = self.project(self.dropout(bag))  # (b, n, width)
            return h, self.instance(h), self.query(h)

        def pool(self, parts: tuple[Tensor, ...], mask: Tensor) -> Output:
            h, scores, q = parts
            scores = scores.masked_fill(~mask[:, :, None], -torch.inf)  # (b, n, o)
            best, critical = scores.max(dim=1)  # (b, o), (b, o)
            critical = critical[:, :, None].expand(-1, -1, q.shape[2])  # (b, o, query)
            alike = torch.einsum("bnq,boq->bno", q, q.gather(1, critical)) / q.shape[2] ** 0.5
            weights = masked_softmax(alike, mask)  # (b, n, o)
            # v is affine and the weights of a map sum to one, so v(mean h) is the mean of v(h).
            mean = torch.einsum("bno,bnw->bow", weights, h.to(weights.dtype))  # (b, o, width)
            z = self.value(mean)  # (b, o, width)
            return Output((best + self.classifier(z.flatten(1))) / 2, weights)

    return DualStream()
