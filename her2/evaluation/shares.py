"""Stage 2, evaluate: confidence intervals of shares, and of what follows from two of them."""

import math

from scipy.special import ndtri


def wilson(
    count: float, trials: float, confidence: float, *, added: float = 0.0
) -> tuple[float, float]:
    """Return Wilson's score interval of `count` of `trials`, which can be sums of shares.

    Source: Wilson, Journal of the American Statistical Association 22(158), 1927.

    Args:
        count: successes.
        trials: trials, more than 0.
        confidence: confidence level.
        added: variance of the share beside that of the trials. The interval is then that of the
            smaller number of trials whose own variance is the sum of both. It is measured at
            Wilson's centre, as at a share of 0 or 1 the variance of the trials would be 0.
    """
    part, critical = count / trials, -float(ndtri((1 - confidence) / 2))
    squared = critical**2
    if added > 0:
        centre = (count + squared / 2) / (trials + squared)
        variance = centre * (1 - centre) / trials
        trials *= variance / (variance + added)
    denominator = 1 + squared / trials
    centre = (part + squared / (2 * trials)) / denominator
    spread = part * (1 - part) / trials + squared / (4 * trials**2)
    reach = critical * math.sqrt(spread) / denominator
    return max(0.0, centre - reach), min(1.0, centre + reach)


Limits = tuple[float, float, float]
"""A share, and the limits of its interval."""


def ratio_limits(first: Limits, second: Limits) -> tuple[float, float]:
    """Return the interval of the ratio of two independent shares from those of both (MOVER-R).

    The upper limit is infinite where the second interval begins at 0.

    Source: Newcombe, Statistical Methods in Medical Research 25(5), 2016, in the form without
    differences of near-equal numbers.
    """
    one, low, high = first
    two, below, above = second
    product = one * two
    smaller = low * (2 * one - low), above * (2 * two - above)
    larger = high * (2 * one - high), below * (2 * two - below)
    root = product + math.sqrt(max(0.0, product**2 - smaller[0] * smaller[1]))
    lower = smaller[0] / root if root > 0 else 0.0
    if larger[1] <= 0:
        return lower, math.inf
    upper = product + math.sqrt(max(0.0, product**2 - larger[0] * larger[1]))
    return lower, upper / larger[1]


def predictive_value(hit: Limits, miss: Limits, prevalence: float) -> Limits:
    """Return the predictive value at a prevalence with its interval, by Bayes' rule on odds.

    The positive one has the odds sensitivity / (1 - specificity) x prevalence / (1 - prevalence)
    (Mercaldo, Lau and Zhou, Statistics in Medicine 26(10), 2007). The interval of the ratio is
    that of `ratio_limits`, which also exists at a sensitivity or specificity of 0 or 1.

    Args:
        hit: how often those of the side are called it, such as the sensitivity.
        miss: how often those of the other side are, such as 1 - specificity.
        prevalence: share of the side, above 0 and below 1.

    Returns:
        Value, low, high; NaN for the value if neither side is ever called it.
    """
    odds = prevalence / (1 - prevalence)
    low, high = ratio_limits(hit, miss)
    value = math.nan
    if hit[0] + miss[0] > 0:
        value = hit[0] * prevalence / (hit[0] * prevalence + miss[0] * (1 - prevalence))
    low, high = (1.0 if math.isinf(one) else one * odds / (1 + one * odds) for one in (low, high))
    return value, low, high
