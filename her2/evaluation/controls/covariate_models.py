"""Stage 2, control: the labels predicted from covariates, by a linear model and by a forest.

The logistic regression adds up what each covariate tells. It cannot see what only a combination
tells (a scanner at one site), nor a middle that differs from both ends (mid-sized tissue). The
random forest can, and needs more patients for what is linear.

Both give classes equal weight. Only the ranks of their probabilities are used, so these need not be
corrected for it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from her2.config import Task
from her2.core.errors import UserError
from her2.core.types import Floats, Ints
from her2.evaluation.controls.covariates import Covariates

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""Inverse strengths of the logistic regression's L2 penalty, one of which the tuning set picks."""
WITHOUT_TUNE = 1.0
"""scikit-learn's default strength, for a fold without a tuning set."""
TREES = 100
"""Number of trees of the forest, which are grown in full, as is scikit-learn's default."""
LOGISTIC, FOREST = "logistic regression", "random forest"
"""Names of the two models."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Slides of one role: numbers (n, a) with NaN where missing, categories (n, b), classes."""

    numbers: Floats
    categories: NDArray[np.str_]
    labels: Ints

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class _Fold:
    """The slides of a fold, the number of classes of the task, and a seed."""

    train: _Part
    tune: _Part
    test: _Part
    classes: int
    seed: int


def predict_by_covariates(
    found: Covariates, folds: pl.DataFrame, tested: pl.DataFrame, task: Task, *, by: str, seed: int
) -> pl.DataFrame:
    """Cross-validate a model of the covariates in the folds of a MIL model.

    Args:
        found: covariates of all slides of the MIL model.
        folds: `slide_id, patient_id, label, repeat, fold, role`.
        tested: the test rows of the MIL model, `slide_id, repeat, fold`; exactly these are
            predicted, once whatever its training seeds.
        task: the task, for its classes.
        by: `LOGISTIC` or `FOREST`.
        seed: seed of the forest.

    Returns:
        Test rows with the columns of `her2.evaluation.predictions.gather_predictions`, with seed 0.
        A class that the training set of a fold lacks gets the probability 0.

    Raises:
        UserError: a training set has fewer than two classes.
    """
    rows = folds.join(found.table, on="slide_id", how="inner").sort("repeat", "fold", "slide_id")
    parts = []
    for (repeat, fold), own in rows.group_by(["repeat", "fold"], maintain_order=True):
        train, tune = (own.filter(pl.col("role") == role) for role in ("train", "tune"))
        wanted = tested.filter((pl.col("repeat") == repeat) & (pl.col("fold") == fold))
        test = own.join(wanted.select("slide_id"), on="slide_id", how="semi", maintain_order="left")
        if not len(test):
            continue
        if train["label"].n_unique() < 2:
            raise UserError(
                f"r{repeat}f{fold}: its training set has fewer than two classes in the folds "
                "table, which does not match the trained model; run snakemake again."
            )
        own_fold = _Fold(
            train=_part(found, train),
            tune=_part(found, tune),
            test=_part(found, test),
            classes=len(task.class_names),
            seed=seed,
        )
        probabilities = _MODELS[by](own_fold)
        parts.append(
            test.select(
                "slide_id",
                "patient_id",
                "repeat",
                "fold",
                pl.lit(0, pl.Int32).alias("seed"),
                pl.lit("test").alias("role"),
                target="label",
            ).with_columns(
                pl.Series(f"prob_{name}", probabilities[:, index])
                for index, name in enumerate(task.class_names)
            )
        )
    return pl.concat(parts)


def _part(found: Covariates, table: pl.DataFrame) -> _Part:
    numbers = table.select(pl.col(found.numbers).fill_null(math.nan))
    return _Part(
        numbers=numbers.to_numpy().reshape(len(table), len(found.numbers)),
        categories=table.select(found.categories)
        .to_numpy()
        .astype(str)
        .reshape(len(table), len(found.categories)),
        labels=table["label"].cast(pl.Int64).to_numpy(),
    )


def _by_logistic(fold: _Fold) -> Floats:
    """Return probabilities (n, c) of the test set; the tuning set picks the strength."""
    from sklearn.linear_model import LogisticRegression  # slow to import
    from sklearn.metrics import log_loss

    # Missing numbers are replaced by the training set's median.
    medians = np.array([_median(column) for column in fold.train.numbers.T])
    known = _filled(fold.train.numbers, medians)
    centre, scale = known.mean(axis=0), known.std(axis=0)
    scale[scale == 0] = 1
    train, *others = _matrices(fold, lambda part: (_filled(part, medians) - centre) / scale)
    best: tuple[float, Floats] = (math.inf, np.empty(0))
    for strength in STRENGTHS if len(fold.tune) else (WITHOUT_TUNE,):
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)
        model.fit(train, fold.train.labels)
        tune, test = (_spread(model, part, fold.classes) for part in others)
        loss = 0.0
        if len(tune):
            loss = float(log_loss(fold.tune.labels, tune, labels=np.arange(fold.classes)))
        if loss < best[0]:
            best = (loss, test)
    return best[1]


def _by_forest(fold: _Fold) -> Floats:
    """Return probabilities (n, c) of the test set; trees send missing numbers to one side."""
    from sklearn.ensemble import RandomForestClassifier  # slow to import

    train, _, test = _matrices(fold, lambda numbers: numbers)
    model = RandomForestClassifier(TREES, class_weight="balanced", random_state=fold.seed, n_jobs=1)
    return _spread(model.fit(train, fold.train.labels), test, fold.classes)


_MODELS: Mapping[str, Callable[[_Fold], Floats]] = {LOGISTIC: _by_logistic, FOREST: _by_forest}


def _matrices(fold: _Fold, change: Callable[[Floats], Floats]) -> list[Floats]:
    """Return the inputs of the training, tuning and test set: numbers, then a column per level."""
    levels = [np.unique(column) for column in fold.train.categories.T]
    return [
        np.column_stack(
            [change(part.numbers)]
            + [column[:, None] == own
               for column, own in zip(part.categories.T, levels, strict=True)]
        ).astype(float)
        for part in (fold.train, fold.tune, fold.test)
    ]  # fmt: skip


def _median(column: Floats) -> float:
    known = column[~np.isnan(column)]
    return float(np.median(known)) if len(known) else 0.0


def _filled(numbers: Floats, medians: Floats) -> Floats:
    return np.where(np.isnan(numbers), medians, numbers)


def _spread(model: Any, part: Floats, classes: int) -> Floats:
    """Return probabilities over all classes, with 0 for those that the training set lacks."""
    values = np.zeros((len(part), classes))
    if len(part):
        values[:, model.classes_] = model.predict_proba(part)
    return values
