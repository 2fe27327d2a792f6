"""Stage 2, control: a permutation test of the association of predictions and labels.

Labels of held-out patients are shuffled within their test folds, so that differences of mean
probability or class mix between folds do not count. The test shows that the predictions carry
information on the labels, but not where this information comes from.

The models are not trained again. In cross-validation a label counts twice: where its patient is
tested, and in the models that learn from it. If by chance two folds agree on a pattern that means
nothing, the model of each does well on the other. Shuffling after training undoes the first part
alone, which is half of the variance where a prediction is a sum over the training patients that is
symmetric (what patient A adds to the score of B is what B adds to that of A, as in linear models
and kernel methods). The draws are therefore spread by `TRAINED_BEFORE` around their mean.
"""

import math
import warnings

import numpy as np
import polars as pl

from her2.config import Task
from her2.core.tables import null
from her2.core.types import Floats, Ints
from her2.evaluation.areas import DECIMALS, HeldOut, held_out

SHUFFLED = {
    "class": pl.String,
    "value": pl.Float64,
    "mean": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p_better": pl.Float64,
    "p_worse": pl.Float64,
    "permutations": pl.Int64,
    "n": pl.Int64,
    "note": pl.String,
}
TRAINED_BEFORE = math.sqrt(2)
"""Factor on the deviations of the draws, except for a fixed test set, from which no model learns.
Without it, 10 to 13 % of null studies have p below 0.05 on either side."""
DRAWS = {"class": pl.String, "draw": pl.Int64, "auc": pl.Float64}


def shuffle_labels(
    predictions: pl.DataFrame, task: Task, *, permutations: int, confidence: float, seed: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the AUC of each class and the macro AUC, observed and under permutations.

    Returns:
        A row per class and for macro: the observed `value`; the `mean` of the draws, which is
        chance; their interval `low, high`; `p_better` and `p_worse`, (1 + number of draws that are
        at least, or at most, the observed AUC) / (1 + permutations). Then the macro AUC of every
        draw.
    """
    rows = held_out(predictions, task, level="patient")
    generator = np.random.default_rng(seed)
    folds = _first_folds(rows)
    labels = np.stack([rows.classes, *(_shuffled(rows.classes, folds, generator)
                                       for _ in range(permutations))])  # fmt: skip
    areas = _areas(rows, labels)  # (1 + permutations, classes + macro)
    if rows.folds > 1 and len(labels) > 1:
        centre = areas[1:].mean(axis=0)
        areas[1:] = np.clip(centre + TRAINED_BEFORE * (areas[1:] - centre), 0, 1)
    records = []
    for index, name in enumerate((*task.class_names, "macro")):
        column = areas[:, index]
        defined = not np.isnan(column).any()
        low, high = (
            np.quantile(column[1:], [(1 - confidence) / 2, (1 + confidence) / 2])
            if defined
            else (float("nan"), float("nan"))
        )
        above = int((column[1:] >= column[0] - 1e-12).sum())
        below = int((column[1:] <= column[0] + 1e-12).sum())
        records.append(
            {
                "class": name,
                "value": null(column[0]),
                "mean": null(column[1:].mean()) if defined else None,
                "low": null(low),
                "high": null(high),
                "p_better": (1 + above) / (1 + permutations) if defined else None,
                "p_worse": (1 + below) / (1 + permutations) if defined else None,
                "permutations": permutations,
                "n": len(rows.names),
                "note": ""
                if defined
                else "not defined: a class is absent, or has no pairs in any test set",
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


def _first_folds(rows: HeldOut) -> Ints:
    """Return the model that first tested each patient (p,)."""
    found = np.full(len(rows.names), len(rows.rounds))
    np.minimum.at(found, rows.patients, rows.models)
    return found


def _areas(rows: HeldOut, labels: Ints) -> Floats:
    """Return the AUC of each class and the macro AUC (b, c + 1) of patients' labels (b, p).

    Pairs are those of `her2.evaluation.areas`: of one model, averaged over the rounds.
    """
    count, rounds = rows.probabilities.shape[1], int(rows.rounds.max(initial=-1)) + 1
    concordant, pairs = (np.zeros((count, rounds, len(labels))) for _ in range(2))
    scores = np.round(rows.probabilities, DECIMALS)
    for model, round_ in enumerate(rows.rounds):
        own = np.flatnonzero(rows.models == model)
        target = labels[:, rows.patients[own]]
        for index in range(count):
            positive = target == index
            ups = positive.sum(axis=1)
            sums = positive @ mean_ranks(scores[own, index])
            concordant[index, round_] += sums - ups * (ups + 1) / 2
            pairs[index, round_] += ups * (len(own) - ups)
    each = np.divide(concordant, pairs, out=np.full(pairs.shape, np.nan), where=pairs > 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a class without a pair in any round
        areas = np.nanmean(each, axis=1)
    return np.concatenate([areas, areas.mean(axis=0, keepdims=True)]).T


def mean_ranks(scores: Floats) -> Floats:
    """Return ranks from 1 of scores (n,); equal scores share their mean rank."""
    ordered = np.sort(scores)
    before, until = (np.searchsorted(ordered, scores, side) for side in ("left", "right"))
    found: Floats = (before + until + 1) / 2
    return found
