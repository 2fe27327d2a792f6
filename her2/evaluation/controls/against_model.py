"""Stage 2, control: a model's AUC compared with that of covariates, on the same patients."""

import polars as pl

from her2.config import EvaluationSection, Task
from her2.evaluation.bootstrap import interval, unvarying
from her2.evaluation.figures import null
from her2.evaluation.paired import difference, pair_models

COVARIATES = {
    "class": pl.String,
    "model": pl.Float64,
    "model_low": pl.Float64,
    "model_high": pl.Float64,
    "covariates": pl.Float64,
    "covariates_low": pl.Float64,
    "covariates_high": pl.Float64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
    "n": pl.Int64,
    "n_positive": pl.Int64,
    "reached": pl.Boolean,
    "note": pl.String,
}


def compare_with_covariates(
    predictions: pl.DataFrame,
    by_covariates: pl.DataFrame,
    task: Task,
    section: EvaluationSection,
    *,
    seed: int,
) -> pl.DataFrame:
    """Compare AUCs (each class and macro); the paired difference is model minus covariates.

    `reached` is true where the covariates' AUC is not below the model's, or the interval of the
    difference contains 0, so that covariates alone may explain the figure. It is null where the
    model's AUC is higher but the difference has no interval.
    """
    names = ("model", ""), ("covariates", "")
    paired = pair_models(
        dict(zip(names, (predictions, by_covariates), strict=True)), task, section, seed=seed
    )
    records = []
    for name in (*task.class_names, "macro"):
        question = name, ""
        first, second = (paired.areas[model][question] for model in names)
        note = paired.problems[question]
        ends = [(float("nan"),) * 2] * 3
        p = float("nan")
        if not note:
            gap = difference(first - second, section.confidence, paired.sizes[question])
            ends = [
                interval(first[1:], section.confidence, paired.sizes[question]),
                interval(second[1:], section.confidence, paired.sizes[question]),
                (gap["low"], gap["high"]),
            ]
            p = gap["p"]
            for side, (values, words) in enumerate(((first, "model"), (second, "covariates"))):
                if same := unvarying(values[1:]):
                    ends[side] = (float("nan"),) * 2
                    note = "; ".join(text for text in (note, f"{words}: {same}") if text)
        low = null(ends[2][0])
        point = float(first[0] - second[0])
        rows = paired.rows[names[0]]
        positive = int((rows.target == task.class_names.index(name)).sum()) if (
            name in task.class_names
        ) else None  # fmt: skip
        records.append(
            {
                "class": name,
                **_three("model", first[0], ends[0]),
                **_three("covariates", second[0], ends[1]),
                "difference": null(point),
                "low": low,
                "high": null(ends[2][1]),
                "p": null(p),
                "n": len(rows),
                "n_positive": positive,
                "reached": _reached(point, low),
                "note": note,
            }
        )
    return pl.DataFrame(records, schema=COVARIATES)


def no_covariates(task: Task, reason: str) -> pl.DataFrame:
    """Return the same table with nulls and the reason why there is no comparison."""
    rows = [{"class": name, "note": reason} for name in (*task.class_names, "macro")]
    return pl.DataFrame(rows, schema=COVARIATES)


def _reached(point: float, low: float | None) -> bool | None:
    if null(point) is None:
        return None
    if point <= 0:
        return True
    return None if low is None else low <= 0


def _three(name: str, value: float, ends: tuple[float, float]) -> dict[str, float | None]:
    return {
        name: null(value),
        f"{name}_low": null(ends[0]),
        f"{name}_high": null(ends[1]),
    }
