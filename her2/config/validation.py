"""Config: external cohorts, on which the models of the development cohort are evaluated."""

import operator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from her2.config.data import Task
from her2.core.paths import UserPath
from her2.core.section import ClassName, Name, Ordered, Section

Final = Literal["folds", "refit"]


class ExternalTaskSection(Section):
    """Where an external cohort has the truth for a task of the config."""

    of: Name | None = Field(
        None, description="the task whose models are evaluated; default: the one of this name"
    )
    label: Name | None = Field(
        None,
        description="column of the cohort's manifest with the labels; default: the task's, which "
        "may be absent",
    )
    classes: Annotated[dict[ClassName, list[str]], *Ordered] | None = Field(
        None,
        min_length=2,
        description="class name -> values of the label column; default: the task's. The names are "
        "those of the task's classes or, with `positive`, any two, of which the second is positive",
    )
    positive: tuple[ClassName, ...] = Field(
        (),
        description="for a cohort that knows only two classes: the task's classes that together "
        "are the second one; all others are the first",
    )

    @model_validator(mode="after")
    def _two_sides_are_two_classes(self) -> "ExternalTaskSection":
        if self.positive and (self.classes is None or len(self.classes) != 2):
            raise ValueError(
                "`positive` needs `classes` with two classes, the negative one first, such as "
                "{negative: [Negative], positive: [Positive]}"
            )
        return self

    def truth(self, task: Task) -> Task:
        """Return the task that the cohort's labels are read by, and figures are computed for.

        Args:
            task: the development task; its classes, or two sides of them.

        Raises:
            ValueError: the classes are not those of the task; with the fix.
        """
        known = ", ".join(task.class_names)
        for name in self.positive:
            if name not in task.classes:
                raise ValueError(f"positive: {name!r} is no class of the task, which has {known}")
        if self.positive and set(self.positive) == set(task.classes):
            raise ValueError("positive: lists every class of the task; leave out the negative ones")
        classes = task.classes if self.classes is None else self.classes
        if not self.positive and tuple(classes) != task.class_names:
            raise ValueError(
                f"classes: {', '.join(classes)} are not those of the task ({known}); name the same "
                "ones in the same order or, for two classes, say with `positive` which of the "
                "task's classes are the second"
            )
        return Task(
            label=self.label or task.label,
            classes=classes,
            # Of two sides the second is the higher one only if it has the highest class.
            ordinal=task.ordinal and (not self.positive or task.class_names[-1] in self.positive),
        )

    def sides(self, task: Task) -> tuple[tuple[int, ...], ...]:
        """Return the indices of the task's classes that make up each class of `truth`."""
        if not self.positive:
            return tuple((index,) for index in range(len(task.classes)))
        second = tuple(i for i, name in enumerate(task.class_names) if name in self.positive)
        return tuple(i for i in range(len(task.classes)) if i not in second), second


class ValidationSection(Section):
    """An external cohort: the trained models predict it, and learn nothing from it."""

    slides: UserPath = Field(description="its manifest: .csv or .parquet, one row per slide")
    root: UserPath | None = Field(
        None, description="folder where relative paths start; default: the manifest's folder"
    )
    masks: UserPath | None = Field(
        None, description="folder of ground truths, as `cohort.masks` has those of the development"
    )
    tissue_masks: UserPath | None = Field(
        None, description="folder of external tissue masks, as `cohort.tissue_masks`"
    )
    tasks: Annotated[dict[Name, ExternalTaskSection], *Ordered] = Field(
        default_factory=dict,
        exclude_if=operator.not_,
        description="name -> where this cohort has the truth. Default: every task of the config, "
        "with its own label column; without such a column the slides are predicted and not "
        "evaluated",
    )
    final: Final = Field(
        "folds",
        exclude_if=lambda value: value == "folds",
        description="folds: the mean of the calibrated probabilities of all folds' models; refit: "
        "one more model, trained on all patients of the development cohort for the median number "
        "of epochs of the folds",
    )
