"""Stage 2, control: the labels predicted from facts that are known without looking at the tissue.

On TCGA the size of a slide alone separated low from zero with an AUC of 0.92. A headline figure has
a meaning only next to such a figure, on the same patients in the same folds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from her2.cohort.columns import covariates
from her2.config import Task
from her2.core.errors import UserError

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

NUMBERS = {
    "tissue": pl.col("tissue_mm2"),
    "tiles": pl.col("tiles"),
    "size": pl.col("width_px") * pl.col("height_px"),
    "mpp": (pl.col("mpp_x") * pl.col("mpp_y")).sqrt(),
}
"""Covariates computed from the results of tiling; the logarithm of each is used."""
WORDS = {
    "tissue": "tissue area",
    "tiles": "number of tiles",
    "size": "slide size",
    "mpp": "um/px",
}
"""Names of these covariates in the report; the manifest's columns have labels of their own."""
MISSING = "(missing)"
STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""Inverse strengths of the L2 penalty, one of which the tuning set picks."""
WITHOUT_TUNE = 1.0
"""scikit-learn's default strength, for a fold without a tuning set."""

INPUTS = {
    "covariate": pl.String,
    "kind": pl.String,
    "used": pl.Boolean,
    "levels": pl.Int64,
    "missing": pl.Int64,
    "note": pl.String,
}


@dataclass(frozen=True, slots=True)
class Covariates:
    """Covariates of slides.

    `table` has one row per slide, with `slide_id` and the covariates. `inputs` describes all
    covariates, used or not.
    """

    table: pl.DataFrame
    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    inputs: pl.DataFrame

    @property
    def any_used(self) -> bool:
        """Whether any covariate differs between slides."""
        return bool(self.numbers or self.categories)


def covariates_of(cohort: pl.DataFrame, slides: Sequence[str]) -> Covariates:
    """Return the covariates of some slides, from the cohort's table for one grid.

    A covariate that is not known for any slide, or the same for all, is not used; `inputs` tells
    why.
    """
    table = cohort.filter(pl.col("slide_id").is_in(list(slides))).sort("slide_id")
    # A declared column is in the table only if some slide has a value.
    numbers, categories = (
        {name: label for name, label in covariates(kind).items() if name in cohort.columns}
        for kind in ("number", "category")
    )
    labels = WORDS | numbers | categories
    table = table.select(
        "slide_id",
        *(value.cast(pl.Float64).log().alias(name) for name, value in NUMBERS.items()),
        *(pl.col(name).cast(pl.Float64) for name in numbers),
        *(pl.col(name).cast(pl.String) for name in categories),
    )
    records, used = [], []
    for name, label in labels.items():
        known = table[name].drop_nulls()
        if name not in categories:
            known = known.filter(known.is_finite())
        missing, levels = len(table) - len(known), known.n_unique()
        # A missing category is a level of its own.
        varies = levels + (name in categories and missing > 0) > 1
        note = "" if varies else "the same for every slide"
        note = "not known for any slide" if not len(known) else note
        if varies and len(known):
            used.append(name)
        records.append(
            {
                "covariate": label,
                "kind": "category" if name in categories else "number",
                "used": name in used,
                "levels": levels,
                "missing": missing,
                "note": note,
            }
        )
    filled = table.with_columns(
        *(
            pl.when(pl.col(name).is_finite()).then(pl.col(name)).otherwise(None).alias(name)
            for name in labels
            if name not in categories
        ),
        *(pl.col(name).fill_null(MISSING) for name in categories),
    )
    return Covariates(
        table=filled,
        numbers=tuple(name for name in used if name not in categories),
        categories=tuple(name for name in used if name in categories),
        inputs=pl.DataFrame(records, schema=INPUTS),
    )


def predict_by_covariates(
    found: Covariates, folds: pl.DataFrame, tested: pl.DataFrame, task: Task
) -> pl.DataFrame:
    """Cross-validate a multinomial logistic regression of the covariates in a model's folds.

    Args:
        found: covariates of all slides of the model.
        folds: `slide_id, patient_id, label, repeat, fold, role`.
        tested: the model's test rows, `slide_id, repeat, fold`; exactly these are predicted.
        task: the task, for its classes.

    Returns:
        Test rows with the columns of `her2.evaluation.predictions.gather_predictions`. A class that
        the training set of a fold lacks gets the probability 0.

    Raises:
        UserError: a training set has fewer than two classes.
    """
    rows = folds.join(found.table, on="slide_id", how="inner").sort("repeat", "fold", "slide_id")
    parts = []
    for (repeat, fold), own in rows.group_by(["repeat", "fold"], maintain_order=True):
        train, tune = (own.filter(pl.col("role") == role) for role in ("train", "tune"))
        wanted = tested.filter((pl.col("repeat") == repeat) & (pl.col("fold") == fold))
        test = own.join(wanted.select("slide_id"), on="slide_id", how="semi")
        if not len(test):
            continue
        if train["label"].n_unique() < 2:
            raise UserError(
                f"r{repeat}f{fold}: its training set has fewer than two classes in the folds "
                "table, which does not match the trained model; run snakemake again."
            )
        probabilities = _fit(found, train, tune, test, len(task.class_names))
        parts.append(
            test.select(
                "slide_id",
                "patient_id",
                "repeat",
                "fold",
                pl.lit(0, pl.Int32).alias("seed"),  # one fit, whatever the seeds of the model
                pl.lit("test").alias("role"),
                target="label",
            ).with_columns(
                pl.Series(f"prob_{name}", probabilities[:, index])
                for index, name in enumerate(task.class_names)
            )
        )
    return pl.concat(parts)


def _fit(
    found: Covariates, train: pl.DataFrame, tune: pl.DataFrame, test: pl.DataFrame, classes: int
) -> np.ndarray:
    """Return probabilities (n, c) for the test set; the tuning set picks the strength."""
    from sklearn.metrics import log_loss  # slow to import

    # Missing numbers are replaced by the training set's median.
    medians = {name: train[name].median() for name in found.numbers}
    inputs = [_matrix(found, part, medians) for part in (train, tune, test)]
    labels = train["label"].to_numpy()
    best: tuple[float, np.ndarray] = (math.inf, np.empty(0))
    for strength in STRENGTHS if len(tune) else (WITHOUT_TUNE,):
        model = _pipeline(found, strength).fit(inputs[0], labels)
        given = [_spread(model, part, classes) for part in inputs[1:] if len(part)]
        loss = 0.0
        if len(tune):
            loss = float(log_loss(tune["label"].to_numpy(), given[0], labels=np.arange(classes)))
        if loss < best[0]:
            best = (loss, given[-1])
    return best[1]


def _pipeline(found: Covariates, strength: float) -> "Pipeline":
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    count = len(found.numbers)
    columns = ColumnTransformer(
        [
            ("numbers", StandardScaler(), list(range(count))),
            (
                "categories",
                OneHotEncoder(handle_unknown="ignore"),
                list(range(count, count + len(found.categories))),
            ),
        ]
    )
    regression = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)
    return Pipeline([("columns", columns), ("regression", regression)])


def _matrix(found: Covariates, part: pl.DataFrame, medians: Mapping[str, object]) -> np.ndarray:
    table = part.select(
        *(pl.col(name).fill_null(pl.lit(medians[name] or 0.0)) for name in found.numbers),
        *found.categories,
    )
    width = len(found.numbers) + len(found.categories)
    return np.array(table.rows(), dtype=object).reshape(len(part), width)


def _spread(model: "Pipeline", part: np.ndarray, classes: int) -> np.ndarray:
    """Return probabilities over all classes, with 0 for those that the training set lacks."""
    values = np.zeros((len(part), classes))
    values[:, model.classes_] = model.predict_proba(part)
    return values
