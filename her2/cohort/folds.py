"""Stage 2, folds: patient-grouped, score-stratified cross-validation with an inner tuning set.

Folds depend only on the manifest and the seed, so all encoders, heads and grids are compared on the
same folds. A slide that turns out unusable is simply missing from its set.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from her2.cohort.labels import patient_classes
from her2.cohort.manifest import Cohort, SlideRow
from her2.cohort.split import assign_roles, fixed_roles, patient_sites
from her2.config import Task
from her2.config.jobs import FoldsSpec
from her2.core.errors import UserError, problem_list
from her2.core.tables import write_parquet

SCHEMA = {
    "slide_id": pl.String,
    "patient_id": pl.String,
    "label": pl.Int32,
    "repeat": pl.Int32,
    "fold": pl.Int32,
    "role": pl.String,
}


def make_folds(spec: FoldsSpec, cohort: Cohort, output: Path) -> pl.DataFrame:
    """Write the folds of one task.

    Args:
        spec: the job.
        cohort: the manifest, with the task's label column.
        output: the table (Parquet).

    Returns:
        The table, as of `draw_folds`.

    Raises:
        UserError: as `draw_folds`.
    """
    table = draw_folds(spec, cohort)
    write_parquet(table, output)
    return table


def draw_folds(spec: FoldsSpec, cohort: Cohort) -> pl.DataFrame:
    """Return the folds of one task, which depend on nothing but the manifest and the spec.

    Returns:
        `slide_id, patient_id, label` (class index, null for unlabelled), `repeat, fold, role`:
        one row per slide, repeat and fold. Slides without a label have the role `predict`: every
        fold's model predicts them, and no metric counts them. A patient with labels of different
        classes has the class that `spec.patient_label` gives, on all labelled slides, or no row.

    Raises:
        UserError: there are too few patients, the column `split` or `site` does not fit, or
            patients have labels of different classes that `spec.patient_label` does not settle.
    """
    slides = _with_classes(spec, cohort)
    if spec.protocol == "published":
        return _published_folds(spec, slides)
    patients = {row.patient_id: index for row, index in slides if index is not None}
    labelled = [row for row, index in slides if index is not None]
    if spec.split:
        roles = fixed_roles(labelled, patients, spec.task, tune=spec.tune, seed=spec.seed)
    else:
        roles = assign_roles(
            patients,
            spec.task,
            folds=spec.folds,
            repeats=spec.repeats,
            tune=spec.tune,
            seed=spec.seed,
            sites=patient_sites(labelled, spec.sites),
            scheme=spec.sites,
        )
    records = [
        (row.slide_id, row.patient_id, index, repeat, fold,
         "predict" if index is None else by_patient[row.patient_id])
        for (repeat, fold), by_patient in roles.items()
        for row, index in slides
    ]  # fmt: skip
    table = pl.DataFrame(records, schema=SCHEMA, orient="row")
    check_disjoint(table)
    return table


def _with_classes(spec: FoldsSpec, cohort: Cohort) -> list[tuple[SlideRow, int | None]]:
    """Return the slides of the task with their class, by patient where the labels differ."""
    decided = patient_classes(cohort.conflicts(spec.task), spec.task, spec.patient_label)
    found = []
    for row in cohort.rows:
        index = class_of(spec.task, row.labels)
        if row.patient_id in decided:
            if decided[row.patient_id] is None:
                continue
            index = None if index is None else decided[row.patient_id]
        found.append((row, index))
    return found


def class_of(task: Task, labels: Mapping[str, str]) -> int | None:
    """Return the class index of a row in a task; None if its label is missing or another."""
    value = labels.get(task.label)
    return None if value is None else task.class_index(value)


def check_disjoint(table: pl.DataFrame) -> None:
    """Check that no patient has two roles in a fold, both when folds are made and when used.

    Raises:
        UserError: patients have several roles; the message names them.
    """
    crossing = crossing_patients(table)
    if len(crossing):
        raise problem_list(
            "patients with more than one role in a fold; delete the table of folds and run "
            "snakemake again",
            [
                f"repeat {r['repeat']}, fold {r['fold']}: {r['patient_id']} in "
                + " and ".join(r["role"])
                for r in crossing.to_dicts()
            ],
        )


def crossing_patients(table: pl.DataFrame) -> pl.DataFrame:
    """Return `repeat, fold, patient_id, role` (a list) of patients with several roles in a fold."""
    return (
        table.filter(pl.col("role") != "predict")
        .group_by("repeat", "fold", "patient_id")
        .agg(pl.col("role").unique().sort())
        .filter(pl.col("role").list.len() > 1)
        .sort("repeat", "fold", "patient_id")
    )


def _published_folds(spec: FoldsSpec, slides: list[tuple[SlideRow, int | None]]) -> pl.DataFrame:
    """Return folds over labelled slides, neither stratified nor grouped, without a tuning set.

    arXiv 2411.05028 splits like this. Slides of one patient are in both the training and the test
    set; the folds exist to show how that changes the metrics. Slides have the classes of the sound
    protocol, so that the labels do not differ as well.
    """
    labelled = [(row, index) for row, index in slides if index is not None]
    if len(labelled) < spec.folds:
        raise UserError(
            f"folds.number {spec.folds} is more than the {len(labelled)} slides with a label of "
            f"{spec.task.label!r}; set it to {len(labelled)} or less."
        )
    # Imported here, because it is slow and most jobs only read folds.
    from sklearn.model_selection import KFold

    records = []
    for repeat in range(spec.repeats):
        state = int(np.random.SeedSequence([spec.seed, repeat]).generate_state(1)[0])
        for fold, (_, test) in enumerate(
            KFold(spec.folds, shuffle=True, random_state=state).split(labelled)
        ):
            held_out = set(test.tolist())
            records += [
                (row.slide_id, row.patient_id, index, repeat, fold,
                 "test" if number in held_out else "train")
                for number, (row, index) in enumerate(labelled)
            ]  # fmt: skip
    return pl.DataFrame(records, schema=SCHEMA, orient="row")
