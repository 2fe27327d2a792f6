"""Stage 2, evaluate: how far the AUC of a model depends on the seed of its training.

Seeds share folds and patients and differ in initial weights, draws of tiles and slides, and
dropout. Intervals of AUCs and of differences are about other patients, and the spread over seeds is
about another training: a difference between two models that is smaller than it may be luck.
"""

import math

import numpy as np
import polars as pl

from her2.config import EvaluationSection, Task
from her2.evaluation.areas import held_out
from her2.evaluation.groupings import groupings_of
from her2.evaluation.paired import areas_of

SEEDS = {
    "level": pl.String,
    "metric": pl.String,
    "class": pl.String,
    "grouping": pl.String,
    "sd": pl.Float64,
    "lowest": pl.Float64,
    "highest": pl.Float64,
    "seeds": pl.Int64,
    "note": pl.String,
}
ONE_SEED = "one training seed"
"""Note where there is no spread to measure."""


def seeds_table(
    predictions: pl.DataFrame, task: Task, section: EvaluationSection, *, level: str
) -> pl.DataFrame:
    """Return the spread over training seeds of the AUC within folds, averaged over the repeats.

    Args:
        predictions: the predictions table of a model.
        task: the task that it predicts.
        section: the `evaluation` section of the config, for the groupings.
        level: `patient` or `slide`.

    Returns:
        One row per class, `macro` and grouping, as in `SEEDS`: `sd` is the standard deviation (with
        n - 1) of the AUC of one seed, `lowest` and `highest` the AUC of the lowest and the highest
        seed. With one seed, and where the AUC is not defined, they are null with the reason in
        `note`.
    """
    groupings = groupings_of(task, section)
    by_seed = [
        areas_of(held_out(own, task, level=level), task, groupings)
        for _, own in predictions.sort("seed").group_by("seed", maintain_order=True)
    ]
    if not by_seed:
        by_seed = [areas_of(held_out(predictions, task, level=level), task, groupings)]
    records = []
    for name, grouping in by_seed[0]:
        areas = [found[name, grouping] for found in by_seed]
        values = np.array([one.value for one in areas])
        reasons = [one.reason for one in areas if one.reason]
        note = reasons[0] if reasons else ONE_SEED if len(areas) == 1 else ""
        records.append(
            {
                "level": level,
                "metric": "auc",
                "class": name,
                "grouping": grouping,
                "sd": None if note else _deviation(values),
                "lowest": None if note else float(values.min()),
                "highest": None if note else float(values.max()),
                "seeds": len(areas),
                "note": note,
            }
        )
    return pl.DataFrame(records, schema=SEEDS)


def _deviation(values: np.ndarray) -> float:
    """Return the standard deviation; 0 for equal values, whose mean can differ in the last bit."""
    return 0.0 if math.isclose(values.min(), values.max()) else float(values.std(ddof=1))
