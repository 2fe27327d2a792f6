"""Stage 2, train: what every head returns."""

from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """`logits` (b, c); `attention` (b, n), zero on masked instances, each bag's sum is one."""

    logits: Tensor
    attention: Tensor
