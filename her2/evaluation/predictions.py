"""Stage 2, evaluate: the predictions of all folds as one table, by slide and by patient.

Figures are computed from `test` rows alone. Temperatures and thresholds are fitted on `tune` rows
(the tuning set); `predict` rows are slides without a label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from her2.cohort.folds import check_disjoint
from her2.config import Task
from her2.config.jobs import EvaluateSpec
from her2.config.names import Run, parse_run
from her2.core.errors import UserError
from her2.core.tables import read_result
from her2.core.types import Floats, Ints
from her2.metrics.base import Classified
from her2.storage.cache import Cache
from her2.storage.entries import read_folds
from her2.storage.fold_files import check_fold
from her2.storage.products import find_product

KEYS = {"slide": ("slide_id", "patient_id"), "patient": ("patient_id",)}
"""Level -> key columns of its rows."""
MODEL = Run._fields
"""Columns that name the model of a prediction."""
_TUNED = {"predictions.parquet": False, "tune.parquet": True}
"""Files of a fold -> whether they are predictions for the tuning set."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Slides or patients with a known class.

    `target` (n,) holds class indices, `probabilities` is (n, c), `patients` (n,) holds the number
    of each row's patient.
    """

    target: Ints
    probabilities: Floats
    patients: Ints

    def __len__(self) -> int:
        return len(self.target)

    def weighted(self, weights: Floats) -> Classified:
        """Return these rows with weights (b, n), in the form that metrics take."""
        return Classified(self.target, self.probabilities, weights)

    def class_patients(self) -> Ints:
        """Return the number of patients in each class (c,)."""
        target = self.target[np.unique(self.patients, return_index=True)[1]]
        return np.bincount(target, minlength=self.probabilities.shape[1])

    def sides(self, index: int) -> tuple[int, int]:
        """Return the number of patients in a class, and in all others."""
        counts = self.class_patients()
        return int(counts[index]), int(counts.sum() - counts[index])

    @property
    def count_patients(self) -> int:
        """Total number of patients."""
        return len(np.unique(self.patients))


def gather_predictions(
    spec: EvaluateSpec, cache: Cache, *, folds: Path, models: Path
) -> pl.DataFrame:
    """Collect the predictions for slides that a fold's model was not trained on.

    Returns:
        One row per slide and model: `slide_id, patient_id, repeat, fold, seed, role` (test, tune,
        or predict for unlabelled slides), `target` (class index or null), `prob_<class>` as the
        model gave it.

    Raises:
        UserError: a fold's files were changed, a prediction is not finite or has another role than
            in the folds table, a patient has two classes, or no fold has a model.
    """
    table = read_result(folds)
    if spec.protocol == "sound":
        check_disjoint(table)
    parts = []
    for name, entry in read_folds(models, spec.chunks).items():
        path = find_product(cache, "models", entry.key, models / name)
        run = parse_run(name)
        check_fold(path, _TUNED)
        for file, tuned in _TUNED.items():
            parts.append(
                _read(path / file, name).with_columns(
                    *(pl.lit(value, pl.Int32).alias(key) for key, value in run._asdict().items()),
                    pl.lit(tuned).alias("tuned"),
                )
            )
    joined = pl.concat(parts).join(
        table.select("slide_id", "repeat", "fold", "role", target="label"),
        on=["slide_id", "repeat", "fold"],
        how="left",
    )
    columns = [f"prob_{name}" for name in spec.task.class_names]
    _check_predictions(joined, columns)
    return joined.select("slide_id", "patient_id", *MODEL, "role", "target", *columns).sort(
        *MODEL, "role", "slide_id"
    )


def out_of_fold(predictions: pl.DataFrame, classes: Sequence[str], *, by: str) -> pl.DataFrame:
    """Average test rows over repeats (and, for `by="patient_id"`, over a patient's slides).

    Returns:
        `patient_id` (and `slide_id`), `target`, `predicted` (most probable class), `prob_<class>`.
    """
    return averaged(predictions.filter(pl.col("role") == "test"), classes, by=by)


def averaged(rows: pl.DataFrame, classes: Sequence[str], *, by: str) -> pl.DataFrame:
    """Average the probabilities of each slide's or patient's rows; columns as in `out_of_fold`."""
    columns = [f"prob_{name}" for name in classes]
    keys = list(KEYS[by.removesuffix("_id")])
    table = (
        rows.group_by(keys)
        .agg(pl.col("target").first(), *(pl.col(name).mean() for name in columns))
        .sort(keys)
    )
    predicted = table.select(columns).to_numpy().argmax(axis=1) if len(table) else []
    return table.select(*keys, "target", pl.Series("predicted", predicted, pl.Int32), *columns)


def rows_of(table: pl.DataFrame, task: Task) -> Rows:
    """Return the arrays of a table of slides or patients."""
    names = table["patient_id"].to_numpy()
    return Rows(
        target=table["target"].cast(pl.Int64).to_numpy(),
        probabilities=table.select([f"prob_{name}" for name in task.class_names])
        .cast(pl.Float64)
        .to_numpy(),
        patients=np.unique(names.astype(str), return_inverse=True)[1].astype(np.int64),
    )


def runs(predictions: pl.DataFrame) -> list[Run]:
    """Return every model, in the order of repeats, folds and seeds."""
    return [Run(*key) for key in predictions.select(MODEL).unique().sort(MODEL).iter_rows()]


def of_run(predictions: pl.DataFrame, run: Run, role: str) -> pl.DataFrame:
    """Return the rows of one model and role."""
    same = (pl.col(key) == value for key, value in run._asdict().items())
    return predictions.filter(*same, pl.col("role") == role)


def _read(path: Path, run: str) -> pl.DataFrame:
    if not path.exists():
        raise UserError(
            f"{run}: its model has no {path.name} ({path.parent}); delete the entries files of the "
            "models and run snakemake again."
        )
    return read_result(path)


def _check_predictions(table: pl.DataFrame, columns: list[str]) -> None:
    role, target = pl.col("role"), pl.col("target")
    expected = (
        pl.when("tuned").then(role == "tune").otherwise(role.is_in(["test", "predict"]))
    ).fill_null(False)
    bad = table.filter(
        pl.any_horizontal(pl.col(name).is_null() | ~pl.col(name).is_finite() for name in columns)
        | ~expected
        | ((role != "predict") & target.is_null())
    )
    if len(bad):
        names = ", ".join(bad["slide_id"].unique().sort().head(8).to_list())
        raise UserError(
            f"{len(bad)} predictions cannot be evaluated (not finite, or not held out in the folds "
            f"table): {names}. Delete the entries files of the models and run snakemake again."
        )
    torn = (
        table.drop_nulls("target")
        .group_by("patient_id")
        .agg(target.unique().sort(), pl.col("slide_id").unique().sort())
        .filter(target.list.len() > 1)
        .sort("patient_id")
    )
    if len(torn):
        first = torn.row(0, named=True)
        raise UserError(
            f"{len(torn)} patients have slides of two classes, first {first['patient_id']} "
            f"({', '.join(first['slide_id'][:8])}). Give each patient one label in the manifest "
            "and run snakemake again."
        )
