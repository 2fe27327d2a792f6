"""Before every stage and in the folds: patients whose slides have labels of different classes.

A patient is one case of a task: trained or tested, never both, with one class. If the slides of a
patient differ in their class (two lesions, a biopsy and a resection), `cohort.patient_label` says
which class the patient has, or that the patient is left out of the task.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from her2.config import PatientLabel, Task
from her2.core.errors import UserError

RULES: dict[PatientLabel, str] = {
    "worst": "the highest class counts",
    "first": "the class of the first slide in the manifest counts",
    "exclude": "left out of the task",
}
"""Rule -> what becomes of such a patient, in words."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A patient whose slides have labels of different classes of a task.

    `labels` holds (label, first slide with it), in the order of the manifest.
    """

    patient_id: str
    labels: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        """Return the patient with labels and slides: `P-17 ('0': A-001, '3+': A-002)`."""
        return f"{self.patient_id} ({', '.join(f'{x!r}: {slide}' for x, slide in self.labels)})"


def conflicts(slides: Iterable[tuple[str, str, str | None]], task: Task) -> list[Conflict]:
    """Find the patients with labels of different classes of a task, sorted by id.

    Args:
        slides: (slide_id, patient_id, label or None), in the order of the manifest.
        task: the task; labels of none of its classes do not count.
    """
    labels: dict[str, dict[str, str]] = {}
    for slide_id, patient_id, label in slides:
        if label is not None and task.class_index(label) is not None:
            labels.setdefault(patient_id, {}).setdefault(label, slide_id)
    return [
        Conflict(patient_id, tuple(found.items()))
        for patient_id, found in sorted(labels.items())
        if len({task.class_index(label) for label in found}) > 1
    ]


def refusal(found: Sequence[Conflict], task: Task, rule: PatientLabel) -> str:
    """Return why a rule does not settle some conflicts, and the fix; "" if it does."""
    who = "; ".join(str(conflict) for conflict in found)
    if found and rule == "refuse":
        return (
            f"{len(found)} patient{'s have' if len(found) > 1 else ' has'} slides of different "
            f"classes: {who}. Correct the labels, or set `cohort.patient_label`: worst (the "
            "highest class of an ordered task), first (the first slide's), or exclude"
        )
    if found and rule == "worst" and not task.ordinal:
        return (
            "`cohort.patient_label: worst` takes the highest class, and the classes of this task "
            f"have no order: {who}. Set `ordinal: true` in the task if its classes are listed "
            "from lowest to highest, or set `cohort.patient_label` to first or exclude"
        )
    return ""


def patient_classes(
    found: Sequence[Conflict], task: Task, rule: PatientLabel
) -> dict[str, int | None]:
    """Return patient -> the class that a rule gives it, or None if it is left out of the task.

    Raises:
        UserError: the rule does not settle the conflicts.
    """
    if problem := refusal(found, task, rule):
        raise UserError(f"column {task.label!r}: {problem}.")
    classes: dict[str, int | None] = {}
    for conflict in found:
        indices = [task.class_index(label) for label, _ in conflict.labels]
        known = [index for index in indices if index is not None]
        classes[conflict.patient_id] = (
            None if rule == "exclude" else max(known) if rule == "worst" else known[0]
        )
    return classes


def decision_lines(
    tasks: Mapping[str, Task], found: Mapping[str, Sequence[Conflict]], rule: PatientLabel
) -> list[str]:
    """Return a line for each task with conflicts: how many, the rule, and the class of each."""
    lines = []
    for name, own in found.items():
        if not own:
            continue
        classes = patient_classes(own, tasks[name], rule)
        names = {
            patient: "left out" if index is None else tasks[name].class_names[index]
            for patient, index in classes.items()
        }
        each = "; ".join(f"{conflict}: {names[conflict.patient_id]}" for conflict in own)
        lines.append(f"task {name}: {rule_words(len(own), rule)}: {each}")
    return lines


def rule_words(count: int, rule: PatientLabel) -> str:
    """Return how many patients a rule concerns, and what becomes of them."""
    return (
        f"{count} patient{'s' * (count != 1)} with slides of different classes, "
        f"{RULES[rule]} (cohort.patient_label: {rule})"
    )
