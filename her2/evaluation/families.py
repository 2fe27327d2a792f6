"""Stage 2, compare: p values corrected for how many questions were asked at once."""

import numpy as np
import polars as pl

from her2.core.types import Floats

TEST = {
    "p": pl.Float64,
    "p_holm": pl.Float64,
    "family": pl.String,
    "family_size": pl.Int64,
}
"""Columns of a test, in the schemas of tables that have some."""


def with_holm(table: pl.DataFrame) -> pl.DataFrame:
    """Add `p_holm` and `family_size` to a table with the columns `family` and `p`.

    A family is corrected as a whole, whatever tasks and groupings its tests are of. Tests without a
    p value are not counted. Rows of a family with the same name in the column `test`, where there
    is one, are one test.
    """
    corrected: list[float | None] = [None] * len(table)
    sizes = [0] * len(table)
    names, p = table["family"].to_list(), table["p"].to_list()
    tests = table["test"].to_list() if "test" in table.columns else [None] * len(table)
    for family in dict.fromkeys(names):
        members = [index for index, name in enumerate(names) if name == family]
        rows: dict[object, list[int]] = {}
        for index in members:
            if p[index] is not None:
                rows.setdefault(index if tests[index] is None else tests[index], []).append(index)
        for index in members:
            sizes[index] = len(rows)
        values = holm(np.array([max(p[index] for index in same) for same in rows.values()]))
        for same, value in zip(rows.values(), values, strict=True):
            for index in same:
                corrected[index] = float(value)
    return table.with_columns(
        pl.Series("p_holm", corrected, pl.Float64), pl.Series("family_size", sizes, pl.Int64)
    )


def holm(p: Floats) -> Floats:
    """Correct p values (n,) for multiple testing.

    The k-th smallest of n is multiplied by n - k + 1. The results are limited to 1 and made
    monotonic: none is below that of a smaller p value. Source: Holm, Scandinavian Journal of
    Statistics 6(2), 1979.
    """
    order = np.argsort(p)
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(raised, 1)
    return corrected
