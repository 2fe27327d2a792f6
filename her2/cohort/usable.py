"""Stage 2, folds: patients whose slides tiling could not use, and the folds without them.

Folds are drawn from the manifest, so that one more unusable slide does not move everybody else.
Where the slides that a fold lost leave a class without a patient to train or to tune on, a patient
of that class changes sides (`keep_classes`); test sets stay as they are. What cannot be mended is
said before anything is trained, with changes that were tried and do work (`check_usable`).
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import polars as pl

from her2.config import Task
from her2.config.names import run_name
from her2.core.errors import UserError, problem_list
from her2.core.files import digest

log = logging.getLogger(__name__)

Reasons = Mapping[str, Mapping[str, str]]
"""Grid -> slide that cannot be used on it -> why."""
EXCLUDED = "excluded_"
"""Before a grid's name: the audit's column of reasons."""


@dataclass(frozen=True, slots=True)
class Fold:
    """The labelled patients of one fold.

    `roles` and `classes` have every patient, `usable` those with a slide that can be used.
    """

    repeat: int
    number: int
    roles: Mapping[str, str]
    classes: Mapping[str, int]
    usable: frozenset[str]

    def members(self, role: str, index: int) -> list[str]:
        """Return the usable patients of a role and class, sorted."""
        return sorted(
            name for name in self.usable if self.roles[name] == role and self.classes[name] == index
        )


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the config, in words, and the folds and the task that it gives.

    `make` raises a UserError if the change does not fit the cohort. Of the changes with one `key`,
    the first that works is told.
    """

    words: str
    make: Callable[[], tuple[pl.DataFrame, Task]]
    key: str


def excluded_slides(audited: pl.DataFrame) -> dict[str, dict[str, str]]:
    """Return grid -> slide -> reason from the audit's table."""
    return {
        name.removeprefix(EXCLUDED): dict(audited.select("slide_id", name).drop_nulls().iter_rows())
        for name in audited.columns
        if name.startswith(EXCLUDED)
    }


def keep_classes(table: pl.DataFrame, reasons: Reasons, task: Task, *, seed: int) -> pl.DataFrame:
    """Return the folds with every class in the training and the tuning set, where patients allow.

    That is what the draw of a tuning set promises. A patient is usable here if every grid has one
    of the patient's slides. Without unusable slides nothing changes.

    Args:
        table: the folds.
        reasons: the slides that cannot be used.
        task: the task.
        seed: decides which patient changes sides.
    """
    lost = {slide for found in reasons.values() for slide in found}
    if not lost:
        return table
    moves: dict[tuple[int, int, str], str] = {}
    for fold in _folds(table, lost):
        for index, name in enumerate(task.class_names):
            train, tune = fold.members("train", index), fold.members("tune", index)
            role, candidates = ("train", tune) if not train else ("tune", train)
            if (train and tune) or not candidates or (role == "tune" and len(train) == 1):
                continue
            where = (fold.repeat, fold.number)
            moved = min(candidates, key=lambda patient: digest([seed, *where, patient]))
            moves[*where, moved] = role
            log.info(
                "%s: %s is moved to the %s set, which has no other usable patient of class %s",
                *(run_name(*where), moved, {"train": "training", "tune": "tuning"}[role], name),
            )
    return _moved(table, moves)


def _moved(table: pl.DataFrame, moves: Mapping[tuple[int, int, str], str]) -> pl.DataFrame:
    """Return the folds with other roles of (repeat, fold, patient); unlabelled slides keep theirs.

    The order of the rows stays.
    """
    if not moves:
        return table
    keys = zip(table["repeat"], table["fold"], table["patient_id"], table["role"], strict=True)
    roles = [
        role if role == "predict" else moves.get((repeat, fold, patient), role)
        for repeat, fold, patient, role in keys
    ]
    return table.with_columns(role=pl.Series(roles, dtype=pl.String))


def usable_counts(table: pl.DataFrame, reasons: Reasons, task: Task) -> pl.DataFrame:
    """Count the patients of each class in each part of each fold, in all and usable.

    Returns:
        `grid, repeat, fold, role, class, patients, usable`.
    """
    records = [
        (grid, fold.repeat, fold.number, role, name,
         sum(fold.roles[p] == role and c == index for p, c in fold.classes.items()),
         len(fold.members(role, index)))
        for grid, lost in reasons.items()
        for fold in _folds(table, lost)
        for role in ("train", "tune", "test")
        for index, name in enumerate(task.class_names)
    ]  # fmt: skip
    names = ("grid", "repeat", "fold", "role", "class", "patients", "usable")
    kinds = (pl.String, pl.Int32, pl.Int32, pl.String, pl.String, pl.Int64, pl.Int64)
    return pl.DataFrame(records, schema=dict(zip(names, kinds, strict=True)), orient="row")


def fold_problems(counts: pl.DataFrame, *, split: bool) -> Iterator[tuple[str, str, str]]:
    """Yield grid, class ("" for all) and why no figure can be had of it on that grid.

    A class needs a fold that is trained with every class and, in a cross-validation, tests this
    one. A fixed split may leave a class out of its test set.
    """
    for (grid,), own in counts.partition_by("grid", as_dict=True, maintain_order=True).items():
        lost = own.filter((pl.col("role") == "train") & (pl.col("usable") == 0))
        trained = own.join(lost, on=["repeat", "fold"], how="anti")
        if not len(trained):
            for name in lost["class"].unique(maintain_order=True):
                if lost.filter(pl.col("class") == name).select("repeat", "fold").n_unique() == (
                    own.select("repeat", "fold").n_unique()
                ):
                    yield str(grid), name, "none is left to train on in any fold"
            if lost["class"].n_unique() > 1:
                yield str(grid), "", "every fold lacks a class to train on"
            continue
        tested = trained.filter((pl.col("role") == "test") & (pl.col("usable") > 0))
        if not len(tested):
            yield str(grid), "", "none is left in a test set"
        elif not split:
            for name in own["class"].unique(maintain_order=True):
                if name not in tested["class"]:
                    yield str(grid), name, "none is tested by a model that knows every class"


def check_usable(
    table: pl.DataFrame,
    reasons: Reasons,
    task: Task,
    *,
    split: bool,
    unit: str,
    changes: Callable[[Collection[str]], Iterable[Change]],
) -> None:
    """Check that figures can be had without the slides that tiling could not use.

    Args:
        table: the folds.
        reasons: the slides that cannot be used, for each grid.
        task: the task.
        split: whether the manifest's column `split` made the folds.
        unit: what the folds divide, in words: patient or slide.
        changes: returns the changes to be tried for the classes with problems.

    Raises:
        UserError: a class is not trained or not tested in any fold. The message names its slides
            that cannot be used, and which changes would do.
    """
    found = list(fold_problems(usable_counts(table, reasons, task), split=split))
    if not found:
        return
    lines = [
        _described(table, reasons[grid], task, name, grid, why, unit) for grid, name, why in found
    ]

    def works(folds: pl.DataFrame, other: Task, left: Reasons) -> bool:
        return not list(fold_problems(usable_counts(folds, left, other), split=split))

    named = {task.class_names.index(name) for _, name, _ in found if name}
    wanted = table.filter((pl.col("role") != "predict") & pl.col("label").is_in(named))
    advice = _slides_to_mend(table, set(wanted["slide_id"]), reasons, task, works)
    told = set()
    for change in changes([name for _, name, _ in found if name]):
        if change.key in told:
            continue
        try:
            folds, other = change.make()
        except UserError:  # it does not fit the cohort
            continue
        if works(folds, other, reasons):
            advice.append(change.words)
            told.add(change.key)
    raise problem_list(
        f"task on {task.label!r}: no figures can be had without the slides that cannot be used. "
        + (f"Each of these would do: {'; '.join(advice)}" if advice else "Add patients"),
        dict.fromkeys(lines),
    )


def _slides_to_mend(
    table: pl.DataFrame,
    wanted: Collection[str],
    reasons: Reasons,
    task: Task,
    works: Callable[[pl.DataFrame, Task, Reasons], bool],
) -> list[str]:
    """Return which of the wanted slides are enough if they can be used: one of some, or all."""
    lost = sorted({slide for found in reasons.values() for slide in found} & set(wanted))

    def without(*mended: str) -> Reasons:
        return {
            grid: {slide: why for slide, why in found.items() if slide not in mended}
            for grid, found in reasons.items()
        }

    if enough := [slide for slide in lost if works(table, task, without(slide))]:
        one = "one of the slides " if len(enough) > 1 else "slide "
        return [f"replace or repair {one}{', '.join(enough)}"]
    if lost and works(table, task, without(*lost)):
        return [f"replace or repair the slides {', '.join(lost)}"]
    return []


def _described(
    table: pl.DataFrame,
    lost: Mapping[str, str],
    task: Task,
    name: str,
    grid: str,
    why: str,
    unit: str,
) -> str:
    """Return a line about a class: usable patients, what is wrong, and the slides it lost."""
    if not name:
        return f"grid {grid}: {why}"
    own = table.filter(
        (pl.col("role") != "predict") & (pl.col("label") == task.class_names.index(name))
    )
    patients = own["patient_id"].n_unique()
    usable = own.filter(~pl.col("slide_id").is_in(list(lost)))["patient_id"].n_unique()
    slides = own.filter(pl.col("slide_id").is_in(list(lost)))["slide_id"].unique().sort()
    reasons = "; ".join(f"{slide}: {lost[slide]}" for slide in slides)
    return f"grid {grid}, class {name!r}: {why} ({usable} of {patients} {unit}s usable" + (
        f"; {reasons})" if reasons else ")"
    )


def _folds(table: pl.DataFrame, lost: Iterable[str]) -> Iterator[Fold]:
    """Yield every fold with its labelled patients; a patient with roles in both is in each."""
    gone = set(lost)
    labelled = table.filter(pl.col("role") != "predict")
    for (repeat, number), own in labelled.partition_by(
        "repeat", "fold", as_dict=True, maintain_order=True
    ).items():
        rows = own.select("slide_id", "patient_id", "label", "role").rows()
        yield Fold(
            repeat=int(repeat),
            number=int(number),
            roles={patient: role for _, patient, _, role in rows},
            classes={patient: label for _, patient, label, _ in rows},
            usable=frozenset(patient for slide, patient, _, _ in rows if slide not in gone),
        )
