"""Stage 2, external cohorts: predictions in the classes that a cohort tells the truth of.

A cohort may know only two classes where the task has four. Each of its classes is then a side of
the task's: the sum of the probabilities of the classes on it.
"""

import numpy as np
import polars as pl

from her2.config.external_jobs import Truth
from her2.core.types import Floats


def summed(probabilities: Floats, truth: Truth) -> Floats:
    """Return the probability of each class of the truth (n, t) from those of the task (n, c)."""
    found: Floats = np.stack(
        [probabilities[:, list(side)].sum(axis=1) for side in truth.sides], axis=1
    )
    return found


def in_classes(table: pl.DataFrame, truth: Truth) -> pl.DataFrame:
    """Return a table with `prob_<class>` of the truth in place of those of the task.

    Columns `raw_<class>` are left out.
    """
    columns = [f"prob_{name}" for name in truth.task.class_names]
    given = table.select(columns).cast(pl.Float64).to_numpy().reshape(len(table), len(columns))
    probabilities = summed(given, truth)
    return table.select(pl.exclude(r"^(prob|raw)_.*$")).with_columns(
        pl.Series(f"prob_{name}", probabilities[:, index], pl.Float64)
        for index, name in enumerate(truth.truth.class_names)
    )


def in_truth(predictions: pl.DataFrame, truth: Truth) -> pl.DataFrame:
    """Return the development's predictions table in the classes of the truth, as is `target`."""
    target = class_in_truth(predictions["target"], truth)
    return in_classes(predictions, truth).with_columns(target=target)


def class_in_truth(classes: pl.Series, truth: Truth) -> pl.Series:
    """Return class indices of the development's task as those of the truth; null stays null."""
    places = {index: place for place, side in enumerate(truth.sides) for index in side}
    return pl.Series(
        classes.name, [None if one is None else places[one] for one in classes], pl.Int32
    )
