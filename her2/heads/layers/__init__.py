"""Parts of the heads' networks. They import torch, so heads import them inside `network`."""

from her2.heads.layers.attention import Attention, MultiBranch, masked_softmax
from her2.heads.layers.head import Head, InstanceSupervised, Output
from her2.heads.layers.nystrom import NystromAttention

__all__ = [
    "Attention",
    "Head",
    "InstanceSupervised",
    "MultiBranch",
    "NystromAttention",
    "Output",
    "masked_softmax",
]
