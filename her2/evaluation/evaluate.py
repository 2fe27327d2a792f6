"""Stage 2, evaluate: out-of-fold predictions of an encoder and head -> tables of figures."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from her2.cache import Cache
from her2.config import EvaluationSection, Task
from her2.errors import UserError
from her2.evaluation.metrics import (
    Floats,
    auc,
    balanced_accuracy,
    confusion,
    interval,
    patient_weights,
    quadratic_kappa,
)
from her2.folds import check_disjoint
from her2.manifest import FoldEntry, read_manifests
from her2.products import find_product
from her2.specs import EvaluateSpec
from her2.tables import write_table

log = logging.getLogger(__name__)


def evaluate(
    spec: EvaluateSpec, cache: Cache, *, folds: Path, models: Path, output: Path
) -> pl.DataFrame:
    """Write `predictions`, `slides`, `patients`, `metrics` and `confusion`, as Parquet and CSV.

    Args:
        spec: the job.
        cache: holds the trained folds.
        folds: the task's folds table.
        models: the folder of the chunks' manifests.
        output: folder of the tables.

    Raises:
        UserError: a prediction is missing or not finite.
    """
    predictions = gather_predictions(spec, cache, folds=folds, models=models)
    slides = out_of_fold(predictions, spec.task.class_names, by="slide_id")
    patients = out_of_fold(predictions, spec.task.class_names, by="patient_id")
    if spec.protocol == "published":
        return _evaluate_as_published(spec, cache, models, predictions, output)
    seed, section = spec.seed, spec.evaluation
    metrics = pl.concat(
        [
            figures(table, spec.task, section, level=level, seed=seed)
            for level, table in (("patient", patients), ("slide", slides))
        ]
    )
    confusions = pl.concat(
        [
            confusion_table(table, spec.task, level=level)
            for level, table in (("patient", patients), ("slide", slides))
        ]
    )
    for name, table in {
        "slides": slides,
        "patients": patients,
        "metrics": metrics,
        "confusion": confusions,
        "predictions": predictions,  # last: the rule's output
    }.items():
        write_table(table, output / name)
    return metrics


def _evaluate_as_published(
    spec: EvaluateSpec, cache: Cache, models: Path, predictions: pl.DataFrame, output: Path
) -> pl.DataFrame:
    """AUC over random bags, as arXiv 2411.05028 counts, and over the slides of the same models.

    Bags of one slide are no independent observations, so the former gets no interval.
    """
    classes = spec.task.class_names
    slides = out_of_fold(predictions, classes, by="slide_id")
    target = dict(predictions.select("slide_id", "target").unique().iter_rows())
    parts = [
        pl.read_parquet(cache.path("models", entry.key) / "bags.parquet")
        for entry in read_manifests(models, spec.chunks, FoldEntry).values()
        if (cache.path("models", entry.key) / "bags.parquet").exists()
    ]
    bags = pl.concat(parts)
    truth = np.array([target[slide] for slide in bags["slide_id"]], int)
    ones = np.ones((1, len(bags)))
    values = {
        name: float(auc(truth == i, bags[f"prob_{name}"].to_numpy(), ones)[0])
        for i, name in enumerate(classes)
    }
    values["macro"] = float(np.mean(list(values.values())))
    note = "random bags, pooled over folds; those of a slide are not independent: no interval"
    counted = pl.DataFrame(
        [
            {
                "level": "bag",
                "metric": "auc",
                "class": name,
                "value": _null(value),
                "low": None,
                "high": None,
                "n": len(bags),
                "n_positive": int((truth == classes.index(name)).sum())
                if name in classes
                else None,
                "note": note,
            }
            for name, value in values.items()
        ],
        schema_overrides=_FIGURE_TYPES,
    )
    by_slide = figures(slides, spec.task, spec.evaluation, level="slide", seed=spec.seed)
    metrics = pl.concat([counted, by_slide])
    for name, table in {"slides": slides, "metrics": metrics, "predictions": predictions}.items():
        write_table(table, output / name)
    return metrics


def gather_predictions(
    spec: EvaluateSpec, cache: Cache, *, folds: Path, models: Path
) -> pl.DataFrame:
    """One row a held-out slide, repeat and fold.

    Returns:
        `slide_id, patient_id, repeat, fold, role` (test, or predict for unlabelled slides),
        `target` (class index or null), `prob_<class>`.
    """
    table = pl.read_parquet(folds)
    if spec.protocol == "sound":
        check_disjoint(table)
    parts = []
    for name, entry in read_manifests(models, spec.chunks, FoldEntry).items():
        path = find_product(cache, "models", entry.key, models / name)
        repeat, fold = (int(part) for part in name.removeprefix("r").split("f"))
        parts.append(
            pl.read_parquet(path / "predictions.parquet").with_columns(
                pl.lit(repeat, pl.Int32).alias("repeat"), pl.lit(fold, pl.Int32).alias("fold")
            )
        )
    joined = pl.concat(parts).join(
        table.select("slide_id", "repeat", "fold", "role", target="label"),
        on=["slide_id", "repeat", "fold"],
        how="left",
    )
    columns = [f"prob_{name}" for name in spec.task.class_names]
    _check_predictions(joined, columns)
    return joined.select(
        "slide_id", "patient_id", "repeat", "fold", "role", "target", *columns
    ).sort("repeat", "fold", "slide_id")


def out_of_fold(predictions: pl.DataFrame, classes: Sequence[str], *, by: str) -> pl.DataFrame:
    """Test rows averaged over repeats (and, for `by="patient_id"`, over a patient's slides).

    Returns:
        `patient_id` (and `slide_id`), `target`, `predicted` (most probable class), `prob_<class>`.
    """
    columns = [f"prob_{name}" for name in classes]
    keys = ["patient_id"] if by == "patient_id" else ["slide_id", "patient_id"]
    table = (
        predictions.filter(pl.col("role") == "test")
        .group_by(keys)
        .agg(pl.col("target").first(), *(pl.col(name).mean() for name in columns))
        .sort(keys)
    )
    predicted = table.select(columns).to_numpy().argmax(axis=1) if len(table) else []
    return table.select(*keys, "target", pl.Series("predicted", predicted, pl.Int32), *columns)


def figures(
    table: pl.DataFrame, task: Task, section: EvaluationSection, *, level: str, seed: int
) -> pl.DataFrame:
    """Figures of a table of slides or patients, with patient-bootstrap intervals.

    Returns:
        `level, metric, class, value, low, high, n, n_positive, note`; a figure that is not
        defined is null with the reason in `note`.
    """
    target = table["target"].to_numpy().astype(np.int64)
    predicted = table["predicted"].to_numpy().astype(np.int64)
    scores = table.select([f"prob_{name}" for name in task.class_names]).to_numpy()
    patients = np.unique(table["patient_id"].to_numpy(), return_inverse=True)[1]
    ones = np.ones((1, len(table)))
    draws = patient_weights(patients, target, resamples=section.bootstrap, seed=seed)

    def one_vs_rest(index: int) -> Callable[[Floats], Floats]:
        return lambda weights: auc(target == index, scores[:, index], weights)

    def over_confusion(figure: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
        return lambda weights: figure(confusion(target, predicted, len(task.class_names), weights))

    per_class = {name: one_vs_rest(index) for index, name in enumerate(task.class_names)}
    wanted: list[tuple[str, str, Callable[[Floats], Floats]]] = [
        *(("auc", name, figure) for name, figure in per_class.items()),
        ("auc", "macro", lambda w: np.mean([figure(w) for figure in per_class.values()], axis=0)),
        ("balanced_accuracy", "", over_confusion(balanced_accuracy)),
    ]
    if task.ordinal:
        wanted.append(("quadratic_kappa", "", over_confusion(quadratic_kappa)))
    records = []
    for metric, name, figure in wanted:
        value = float(figure(ones)[0])
        low, high = interval(figure(draws), section.confidence)
        index = task.class_names.index(name) if name in per_class else None
        records.append(
            {
                "level": level,
                "metric": metric,
                "class": name,
                "value": _null(value),
                "low": _null(low),
                "high": _null(high),
                "n": len(table),
                "n_positive": None if index is None else int((target == index).sum()),
                "note": "" if value == value else "not defined: a class is absent",
            }
        )
    return pl.DataFrame(records, infer_schema_length=None, schema_overrides=_FIGURE_TYPES)


_FIGURE_TYPES = {
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "n_positive": pl.Int64,
}


def confusion_table(table: pl.DataFrame, task: Task, *, level: str) -> pl.DataFrame:
    """`level, true, predicted, count`, one row a pair of classes."""
    names = task.class_names
    target = table["target"].to_numpy().astype(np.int64)
    predicted = table["predicted"].to_numpy().astype(np.int64)
    matrix = confusion(target, predicted, len(names), np.ones((1, len(table))))[0]
    return pl.DataFrame(
        [
            {"level": level, "true": true, "predicted": guess, "count": int(matrix[i, j])}
            for i, true in enumerate(names)
            for j, guess in enumerate(names)
        ]
    )


def _check_predictions(table: pl.DataFrame, columns: list[str]) -> None:
    bad = table.filter(
        pl.any_horizontal(pl.col(name).is_null() | ~pl.col(name).is_finite() for name in columns)
        | ~pl.col("role").is_in(["test", "predict"]).fill_null(False)
        | ((pl.col("role") == "test") & pl.col("target").is_null())
    )
    if len(bad):
        names = ", ".join(bad["slide_id"].unique().sort().head(8).to_list())
        raise UserError(
            f"{len(bad)} predictions cannot be evaluated (not finite, or not held out in the folds "
            f"table): {names}; delete the model manifests and run snakemake again."
        )


def _null(value: float) -> float | None:
    return None if np.isnan(value) else value
