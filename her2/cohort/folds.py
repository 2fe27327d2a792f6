"""Stage 2, folds: patient-grouped, score-stratified cross-validation with an inner tuning set.

Folds depend only on the manifest, the seed and the slides that tiling could not use, so all
encoders, heads and grids are compared on the same folds. An unusable slide is missing from its set,
and moves other patients only where a class would be lost (`her2.cohort.usable`).
"""

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from her2.cohort.fixed_split import SPLITS
from her2.cohort.labels import patient_classes
from her2.cohort.manifest import Cohort, SlideRow
from her2.cohort.split import assign_roles, fixed_roles, patient_sites
from her2.cohort.usable import Change, Reasons, check_usable, excluded_slides, keep_classes
from her2.config import Task
from her2.config.jobs import FoldsSpec
from her2.core.errors import UserError, problem_list
from her2.core.tables import read_result, write_parquet

SCHEMA = {
    "slide_id": pl.String,
    "patient_id": pl.String,
    "label": pl.Int32,
    "repeat": pl.Int32,
    "fold": pl.Int32,
    "role": pl.String,
}


def make_folds(
    spec: FoldsSpec, cohort: Cohort, output: Path, *, audited: Path | None = None
) -> pl.DataFrame:
    """Write the folds of one task, and check that they can do without the unusable slides.

    Args:
        spec: the job.
        cohort: the manifest, with the task's label column.
        output: the table (Parquet).
        audited: the audit's table, with the slides that cannot be used; without it, all can.

    Returns:
        `slide_id, patient_id, label` (class index, null for unlabelled), `repeat, fold, role`:
        one row per slide, repeat and fold. Slides without a label have the role `predict`: every
        fold's model predicts them, and no metric counts them. A patient with labels of different
        classes has the class that `spec.patient_label` gives, on all labelled slides, or no row.

    Raises:
        UserError: there are too few patients, the column `split` or `site` does not fit, patients
            have labels of different classes that `spec.patient_label` does not settle, or a class
            is lost with the unusable slides.
    """
    reasons = {} if audited is None else excluded_slides(read_result(audited))
    table = _usable_folds(spec, cohort, reasons)
    check_usable(
        _by_unit(spec, table),
        reasons,
        spec.task,
        split=spec.split,
        unit="slide" if spec.protocol == "published" else "patient",
        changes=lambda names: _changes(spec, cohort, reasons, names),
    )
    write_parquet(table, output)
    return table


def _usable_folds(spec: FoldsSpec, cohort: Cohort, reasons: Reasons) -> pl.DataFrame:
    """Return the folds, in which patients have changed sides where a class would be lost."""
    table = draw_folds(spec, cohort)
    own_tuning = spec.split and any(
        SPLITS.get((row.split or "").lower()) == "tune" for row in cohort.rows
    )
    if spec.protocol == "published" or own_tuning:
        return table
    table = keep_classes(table, reasons, spec.task, seed=spec.seed)
    check_disjoint(table)
    return table


def _by_unit(spec: FoldsSpec, table: pl.DataFrame) -> pl.DataFrame:
    """Return the folds with what they divide in `patient_id`: slides, under the other protocol."""
    return table.with_columns(patient_id="slide_id") if spec.protocol == "published" else table


def _changes(
    spec: FoldsSpec, cohort: Cohort, reasons: Reasons, names: Collection[str]
) -> Iterator[Change]:
    """Yield what could be done about classes without usable patients."""

    def change(words: str, **changed: object) -> Change:
        """Return the change of a spec; of several numbers of folds, the nearest is enough."""

        def make() -> tuple[pl.DataFrame, Task]:
            other = spec.model_copy(update=changed)
            return _by_unit(other, _usable_folds(other, cohort, reasons)), other.task

        return Change(words, make, key="folds.number" if "folds" in changed else words)

    if not spec.split and spec.sites != "leave_one_out":
        for number in sorted(range(2, spec.folds + 4), key=lambda n: abs(n - spec.folds))[1:]:
            yield change(f"set folds.number to {number}", folds=number)
    if spec.split:
        yield from _moves_to_training(spec, cohort, reasons, names)
    if spec.sites in ("preserved", "leave_one_out"):
        yield change("set `folds.sites: stratified`", sites="stratified")
    classes = spec.task.classes
    if len(classes) == 2:
        return
    for name in dict.fromkeys(names):
        index = spec.task.class_names.index(name)
        for other in spec.task.class_names[max(0, index - 1) : index + 2]:
            if other != name:
                first, second = sorted((name, other), key=spec.task.class_names.index)
                merged = {**classes, first: classes[first] + classes[second]}
                del merged[second]
                task = spec.task.model_copy(update={"classes": merged})
                yield change(f"merge the classes {first!r} and {second!r} in `tasks`", task=task)
        kept = {one: values for one, values in classes.items() if one != name}
        task = spec.task.model_copy(update={"classes": kept})
        yield change(
            f"take the class {name!r} out of `tasks`, so that its slides are only predicted",
            task=task,
        )


def _moves_to_training(
    spec: FoldsSpec, cohort: Cohort, reasons: Reasons, names: Collection[str]
) -> Iterator[Change]:
    """Yield the patients whose value of the column `split` could be another one."""
    table = _usable_folds(spec, cohort, reasons)
    for name in dict.fromkeys(names):
        own = table.filter(
            pl.col("label") == spec.task.class_names.index(name),
            pl.col("role").is_in(["tune", "test"]),
        )
        # Those of the tuning set first, since every one of the test set is needed there.
        for patient in own.sort("role", "patient_id", descending=[True, False])[
            "patient_id"
        ].unique(maintain_order=True):
            role = pl.when(pl.col("patient_id") == patient, pl.col("role") != "predict")
            moved = table.with_columns(role=role.then(pl.lit("train")).otherwise("role"))
            yield Change(
                f"set the column 'split' of patient {patient} to train",
                partial(lambda found: (found, spec.task), moved),
                key=f"split of {name}",
            )


def draw_folds(spec: FoldsSpec, cohort: Cohort) -> pl.DataFrame:
    """Return the folds of all slides of the manifest."""
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
