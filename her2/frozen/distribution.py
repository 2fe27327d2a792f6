"""How a number is distributed over the slides of development, without saying which slide had it."""

from collections.abc import Sequence

import numpy as np

from her2.core.section import Section
from her2.core.types import Floats

PERCENTS = (0.0, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 100.0)
DIGITS = 6
"""Significant digits that are kept: enough to compare with, without the last bits of a sum."""


class Distribution(Section):
    """Quantiles of a number.

    `values` are its quantiles at `percents`, both ascending, from 0 (the smallest) to 100 (the
    largest). `n` slides have it, `missing` have not.
    """

    n: int
    missing: int = 0
    percents: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def lowest(self) -> float:
        """Return the smallest value."""
        return self.values[0]

    @property
    def highest(self) -> float:
        """Return the largest value."""
        return self.values[-1]

    def at(self, percent: float) -> float:
        """Return the quantile at a percent, linearly between those that are stored."""
        return float(np.interp(percent, self.percents, self.values))

    def percentile(self, value: float) -> float:
        """Return the percent of values below, plus half of those that are equal; 0 to 100."""
        first = int(np.searchsorted(self.values, value, "left"))
        past = int(np.searchsorted(self.values, value, "right"))
        if first == len(self.values):
            return 100.0
        if past == 0:
            return 0.0
        if first < past:
            return (self.percents[first] + self.percents[past - 1]) / 2
        return float(np.interp(value, self.values, self.percents))


def distribution(
    values: Floats, *, missing: int = 0, percents: Sequence[float] = PERCENTS
) -> Distribution:
    """Return the distribution of finite values (n,), n at least 1."""
    found = np.quantile(values, np.array(percents) / 100)
    return Distribution(
        n=len(values),
        missing=missing,
        percents=tuple(percents),
        values=tuple(rounded(value) for value in found),
    )


def rounded(value: float) -> float:
    """Return a number with `DIGITS` significant digits."""
    return float(f"{value:.{DIGITS}g}")


def shown(value: float) -> str:
    """Return a number for people, with three significant digits or all of its whole ones."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
