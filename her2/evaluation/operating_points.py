"""Stage 2, evaluate: the groupings' sensitivity at a fixed specificity, and vice versa.

Each fold's threshold is chosen on its tuning set alone and applied to its test set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from her2.config import EvaluationSection, Task
from her2.config.names import Run
from her2.core.types import Floats, Ints
from her2.evaluation.groupings import Grouping, groupings_of, side_missing, two_sides
from her2.evaluation.predictions import averaged, of_run, rows_of, runs
from her2.evaluation.shares import Limits, predictive_value, wilson
from her2.evaluation.thresholds import Applied, choice_variances

RATES = ("sensitivity", "specificity", "ppv", "npv")
OPERATING = {
    "level": pl.String,
    "grouping": pl.String,
    "fixed": pl.String,
    "asked": pl.Float64,
    **{f"{rate}{end}": pl.Float64 for rate in RATES for end in ("", "_low", "_high")},
    "stated_prevalence": pl.Float64,
    **{
        f"stated_{rate}{end}": pl.Float64
        for rate in ("ppv", "npv")
        for end in ("", "_low", "_high")
    },
    "n_positive": pl.Int64,
    "n_negative": pl.Int64,
    "threshold_min": pl.Float64,
    "threshold_max": pl.Float64,
    "note": pl.String,
}
"""`stated_ppv` and `stated_npv` are those at `evaluation.prevalence`, null without one."""

Parts = Mapping[tuple[Run, str], pl.DataFrame]
"""Model and role (`tune` or `test`) -> its patients or slides."""


@dataclass(frozen=True, slots=True)
class _Tested:
    """The models of a grouping that have a threshold, and their test rows.

    `rows` has `name, patient, positive` and `model` (index into `models`), `score`.
    `classes` are those of the patients in the tuning sets (p,).
    """

    models: Sequence[Applied]
    rows: pl.DataFrame
    classes: Ints
    note: str


def operating_table(
    predictions: pl.DataFrame, task: Task, section: EvaluationSection, *, level: str, seed: int
) -> pl.DataFrame:
    """Return figures on the test sets at each grouping's required specificity and sensitivity.

    Counts are pooled over folds. A patient (or slide) tested in several repeats counts once, by the
    share of repeats that called it positive. Intervals are Wilson's, with one trial per patient (of
    PPV and NPV: per patient who was called so), widened by the variance that the choice of the
    thresholds adds (`her2.evaluation.thresholds`).

    Args:
        predictions: the predictions table of the model.
        task: the task that it predicts.
        section: the `evaluation` section of the config.
        level: `patient` or `slide`.
        seed: seed of the resamples of the tuning sets.

    Returns:
        The columns of `OPERATING`.
    """
    parts = {
        (run, role): averaged(of_run(predictions, run, role), task.class_names, by=f"{level}_id")
        for run in runs(predictions)
        for role in ("tune", "test")
    }
    tuned = predictions.filter(pl.col("role") == "tune")
    patients = tuned.group_by("patient_id").agg(pl.col("target").first()).sort("patient_id")
    asked = {"specificity": section.specificity, "sensitivity": section.sensitivity}
    records = []
    for grouping in groupings_of(task, section):
        tested = _tested(parts, patients, task, grouping, level)
        for fixed, value in asked.items():
            shared = {"level": level, "grouping": grouping.name, "fixed": fixed, "asked": value}
            records.append(shared | _record(tested, section, grouping.name, fixed, value, seed))
    return pl.DataFrame(records, schema=OPERATING)


def _tested(
    parts: Parts, patients: pl.DataFrame, task: Task, grouping: Grouping, level: str
) -> _Tested:
    """Return the models and test rows of a grouping; `patients` are those of the tuning sets."""
    index = {name: number for number, name in enumerate(patients["patient_id"])}
    models: list[Applied] = []
    rows, lacking = [], []
    for run in dict.fromkeys(run for run, _ in parts):
        (tune, tune_table), (test, test_table) = (
            (two_sides(found.target, found.probabilities, grouping), table)
            for role in ("tune", "test")
            for table in (parts[run, role],)
            for found in (rows_of(table, task),)
        )
        if side_missing(tune.positive):
            lacking.append(run.name)
            continue
        names = tune_table.filter(pl.Series(tune.kept, dtype=pl.Boolean))["patient_id"]
        owners = np.array([index[name] for name in names], int)
        kept = test_table.filter(pl.Series(test.kept, dtype=pl.Boolean))
        rows.append(
            pl.DataFrame(
                {
                    "name": kept[f"{level}_id"],
                    "patient": kept["patient_id"],
                    "positive": pl.Series(test.positive, dtype=pl.Boolean),
                    "score": pl.Series(test.scores, dtype=pl.Float64),
                    "model": pl.Series([len(models)] * len(kept), dtype=pl.Int64),
                }
            )
        )
        models.append(
            Applied.of(
                (tune.positive, tune.scores, owners),
                (test.positive, test.scores),
                (run.repeat, run.seed),
            )
        )
    note = ""
    if lacking:
        note = (
            f"test sets of {', '.join(lacking)} left out: no threshold, because the tuning set "
            "lacks a side"
        )
    whole = pl.concat(rows) if rows else pl.DataFrame()
    return _Tested(models, whole, patients["target"].cast(pl.Int64).to_numpy(), note)


def _record(
    tested: _Tested,
    section: EvaluationSection,
    grouping: str,
    fixed: str,
    asked: float,
    seed: int,
) -> dict[str, object]:
    if not tested.models:
        note = tested.note or "not defined: no one was tested"
        return {"n_positive": 0, "n_negative": 0, "note": note}
    chosen = np.array([one.choices.threshold(fixed, asked) for one in tested.models])
    called = tested.rows["score"].to_numpy() >= chosen[tested.rows["model"].to_numpy()]
    # One row per patient (or slide), with the share of repeats that called it positive.
    table = (
        tested.rows.with_columns(called=pl.Series(called, dtype=pl.Float64))
        .group_by("name", "patient", "positive")
        .agg(pl.col("called").mean())
        .sort("name")
    )
    added = choice_variances(
        tested.models, tested.classes, fixed, asked, resamples=section.bootstrap, seed=seed
    )
    record: dict[str, object] = {
        "n_positive": int(table["positive"].sum()),
        "n_negative": int((~table["positive"]).sum()),
        "threshold_min": float(chosen.min()),
        "threshold_max": float(chosen.max()),
    }
    found, note = rate_columns(table, section.confidence, section.prevalence.get(grouping), added)
    return record | found | {"note": "; ".join(one for one in (tested.note, note) if one)}


def rate_columns(
    table: pl.DataFrame, confidence: float, prevalence: float | None, added: Floats
) -> tuple[dict[str, object], str]:
    """Return the rates of rows that were called positive or not, with intervals, and a note.

    Args:
        table: a row per patient or slide: `patient, positive` and `called`, the share of the
            repeats that called it positive.
        confidence: confidence level.
        prevalence: stated share of the positive side, or None.
        added: variance that the choice of the thresholds adds to each of `RATES` (4,); 0 for given
            thresholds, NaN where it is not known and there is no interval.
    """
    record: dict[str, object] = {}
    found: dict[str, Limits] = {}
    notes, without = [], []
    for rate, extra in zip(RATES, added, strict=True):
        hits, whole, trials, reason = _counts(table, rate)
        if reason:
            notes.append(reason)
            continue
        share = hits / whole
        record[rate] = share
        if np.isnan(extra):
            without.append(rate.upper() if len(rate) == 3 else rate)
        else:
            low, high = wilson(share * trials, trials, confidence, added=float(extra))
            record |= {f"{rate}_low": low, f"{rate}_high": high}
            found[rate] = (share, low, high)
    if without:
        notes.append(
            f"interval of {', '.join(without)} not defined: the tuning sets have too few patients "
            "to choose their thresholds again"
        )
    return record | _stated(found, prevalence), "; ".join(notes)


def _counts(table: pl.DataFrame, rate: str) -> tuple[float, float, float, str]:
    """Return successes and rows of a rate, its trials in patients, and why it is not defined.

    A row counts by the share of its repeats, and a patient by the mean of its rows.
    """
    called, positive = pl.col("called"), pl.col("positive").cast(pl.Float64)
    hit = {"sensitivity": called, "specificity": 1 - called, "ppv": called, "npv": 1 - called}[rate]
    own = positive if rate in ("sensitivity", "ppv") else 1 - positive
    weight = hit if rate in ("ppv", "npv") else own
    rows = table.select("patient", hits=hit * own, weight=weight)
    hits, whole = float(rows["hits"].sum()), float(rows["weight"].sum())
    # In one order, as the last bit of a sum depends on it.
    trials = float(
        rows.group_by("patient", maintain_order=True).agg(pl.col("weight").mean())["weight"].sum()
    )
    side = "positive" if rate in ("sensitivity", "ppv") else "negative"
    if rate in ("ppv", "npv"):
        reason = f"{rate.upper()} not defined: no patient was called {side}"
    else:
        reason = f"{rate} not defined: no patient on the {side} side"
    return hits, whole, trials, "" if whole > 1e-12 else reason


def _stated(found: Mapping[str, Limits], prevalence: float | None) -> dict[str, float | None]:
    """Return PPV and NPV at a stated prevalence, from sensitivity and specificity."""
    if prevalence is None:
        return {}
    record: dict[str, float | None] = {"stated_prevalence": prevalence}
    if not {"sensitivity", "specificity"} <= found.keys():
        return record
    hit, spared = found["sensitivity"], found["specificity"]
    values = {
        "ppv": (hit, _others(spared), prevalence),
        "npv": (spared, _others(hit), 1 - prevalence),
    }
    for rate, (own, other, share) in values.items():
        value, low, high = predictive_value(own, other, share)
        if not np.isnan(value):
            record |= {f"stated_{rate}": value, f"stated_{rate}_low": low,
                       f"stated_{rate}_high": high}  # fmt: skip
    return record


def _others(share: Limits) -> Limits:
    """Return one minus a share."""
    value, low, high = share
    return 1 - value, 1 - high, 1 - low
