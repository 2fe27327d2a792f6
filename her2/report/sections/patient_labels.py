"""Stage 2, report: patients whose slides have labels of different classes, and their class."""

from dataclasses import dataclass

import polars as pl

from her2.cohort.labels import conflicts, rule_words
from her2.report.results import Results, one_row_per_slide
from her2.report.tables import PageTable, page_table

NAMED = 5
"""Maximum number of patients that a warning names; the table has all."""


@dataclass(frozen=True, slots=True)
class Decided:
    """A patient whose slides have different classes; `used` is None if it is left out of the task.

    `labels` are the differing labels, in the order of the classes.
    """

    task_name: str
    patient_id: str
    labels: tuple[str, ...]
    used: str | None


def decided(results: Results, task_name: str) -> dict[str, Decided]:
    """Return patient -> what the folds of a task made of its labels."""
    task = results.config.tasks[task_name]
    slides = one_row_per_slide(results).select("slide_id", "patient_id", f"label_{task.label}")
    differing = conflicts(slides.iter_rows(), task)
    if not differing:
        return {}
    folds = results.folds[task_name].filter(pl.col("label").is_not_null())
    classes = dict(folds.select("patient_id", "label").unique().iter_rows())
    found = {}
    for conflict in differing:
        index = classes.get(conflict.patient_id)
        own = {label for label, _ in conflict.labels}
        found[conflict.patient_id] = Decided(
            task_name=task_name,
            patient_id=conflict.patient_id,
            labels=tuple(
                label for values in task.classes.values() for label in values if label in own
            ),
            used=None if index is None else task.class_names[index],
        )
    return found


def left_out(results: Results, task_name: str) -> frozenset[str]:
    """Return the patients that are left out of a task."""
    found = decided(results, task_name).values()
    return frozenset(item.patient_id for item in found if item.used is None)


def decided_table(results: Results) -> PageTable | None:
    """Return the patients of all tasks with the class that counts; None if there are none."""
    rows = [
        (item.patient_id, item.task_name, ", ".join(item.labels), item.used or "left out")
        for name in results.config.tasks
        for item in decided(results, name).values()
    ]
    if not rows:
        return None
    return page_table(
        f"Patients with slides of different classes "
        f"(cohort.patient_label: {results.config.cohort.patient_label})",
        ("Patient", "Task", "Labels", "Class that counts"),
        rows,
    )


def decided_words(results: Results, task_name: str) -> str:
    """Return how many patients of a task are concerned, what became of them, and who they are."""
    names = list(decided(results, task_name))
    if not names:
        return ""
    words = rule_words(len(names), results.config.cohort.patient_label)
    who = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    return f"Task {task_name}: {words}: {who}."
