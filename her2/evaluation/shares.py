"""Stage 2, evaluate: confidence intervals of shares.

Source: Wilson, Journal of the American Statistical Association 22(158), 1927.
"""

import math

from scipy.special import ndtri


def wilson(count: float, trials: int, confidence: float) -> tuple[float, float]:
    """Return Wilson's score interval of `count` of `trials`; the count can be a sum of shares."""
    part, critical = count / trials, -float(ndtri((1 - confidence) / 2))
    squared = critical**2
    denominator = 1 + squared / trials
    centre = (part + squared / (2 * trials)) / denominator
    spread = part * (1 - part) / trials + squared / (4 * trials**2)
    reach = critical * math.sqrt(spread) / denominator
    return max(0.0, centre - reach), min(1.0, centre + reach)
