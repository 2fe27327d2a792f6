"""Stage 2, folds: patient-grouped, score-stratified cross-validation with an inner tune part.

Folds depend on the manifest and the seed alone: every encoder, head and grid is compared on the
same ones, and a slide that turns out unusable is simply absent from its part.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
from sklearn.model_selection import KFold, StratifiedKFold

from her2.cohort import Cohort
from her2.config import Task
from her2.errors import UserError, problem_list
from her2.files import atomic_path
from her2.specs import FoldsSpec

SCHEMA = {
    "slide_id": pl.String,
    "patient_id": pl.String,
    "label": pl.Int32,
    "repeat": pl.Int32,
    "fold": pl.Int32,
    "role": pl.String,
}
ROLES = ("train", "tune", "test", "predict")
"""predict: a slide without a label, which every fold's model predicts and no figure counts."""


def make_folds(spec: FoldsSpec, cohort: Cohort, output: Path) -> pl.DataFrame:
    """Write the folds of one task.

    Returns:
        `slide_id, patient_id, label` (class index, null for unlabelled), `repeat, fold, role`:
        one row a slide, repeat and fold.

    Raises:
        UserError: a class has too few patients.
    """
    patients = {
        row.patient_id: index
        for row in cohort.rows
        if (index := class_of(spec.task, row.labels)) is not None
    }
    if spec.protocol == "published":
        return _published_folds(spec, cohort, output)
    roles = assign_roles(
        patients, spec.task, folds=spec.folds, repeats=spec.repeats, tune=spec.tune, seed=spec.seed
    )
    records = [
        (row.slide_id, row.patient_id, index, repeat, fold,
         "predict" if index is None else by_patient[row.patient_id])
        for (repeat, fold), by_patient in roles.items()
        for row in cohort.rows
        for index in [class_of(spec.task, row.labels)]
    ]  # fmt: skip
    table = pl.DataFrame(records, schema=SCHEMA, orient="row")
    check_disjoint(table)
    with atomic_path(output) as path:
        table.write_parquet(path)
    return table


def class_of(task: Task, labels: Mapping[str, str]) -> int | None:
    """The class index of a row for a task; None where the label is missing or not of the task."""
    value = labels.get(task.label)
    return None if value is None else task.class_index(value)


def assign_roles(
    patients: Mapping[str, int], task: Task, *, folds: int, repeats: int, tune: float, seed: int
) -> dict[tuple[int, int], dict[str, str]]:
    """(repeat, fold) -> patient -> train, tune or test.

    Each patient is in the test part of exactly one fold of a repeat. The tune part is a
    stratified share of the others.

    Args:
        patients: patient -> class index.
        task: names the classes in errors.
        folds: test parts a repeat.
        repeats: whole cross-validations.
        tune: share of the non-test patients.
        seed: of repeat 0; repeat r uses its own stream.

    Raises:
        UserError: a class has fewer patients than folds.
    """
    names = np.array(sorted(patients))
    labels = np.array([patients[name] for name in names], int)
    _check_counts(labels, task, folds)
    result = {}
    for repeat in range(repeats):
        state = np.random.SeedSequence([seed, repeat]).generate_state(2)
        outer = StratifiedKFold(folds, shuffle=True, random_state=int(state[0]))
        for fold, (rest, test) in enumerate(outer.split(names, labels)):
            inner = _tune_part(labels[rest], tune, int(state[1]) ^ fold)
            roles = dict.fromkeys(names[test].tolist(), "test")
            roles |= dict.fromkeys(names[rest[~inner]].tolist(), "train")
            roles |= dict.fromkeys(names[rest[inner]].tolist(), "tune")
            result[repeat, fold] = roles
    return result


def check_disjoint(table: pl.DataFrame) -> None:
    """No patient is in two parts of a fold; asserted where folds are made and where used.

    Raises:
        UserError: naming the patients.
    """
    crossing = (
        table.filter(pl.col("role") != "predict")
        .group_by("repeat", "fold", "patient_id")
        .agg(pl.col("role").unique().sort())
        .filter(pl.col("role").list.len() > 1)
        .sort("repeat", "fold", "patient_id")
    )
    if len(crossing):
        raise problem_list(
            "patients in more than one part of a fold",
            [
                f"repeat {r['repeat']}, fold {r['fold']}: {r['patient_id']} in "
                + " and ".join(r["role"])
                for r in crossing.to_dicts()
            ],
        )


def _published_folds(spec: FoldsSpec, cohort: Cohort, output: Path) -> pl.DataFrame:
    """Folds over labelled slides, neither stratified nor grouped, without a tune part.

    This is how arXiv 2411.05028 split. Slides of a patient fall on both sides; it exists to show
    what that does to the figures.
    """
    rows = [(row, class_of(spec.task, row.labels)) for row in cohort.rows]
    labelled = [(row, index) for row, index in rows if index is not None]
    if len(labelled) < spec.folds:
        raise UserError(
            f"folds.number {spec.folds} is more than the {len(labelled)} slides with a label of "
            f"{spec.task.label!r}; set it to {len(labelled)} or less."
        )
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
    table = pl.DataFrame(records, schema=SCHEMA, orient="row")
    with atomic_path(output) as path:
        table.write_parquet(path)
    return table


def _tune_part(labels: np.ndarray, tune: float, seed: int) -> np.ndarray:
    """Bool (n,): each class gives its share, at least one patient, and keeps at least one."""
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(tune * len(members))), len(members) - 1)
        chosen[members[:count]] = True
    return chosen


def _check_counts(labels: np.ndarray, task: Task, folds: int) -> None:
    counts = {
        name: int(np.count_nonzero(labels == index)) for index, name in enumerate(task.class_names)
    }
    # One patient a fold for the test part, and beside the fullest one two for train and tune.
    least = max(folds, 4 if folds == 2 else 3)
    scarce = {name: count for name, count in counts.items() if count < least}
    if not scarce:
        return
    smallest = min(counts.values())
    mend = (
        f"set folds.number to {smallest}, or merge classes in `tasks`"
        if smallest >= 3
        else "merge classes in `tasks`, or add patients (three a class are the least)"
    )
    raise UserError(
        f"folds.number {folds} needs {least} patients in each class of {task.label!r}; too few in "
        + ", ".join(f"{name!r} ({count})" for name, count in scarce.items())
        + f": {mend}."
    )
