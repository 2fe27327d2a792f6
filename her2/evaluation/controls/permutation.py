"""Stage 2, control: a permutation test of the association of predictions and labels.

Labels of held-out patients are shuffled within their test folds, so that differences of mean
probability or class mix between folds do not count. The test shows that the predictions carry
information on the labels, but not where this information comes from.
"""

import numpy as np
import polars as pl

from her2.config import Task
from her2.core.types import Floats, Ints
from her2.evaluation.delong import ranks
from her2.evaluation.figures import null
from her2.evaluation.predictions import out_of_fold, rows_of

SHUFFLED = {
    "class": pl.String,
    "value": pl.Float64,
    "mean": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
    "permutations": pl.Int64,
    "n": pl.Int64,
    "note": pl.String,
}
DRAWS = {"class": pl.String, "draw": pl.Int64, "auc": pl.Float64}


def shuffle_labels(
    predictions: pl.DataFrame, task: Task, *, permutations: int, confidence: float, seed: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the AUC of each class and the macro AUC, observed and under permutations.

    Returns:
        `class, value, mean, low, high, p, permutations, n, note` with p = (1 + number of draws that
        reach the observed AUC) / (1 + permutations); the macro AUC of every draw.
    """
    table = out_of_fold(predictions, task.class_names, by="patient_id")
    rows = rows_of(table, task)
    first = (
        predictions.filter(pl.col("role") == "test")
        .sort("repeat", "fold")
        .group_by("patient_id")
        .agg(pl.col("fold").first())
        .sort("patient_id")
    )
    folds = first["fold"].to_numpy()
    generator = np.random.default_rng(seed)
    targets = np.stack([rows.target, *(_shuffled(rows.target, folds, generator)
                                       for _ in range(permutations))])  # fmt: skip
    areas = _areas(targets, rows.probabilities)  # (1 + permutations, classes + macro)
    records = []
    for index, name in enumerate((*task.class_names, "macro")):
        column = areas[:, index]
        defined = not np.isnan(column).any()
        low, high = (
            np.quantile(column[1:], [(1 - confidence) / 2, (1 + confidence) / 2])
            if defined
            else (float("nan"), float("nan"))
        )
        reach = int((column[1:] >= column[0] - 1e-12).sum())
        records.append(
            {
                "class": name,
                "value": null(column[0]),
                "mean": null(column[1:].mean()) if defined else None,
                "low": null(low),
                "high": null(high),
                "p": (1 + reach) / (1 + permutations) if defined else None,
                "permutations": permutations,
                "n": len(rows),
                "note": "" if defined else "not defined: a class is absent",
            }
        )
    draws = pl.DataFrame(
        {
            "class": ["macro"] * permutations,
            "draw": np.arange(permutations),
            "auc": pl.Series(areas[1:, -1], dtype=pl.Float64).fill_nan(None),
        },
        schema=DRAWS,
    )
    return pl.DataFrame(records, schema=SHUFFLED), draws


def _shuffled(target: Ints, folds: Ints, generator: np.random.Generator) -> Ints:
    mixed = target.copy()
    for fold in np.unique(folds):
        members = np.flatnonzero(folds == fold)
        mixed[members] = target[generator.permutation(members)]
    return mixed


def _areas(targets: Ints, probabilities: Floats) -> Floats:
    """Return the AUC of each class and the macro AUC (b, c + 1) of labels (b, n), from ranks."""
    count = probabilities.shape[1]
    found = np.full((len(targets), count + 1), np.nan)
    for index in range(count):
        positive = targets == index  # (b, n)
        ups = positive.sum(axis=1)
        downs = positive.shape[1] - ups
        sums = positive @ ranks(probabilities[None, :, index])[0]
        pairs = ups * downs
        found[:, index] = np.divide(
            sums - ups * (ups + 1) / 2,
            pairs,
            out=np.full(len(targets), np.nan),
            where=pairs > 0,
        )
    found[:, -1] = found[:, :count].mean(axis=1)
    return found
