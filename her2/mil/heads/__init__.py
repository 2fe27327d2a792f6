"""Stage 2, train: the heads by name. A new head is one module and one line in `HEADS`."""

from collections.abc import Callable

from torch import nn

from her2.config import HeadSection
from her2.mil.heads.abmil import abmil

HEADS: dict[str, Callable[[HeadSection, int, int], nn.Module]] = {
    "abmil": abmil,
}
"""name -> builder (options, feature dimension d, number of classes c)."""


def build_head(options: HeadSection, dimension: int, classes: int) -> nn.Module:
    """The head of these options for features of `dimension` and `classes` logits."""
    return HEADS[options.head](options, dimension, classes)
