"""Stage 2, compare: differences between encoders on identical patients, with paired intervals."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl

from her2.config import EvaluationSection, Task
from her2.errors import UserError
from her2.evaluation.metrics import Floats, auc, interval, patient_weights
from her2.specs import CompareSpec
from her2.tables import write_table


def compare(spec: CompareSpec, evaluation: Path, output: Path) -> pl.DataFrame:
    """Write `comparison.parquet` and `.csv`: each pair of encoders under each head.

    Args:
        spec: the job.
        evaluation: the task's folder of evaluated models, `{encoder}/{head}/patients.parquet`.
        output: folder of the table.

    Returns:
        `head, encoder, other, class, auc, other_auc, difference, low, high, p, n, note`.
    """
    parts = []
    for head in spec.heads:
        tables = {
            encoder: pl.read_parquet(evaluation / encoder / head / "patients.parquet")
            for encoder in spec.encoders
        }
        parts.append(
            paired_differences(tables, spec.task, spec.evaluation, seed=spec.seed).select(
                pl.lit(head).alias("head"), pl.all()
            )
        )
    table = pl.concat(parts)
    write_table(table, output / "comparison")
    return table


def paired_differences(
    tables: Mapping[str, pl.DataFrame], task: Task, section: EvaluationSection, *, seed: int
) -> pl.DataFrame:
    """AUC differences of each pair, over the patients that all of them predicted.

    Each bootstrap resample draws the same patients for both encoders, so what is hard for both
    cancels. `p` is two-sided: twice the smaller share of resamples on one side of zero (counting
    one more on each, so that it is never 0). No correction for the number of pairs is applied.

    Raises:
        UserError: the encoders disagree on a patient's class, or share no patient.
    """
    if len(tables) < 2:
        return pl.DataFrame(schema=SCHEMA)
    common = sorted(set.intersection(*(set(table["patient_id"]) for table in tables.values())))
    if not common:
        raise UserError("the encoders to compare have no patient in common; see what was excluded.")
    aligned = {
        name: table.filter(pl.col("patient_id").is_in(common)).sort("patient_id")
        for name, table in tables.items()
    }
    target = next(iter(aligned.values()))["target"].to_numpy().astype(np.int64)
    if any((table["target"].to_numpy() != target).any() for table in aligned.values()):
        raise UserError("the encoders were evaluated on different labels; run snakemake again.")
    weights = np.concatenate(
        [
            np.ones((1, len(common))),
            patient_weights(np.arange(len(common)), target, resamples=section.bootstrap, seed=seed),
        ]
    )
    values = {name: _aucs(table, target, task, weights) for name, table in aligned.items()}
    records = [
        {
            "encoder": first,
            "other": second,
            "class": name,
            "n": len(common),
            **_difference(values[first][name], values[second][name], section.confidence),
        }
        for first, second in combinations(tables, 2)
        for name in (*task.class_names, "macro")
    ]
    return pl.DataFrame(records, schema=SCHEMA)


SCHEMA = {
    "encoder": pl.String,
    "other": pl.String,
    "class": pl.String,
    "auc": pl.Float64,
    "other_auc": pl.Float64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
    "n": pl.Int64,
    "note": pl.String,
}


def _aucs(
    table: pl.DataFrame, target: np.ndarray, task: Task, weights: Floats
) -> dict[str, Floats]:
    """Class (and macro) -> (1 + resamples,), the point figure first."""
    found = {
        name: auc(target == index, table[f"prob_{name}"].to_numpy(), weights)
        for index, name in enumerate(task.class_names)
    }
    return found | {"macro": np.mean(list(found.values()), axis=0)}


def _difference(first: Floats, second: Floats, confidence: float) -> dict[str, object]:
    difference = first - second
    if np.isnan(difference).any():
        return {"note": "not defined: a class is absent"}
    low, high = interval(difference[1:], confidence)
    draws = difference[1:]
    tail = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
    return {
        "auc": float(first[0]),
        "other_auc": float(second[0]),
        "difference": float(difference[0]),
        "low": low,
        "high": high,
        "p": min(1.0, 2 * (tail + 1) / (len(draws) + 1)),
        "note": "",
    }
