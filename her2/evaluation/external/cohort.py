"""Stage 2, external cohorts: which slides are evaluated, and with which class.

Labels are read here, from the cohort's table, so that a changed label predicts nothing again. A
slide without a class is predicted and counted, and is in no figure.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from her2.cohort.labels import conflicts, patient_classes, refusal
from her2.config import Task
from her2.config.external_jobs import (
    ExternalAttentionSpec,
    ExternalHeatmapSpec,
    Truth,
    ValidateSpec,
)
from her2.core.errors import UserError
from her2.core.types import Floats
from her2.evaluation.external.tables import (
    COUNTS,
    EVALUATED,
    LEFT_OUT,
    MANIFEST,
    PREDICTED_ONLY,
    STEPS,
    UNLABELLED,
    UNMAPPED,
    UNPREDICTED,
    UNUSABLE,
)
from her2.evaluation.external.truth import in_classes, summed
from her2.evaluation.predictions import MODEL

MOST_NAMED = 8
"""Number of values or slides that a note or message names."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The predictions of an external cohort, and how many slides there are at each step.

    Attributes:
        predictions: the predictions table in the classes of the truth, with the mean of the
            calibrated probabilities as `prob_<class>` and of the uncalibrated as `raw_<class>`; one
            run, `r0f0`, with the roles `test` (evaluated) and `predict`.
        single: that of the single models, evaluated slides only. The n-th model is `rnf0`, so that
            each is a round.
        counts: the columns of `her2.evaluation.external.tables.COUNTS`.
        reason: why no slide is evaluated; "" if some are.
    """

    predictions: pl.DataFrame
    single: pl.DataFrame
    counts: pl.DataFrame
    reason: str

    @property
    def uncalibrated(self) -> pl.DataFrame:
        """Return the predictions before the temperatures."""
        names = [name for name in self.predictions.columns if name.startswith("raw_")]
        kept = self.predictions.select(pl.exclude(r"^prob_.*$"))
        return kept.rename({name: f"prob_{name.removeprefix('raw_')}" for name in names})


def with_truth(
    spec: ValidateSpec, given: pl.DataFrame, each: pl.DataFrame, cohort: pl.DataFrame
) -> Evaluated:
    """Return predictions with what the cohort's table says of them.

    Args:
        spec: the job's spec.
        given: `slide_id, prob_<class>, raw_<class>` of the development's classes.
        each: `slide_id, run, prob_<class>` of every model, likewise.
        cohort: the table of all slides on all grids.

    Raises:
        UserError: a predicted slide is not usable in the table, a prediction is not finite, the
            models predicted other slides, or patients have labels of different classes that the
            rule does not settle.
    """
    slides = cohort.filter(pl.col("grid") == spec.grid)
    usable = slides.filter(pl.col("status") == "ok")
    _check_predicted(given, each, usable, spec.truth.task)
    labelled = slide_classes(slides, spec)
    rows = labelled.join(given, on="slide_id", how="inner").sort("slide_id")
    predictions = rows.select(
        "slide_id",
        "patient_id",
        *(pl.lit(0, pl.Int32).alias(key) for key in MODEL),
        pl.when(pl.col("step") == EVALUATED)
        .then(pl.lit("test"))
        .otherwise(pl.lit("predict"))
        .alias("role"),
        "target",
    ).with_columns(
        pl.Series(f"{kind}_{name}", summed(_values(rows, kind, spec.truth), spec.truth)[:, index])
        for kind in ("prob", "raw")
        for index, name in enumerate(spec.truth.truth.class_names)
    )
    counts = _counts(slides, usable, rows)
    single = _single(each, predictions, spec.truth)
    return Evaluated(predictions, single, counts, _nobody(spec, counts, slides))


def slide_classes(
    slides: pl.DataFrame, spec: ValidateSpec | ExternalHeatmapSpec | ExternalAttentionSpec
) -> pl.DataFrame:
    """Return `slide_id, patient_id, label, target, step` of slides, in their order.

    `target` is the class index in the truth, null where `step` is not `EVALUATED`. A patient with
    labels of different classes has the class that the rule gives, on all labelled slides.

    Args:
        slides: one row per slide.
        spec: the job's spec: where the labels are, what they mean and which rule holds.

    Raises:
        UserError: the rule does not settle a conflict.
    """
    truth, rule = spec.truth, spec.patient_label
    column = f"label_{truth.truth.label}"
    labels = (
        slides[column].cast(pl.String).to_list()
        if column in slides.columns
        else [None] * len(slides)
    )
    rows = list(zip(slides["slide_id"], slides["patient_id"], labels, strict=True))
    task = truth.truth
    found = conflicts(rows, task)
    if problem := refusal(found, task, rule):
        raise UserError(f"validation.{spec.cohort}: column {task.label!r}: {problem}.")
    decided = patient_classes(found, task, rule)
    if rule == "first":
        decided = {one.patient_id: task.class_index(spec.first[one.patient_id]) for one in found}
    records = []
    for slide_id, patient_id, label in rows:
        index = None if label is None else task.class_index(label)
        step = UNLABELLED if label is None else UNMAPPED if index is None else EVALUATED
        if index is not None and patient_id in decided:
            index = decided[patient_id]
            step = LEFT_OUT if index is None else EVALUATED
        records.append((slide_id, patient_id, label, index, step))
    schema = {
        "slide_id": pl.String,
        "patient_id": pl.String,
        "label": pl.String,
        "target": pl.Int32,
        "step": pl.String,
    }
    return pl.DataFrame(records, schema=schema, orient="row")


def _values(rows: pl.DataFrame, kind: str, truth: Truth) -> Floats:
    columns = [f"{kind}_{name}" for name in truth.task.class_names]
    return rows.select(columns).cast(pl.Float64).to_numpy().reshape(len(rows), len(columns))


def _single(each: pl.DataFrame, predictions: pl.DataFrame, truth: Truth) -> pl.DataFrame:
    """Return the predictions table of the single models."""
    tested = predictions.filter(pl.col("role") == "test").select(pl.exclude(r"^(prob|raw)_.*$"))
    number = (pl.col("run").rank("dense") - 1).cast(pl.Int32)
    own = in_classes(each.with_columns(repeat=number), truth).drop("run")
    return (
        tested.drop("repeat")
        .join(own, on="slide_id", how="inner")
        .select(*tested.columns, pl.col("^prob_.*$"))
        .sort("repeat", "slide_id")
    )


def _check_predicted(
    given: pl.DataFrame, each: pl.DataFrame, usable: pl.DataFrame, task: Task
) -> None:
    columns = [f"{kind}_{name}" for kind in ("prob", "raw") for name in task.class_names]
    bad = given.filter(
        pl.any_horizontal(pl.col(name).is_null() | ~pl.col(name).is_finite() for name in columns)
    )
    absent = set(given["slide_id"]) - set(usable["slide_id"])
    counts = each.group_by("slide_id").agg(pl.col("run").n_unique().alias("models"))
    partly = counts.filter(pl.col("models") < each["run"].n_unique())["slide_id"]
    for names, words in (
        (
            set(each["slide_id"]) ^ set(given["slide_id"]) | set(partly),
            "were not predicted by every model",
        ),
        (absent, "were predicted but are not usable according to the cohort's table"),
        (set(bad["slide_id"]), "have predictions that are not finite"),
    ):
        if names:
            few = ", ".join(sorted(names)[:MOST_NAMED])
            raise UserError(f"{len(names)} slides {words}: {few}. Run snakemake again.")


def _counts(slides: pl.DataFrame, usable: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Return how many slides and patients there are at each step."""
    unusable = slides.filter(pl.col("status") != "ok")
    left = usable.filter(~pl.col("slide_id").is_in(rows["slide_id"].to_list()))
    parts: Mapping[str, tuple[pl.DataFrame, str]] = {
        MANIFEST: (slides, ""),
        UNUSABLE: (unusable, _values_with_counts(unusable["reason"])),
        UNPREDICTED: (left, ", ".join(left["slide_id"].sort()[:MOST_NAMED])),
        PREDICTED_ONLY: (rows, ""),
    } | {
        step: (own, _values_with_counts(own["label"]) if step == UNMAPPED else "")
        for step in (UNLABELLED, UNMAPPED, LEFT_OUT, EVALUATED)
        for own in (rows.filter(pl.col("step") == step),)
    }
    return pl.DataFrame(
        [
            {
                "what": step,
                "slides": len(parts[step][0]),
                "patients": parts[step][0]["patient_id"].n_unique(),
                "note": parts[step][1],
            }
            for step in STEPS
        ],
        schema=COUNTS,
    )


def _values_with_counts(values: pl.Series) -> str:
    """Return each value with its count, the most frequent first."""
    table = (
        values.cast(pl.String)
        .drop_nulls()
        .value_counts(name="count")
        .sort("count", values.name, descending=[True, False])
    )
    named = [f"{value} ({count})" for value, count in table.head(MOST_NAMED).iter_rows()]
    return ", ".join([*named, *([] if len(table) <= MOST_NAMED else ["..."])])


def _nobody(spec: ValidateSpec, counts: pl.DataFrame, slides: pl.DataFrame) -> str:
    """Return why no slide is evaluated; "" if some are."""
    number = dict(counts.select("what", "slides").iter_rows())
    truth, column = spec.truth.truth, f"column {spec.truth.truth.label!r}"
    if number[EVALUATED]:
        return ""
    if number[UNUSABLE] == number[MANIFEST]:
        return "no slide of the cohort is usable"
    if not number[PREDICTED_ONLY]:
        return "no slide of the cohort was predicted"
    if f"label_{truth.label}" not in slides.columns:
        return f"the cohort's manifest has no {column}"
    if number[UNMAPPED]:
        values = counts.filter(pl.col("what") == UNMAPPED)["note"][0]
        known = ", ".join(value for values in truth.classes.values() for value in values)
        return f"no label in {column} is of a class: {values}; known are {known}"
    if number[LEFT_OUT]:
        return "every labelled patient has slides of two classes and is left out"
    return f"no predicted slide has a label in {column}"
