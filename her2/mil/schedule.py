r"""Stage 2, train: the learning rate of each step.

    factor(t) = min(1, (t + 1) / W)                                     constant
    factor(t) = warm-up * (1 + cos(pi * max(0, t - W) / (T - W))) / 2    cosine

t counts steps from 0, W are those of the warm-up, T those of all epochs.

Sources: Loshchilov, Hutter, SGDR, ICLR 2017 (arXiv 1608.03983), one period without restart; the
linear warm-up is that of Goyal et al. 2017 (arXiv 1706.02677), by steps.
"""

import math

from her2.config import TrainingSection


def factor(step: int, steps_per_epoch: int, training: TrainingSection) -> float:
    """What the learning rate of a step (from 0) is multiplied with; above 0, at most 1."""
    warmup = training.warmup_epochs * steps_per_epoch
    total = training.epochs * steps_per_epoch
    rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if training.schedule == "constant":
        return rising
    passed = max(0.0, step - warmup) / max(1.0, total - warmup)
    return rising * (1 + math.cos(math.pi * passed)) / 2
