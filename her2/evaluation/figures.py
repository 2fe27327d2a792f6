"""Stage 2, evaluate: figures of slides and patients with intervals, and per fold."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from her2.config import EvaluationSection, Task
from her2.config.names import parse_run
from her2.core.tables import null
from her2.core.types import Floats
from her2.evaluation.areas import (
    HeldOut,
    class_areas,
    combined,
    held_out,
    macro_area,
)
from her2.evaluation.bootstrap import bootstrapped, interval, unvarying
from her2.evaluation.intervals import Estimate, area_estimate, mean_estimate
from her2.evaluation.predictions import Rows, averaged, of_run, out_of_fold, rows_of, runs
from her2.metrics import metrics_in
from her2.metrics.base import Metric, mean_over_classes

WITHIN, POOLED = "within folds", "pooled, bootstrap"
"""Values of the column `method`: pairs within test sets, or one table of all test sets."""
FIGURES = {
    "level": pl.String,
    "metric": pl.String,
    "class": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "lowest": pl.Float64,
    "highest": pl.Float64,
    "method": pl.String,
    "n": pl.Int64,
    "n_positive": pl.Int64,
    "prevalence": pl.Float64,
    "note": pl.String,
}
"""`lowest` and `highest` are those of the rounds (repeats and training seeds)."""
FOLD_FIGURES = {
    "level": pl.String,
    "run": pl.String,
    "metric": pl.String,
    "class": pl.String,
    "value": pl.Float64,
    "n": pl.Int64,
    "n_positive": pl.Int64,
    "note": pl.String,
}


def figure_names(metrics: Sequence[Metric], task: Task) -> list[tuple[Metric, str]]:
    """Return the metric and class of each column of `measure`."""
    return [(metric, name) for metric in metrics for name in metric.columns(task.class_names)]


def of_one_test_set(metrics: Sequence[Metric]) -> list[Metric]:
    """Return the metrics without those that pool test sets where another compares within them.

    Of one test set both are the same figure.
    """
    within = {metric.one_vs_rest for metric in metrics if metric.within_folds}
    return [one for one in metrics if one.within_folds or one.one_vs_rest not in within]


def measure(rows: Rows, metrics: Sequence[Metric], task: Task, weights: Floats) -> Floats:
    """Return every figure of `figure_names` (b, k) for weights (b, n)."""
    if not len(rows):
        return np.full((len(weights), len(figure_names(metrics, task))), np.nan)
    classified = rows.weighted(weights)
    by_class: dict[str, list[Floats]] = {one.name: [] for one in metrics if one.one_vs_rest}
    # Class by class, because the metrics of a class share its sorted weights, which are then freed.
    for index in range(classified.classes):
        against_rest = classified.one_vs_rest(index)
        for metric in metrics:
            if metric.one_vs_rest:
                by_class[metric.name].append(metric.one_vs_rest(against_rest))
    columns: list[Floats] = []
    for metric in metrics:
        if metric.one_vs_rest:
            each = np.stack(by_class[metric.name], axis=1)
            columns += [*each.T, *(mean_over_classes(m, each, classified) for m in metric.means)]
        if metric.overall:
            columns.append(metric.overall(classified))
    return np.stack(columns, axis=1)


def class_estimates(rows: HeldOut, task: Task, confidence: float) -> dict[str, Estimate]:
    """Return the AUC of each class, `macro` and `weighted`, over pairs within test sets."""
    areas = class_areas(rows)
    found = {
        name: area_estimate(one, confidence)
        for name, one in zip(task.class_names, areas, strict=True)
    }
    found["macro"] = mean_estimate(macro_area(rows, areas), areas, confidence)
    counts = rows.class_patients
    shares = counts / max(counts.sum(), 1)
    weighted = combined(areas, shares, groups=rows.classes)
    return found | {"weighted": mean_estimate(weighted, areas, confidence, shares)}


def figures(
    predictions: pl.DataFrame, task: Task, section: EvaluationSection, *, level: str, seed: int
) -> pl.DataFrame:
    """Return the figures of a model at a level, with intervals.

    Metrics that are `within_folds` are means over the rounds, see `her2.evaluation.intervals`. The
    others are of one table, in which a slide's or patient's probabilities are averaged over the
    rounds, with intervals by bootstrap over patients.

    Args:
        predictions: the predictions table of the model.
        task: the task that it predicts.
        section: the `evaluation` section of the config.
        level: `patient` or `slide`.
        seed: seed of the resamples.

    Returns:
        The columns of `FIGURES`; a figure that is not defined is null with the reason in `note`.
    """
    rows = rows_of(out_of_fold(predictions, task.class_names, by=f"{level}_id"), task)
    metrics = metrics_in("metrics", ordinal=task.ordinal)
    resampled = [metric for metric in metrics if not metric.within_folds]
    values = bootstrapped(
        lambda weights: measure(rows, resampled, task, weights),
        rows.patients,
        rows.target,
        resamples=section.bootstrap,
        seed=seed,
    )
    columns = iter(values.T)
    within = class_estimates(held_out(predictions, task, level=level), task, section.confidence)
    records = []
    for metric, name in figure_names(metrics, task):
        positive = _positive(rows, task, name)
        record = {
            "level": level,
            "metric": metric.name,
            "class": name,
            "n": len(rows),
            "n_positive": positive,
            "prevalence": None if positive is None or not len(rows) else positive / len(rows),
        }
        if metric.within_folds:
            record |= estimate_columns(within[name])
        else:
            column = next(columns)
            low, high = interval(column[1:], section.confidence, _sizes(rows, task, metric, name))
            few = _too_few(rows, task, metric, name) or unvarying(column[1:])
            if few:
                low = high = float("nan")
            record |= {"value": null(column[0]), "low": null(low), "high": null(high),
                       "method": POOLED, "note": few}  # fmt: skip
        # The pooled rows can have both sides where no test set has.
        own = metric.within_folds and _contrasted(rows, task, name)
        if record["value"] is None and not own:
            record["note"] = _absent(rows, task, name, level)
        records.append(record)
    return pl.DataFrame(records, schema=FIGURES)


def estimate_columns(found: Estimate) -> dict[str, Any]:
    """Return an estimate as columns of `FIGURES`."""
    numbers = ("value", "low", "high", "lowest", "highest")
    return {name: null(getattr(found, name)) for name in numbers} | {
        "method": WITHIN,
        "note": found.note,
    }


def fold_figures(
    predictions: pl.DataFrame, task: Task, *, level: str, untrained: Mapping[str, str] | None = None
) -> pl.DataFrame:
    """Return the figures of each model on its own test set, which is too small for intervals.

    `untrained` names the folds without a model, whose figures are null, and why.

    Returns:
        `level, run, metric, class, value, n, n_positive, note`.
    """
    records = []
    metrics = of_one_test_set(metrics_in("metrics", ordinal=task.ordinal))
    for run in runs(predictions):
        tested = of_run(predictions, run, "test")
        rows = rows_of(averaged(tested, task.class_names, by=f"{level}_id"), task)
        values = measure(rows, metrics, task, np.ones((1, len(rows))))[0]
        records += [
            {
                "level": level,
                "run": run.name,
                "metric": metric.name,
                "class": name,
                "value": null(value),
                "n": len(rows),
                "n_positive": _positive(rows, task, name),
                "note": _absent(rows, task, name, level) if np.isnan(value) else "",
            }
            for (metric, name), value in zip(figure_names(metrics, task), values, strict=True)
        ]
    for run_name, reason in (untrained or {}).items():
        records += [
            {
                "level": level,
                "run": run_name,
                "metric": metric.name,
                "class": name,
                "value": None,
                "n": 0,
                "n_positive": None,
                "note": f"not defined: no model ({reason})",
            }
            for metric, name in figure_names(metrics, task)
        ]
    found = pl.DataFrame(records, schema=FOLD_FIGURES)
    if not untrained:
        return found
    order = {name: place for place, name in enumerate(sorted(found["run"].unique(), key=parse_run))}
    return found.sort(pl.col("run").replace_strict(order), maintain_order=True)


def confusion_table(table: pl.DataFrame, task: Task, *, level: str) -> pl.DataFrame:
    """Return the confusion matrix as a table with one row per pair of classes.

    Returns:
        `level, true, predicted, count, share` (share of the true class).
    """
    names = task.class_names
    rows = rows_of(table, task)
    matrix = rows.weighted(np.ones((1, len(rows)))).matrices[0]
    return pl.DataFrame(
        [
            {
                "level": level,
                "true": true,
                "predicted": guess,
                "count": int(matrix[i, j]),
                "share": matrix[i, j] / matrix[i].sum() if matrix[i].any() else None,
            }
            for i, true in enumerate(names)
            for j, guess in enumerate(names)
        ],
        schema={
            "level": pl.String,
            "true": pl.String,
            "predicted": pl.String,
            "count": pl.Int64,
            "share": pl.Float64,
        },
    )


def _positive(rows: Rows, task: Task, name: str) -> int | None:
    if name not in task.class_names:
        return None
    return int((rows.target == task.class_names.index(name)).sum())


def _contrasted(rows: Rows, task: Task, name: str) -> bool:
    """Return whether a class and the rest have rows, or every class of a mean."""
    if name in task.class_names:
        return all(rows.sides(task.class_names.index(name)))
    return bool(rows.class_patients().all())


def _absent(rows: Rows, task: Task, name: str, level: str) -> str:
    """Return the reason why a figure is not defined."""
    if not len(rows):
        return f"not defined: no {level} was tested"
    present = {task.class_names[index] for index in np.unique(rows.target)}
    if name in present:
        return f"not defined: every {level} is of this class"
    if name in task.class_names or len(present) < len(task.class_names):
        return "not defined: a class is absent"
    return "not defined: no disagreement is expected by chance"


def _sizes(rows: Rows, task: Task, metric: Metric, name: str) -> tuple[int, ...]:
    """Return the number of patients in each group that a figure contrasts, or in total."""
    if name in task.class_names:
        return rows.sides(task.class_names.index(name))
    if metric.each_class:
        return tuple(int(n) for n in rows.class_patients())
    return (rows.count_patients,)


def _too_few(rows: Rows, task: Task, metric: Metric, name: str) -> str:
    """Return the reason why a figure has no interval: a single patient cannot be resampled."""
    counts = rows.class_patients()
    if metric.each_class:
        if name in task.class_names:
            own = counts[task.class_names.index(name)]
            few = [name] if own < 2 else ["the others"] if counts.sum() - own < 2 else []
        else:
            few = [one for one, n in zip(task.class_names, counts, strict=True) if n < 2]
        return f"interval not defined: fewer than 2 patients of {', '.join(few)}" if few else ""
    return "" if (counts > 1).any() else "interval not defined: no class has 2 patients"
