r"""The learning rate of each step: a linear rise, then constant or half a cosine.

    factor(t) = min(1, (t + 1) / R)                                            constant
    factor(t) = min(1, (t + 1) / R) * (1 + cos(pi * max(0, t - D) / (T - D))) / 2    cosine

t counts the steps of the whole training from 0, and T is their number. The rate rises over the
first R steps, and the cosine begins at step D.

Sources: Loshchilov, Hutter, SGDR, ICLR 2017 (arXiv 1608.03983), one period without restart; Goyal
et al. 2017 (arXiv 1706.02677) for the linear rise, here per step.
"""

import math

import torch


def factor(step: int, *, rise: float, decay_from: float | None, total: int) -> float:
    """Return the factor of a step's learning rate, above 0 and at most 1.

    Args:
        step: t, from 0.
        rise: R in steps; 0: no rise.
        decay_from: D in steps; None: the rate stays constant.
        total: T in steps.
    """
    rising = min(1.0, (step + 1) / rise) if rise else 1.0
    if decay_from is None:
        return rising
    passed = max(0.0, step - decay_from) / max(1.0, total - decay_from)
    return rising * (1 + math.cos(math.pi * passed)) / 2


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all of an optimiser's parameters."""
    for group in optimiser.param_groups:
        group["lr"] = rate
