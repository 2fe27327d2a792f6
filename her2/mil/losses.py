r"""Stage 2, train: class probabilities from a head's outputs, and the bag loss.

`cross_entropy`: one output per class, with a softmax.

`ordinal`: one output per threshold between ordered classes, as conditional probabilities (CORN):

    f_k = P(y > k | y > k-1) = sigm(s_k),    P(y > k) = f_0 f_1 ... f_k    (never rises with k)
    P(y = k) = f_0 ... f_{k-1} (1 - f_k)

CORN's loss, the binary cross-entropies of f_k over the bags that reach threshold k, is the
negative log-likelihood of these class probabilities. So `ordinal` differs only in how outputs
become class logits; smoothing, weights, the tuning loss and prediction are shared. (The paper
divides the sum by the number of bag-threshold pairs. Here the loss is a mean over bags, in the unit
of the cross-entropy.) A cumulative link model would have only one output, and so one attention map
and one contribution for all classes; CORN has one of each per threshold.

Source: Shi, Cao, Raschka, Deep neural networks for rank-consistent ordinal regression based on
conditional probabilities, Pattern Analysis and Applications 26, 2023 (arXiv 2111.08851).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Loss = Literal["cross_entropy", "ordinal"]


def output_count(loss: Loss, classes: int) -> int:
    """Return the number of outputs o of a head for c classes."""
    return classes if loss == "cross_entropy" else classes - 1


def output_names(loss: Loss, class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the name of each output, and of its attention map where it has one."""
    if loss == "cross_entropy":
        return tuple(class_names)
    return tuple(f"at least {name}" for name in class_names[1:])


def class_logits(scores: Tensor, loss: Loss) -> Tensor:
    """Return the logits (b, c) of the class probabilities from outputs (b, o); float32 or 64."""
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if loss == "cross_entropy":
        return scores
    passed = functional.logsigmoid(scores).cumsum(dim=1)  # (b, c - 1), log P(y > k)
    stopped = functional.logsigmoid(-scores)  # (b, c - 1), log P(y = k | y > k - 1)
    return functional.pad(passed, (1, 0)) + functional.pad(stopped, (0, 1))


def members(labels: Tensor, loss: Loss, outputs: int) -> Tensor:
    """Return a mask (b, o) of the class of each bag, or of the thresholds that it passes."""
    index = torch.arange(outputs, device=labels.device)  # (o,)
    return labels[:, None] == index if loss == "cross_entropy" else labels[:, None] > index


def bag_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    loss: Loss,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the mean cross-entropy of bags.

    Args:
        scores: outputs of a head (b, o).
        labels: class indices (b,).
        loss: the kind of outputs.
        smoothing: share of each label that is spread evenly over all classes.
        weights: weights of the classes (c,), which make the mean a weighted one.
    """
    return functional.cross_entropy(
        class_logits(scores, loss), labels, weight=weights, label_smoothing=smoothing
    )
