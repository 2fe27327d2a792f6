r"""Stage 2, train: from a head's outputs to class probabilities and the bag loss.

`cross_entropy`: one output a class, softmax.

`ordinal`: one output a threshold between ordered classes, by conditional probabilities (CORN):

    f_k = P(y > k | y > k-1) = sigm(s_k),    P(y > k) = f_0 f_1 ... f_k    (never rises with k)
    P(y = k) = f_0 ... f_{k-1} (1 - f_k)

CORN's loss, the binary cross-entropies of f_k over the bags that reach threshold k, is the
negative log-likelihood of these class probabilities. So `ordinal` is only another way from outputs
to class logits, and smoothing, weights, the tune loss and prediction are shared. (The paper
divides the sum by the number of bag-threshold pairs; here it is a mean over bags, in the unit of
the cross-entropy.) A cumulative link model would leave a head one output, and with it one map and
one contribution for all classes; CORN keeps one of each for every threshold.

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
    """How many outputs o a head has for c classes."""
    return classes if loss == "cross_entropy" else classes - 1


def output_names(loss: Loss, class_names: Sequence[str]) -> tuple[str, ...]:
    """What each output (and its attention map, where it has one) speaks for."""
    if loss == "cross_entropy":
        return tuple(class_names)
    return tuple(f"at least {name}" for name in class_names[1:])


def class_logits(scores: Tensor, loss: Loss) -> Tensor:
    """Outputs (b, o) -> logits (b, c) whose softmax is the class probabilities; float32 or 64."""
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if loss == "cross_entropy":
        return scores
    passed = functional.logsigmoid(scores).cumsum(dim=1)  # (b, c - 1), log P(y > k)
    stopped = functional.logsigmoid(-scores)  # (b, c - 1), log P(y = k | y > k - 1)
    return functional.pad(passed, (1, 0)) + functional.pad(stopped, (0, 1))


def members(labels: Tensor, loss: Loss, outputs: int) -> Tensor:
    """Class indices (b,) -> bool (b, o): the class of a bag, or the thresholds that it passes."""
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
    """Mean cross-entropy of bags.

    Args:
        scores: (b, o) outputs of a head.
        labels: (b,) class indices.
        loss: how outputs become classes.
        smoothing: share of each label that is spread evenly over all classes.
        weights: (c,) of the classes; the mean is then weighted.
    """
    return functional.cross_entropy(
        class_logits(scores, loss), labels, weight=weights, label_smoothing=smoothing
    )
