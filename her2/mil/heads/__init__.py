"""Stage 2, train: the heads by name. A new head is a module, a line here, a config section."""

from collections.abc import Callable
from functools import partial

from torch import nn

from her2.config import HeadSection
from her2.mil.heads.abmil import AttentionMIL
from her2.mil.heads.additive import AdditiveMIL
from her2.mil.heads.clam import Clam
from her2.mil.heads.dsmil import DualStream
from her2.mil.heads.max import MaxPooling
from her2.mil.heads.mean import MeanPooling
from her2.mil.heads.multibranch import MultiBranch
from her2.mil.heads.transmil import TransMIL

HEADS: dict[str, Callable[..., nn.Module]] = {
    "mean": MeanPooling,
    "max": MaxPooling,
    "abmil": AttentionMIL,
    "multibranch": MultiBranch,
    "clam_sb": partial(Clam, shared=True),
    "clam_mb": partial(Clam, shared=False),
    "dsmil": DualStream,
    "transmil": TransMIL,
    "additive": AdditiveMIL,
}
"""name -> module of (feature dimension d, number of outputs o, the section's other keys)."""


def build_head(options: HeadSection, dimension: int, outputs: int) -> nn.Module:
    """The head of these options for features of `dimension` and `outputs` logits."""
    return HEADS[options.head](dimension, outputs, **options.model_dump(exclude={"head"}))
