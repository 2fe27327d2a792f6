"""Stage 2, report: the numbers of patients, and the precision that such numbers give."""

import math
from dataclasses import dataclass

from her2.evaluation.power import ASSUMED_AUC, CORRELATION, POWER, Design, precision
from her2.report.format import listed, number, plural
from her2.report.results import EvaluatedModel, Results
from her2.report.sections.paper.prose import paragraph


@dataclass(frozen=True, slots=True)
class _ClassWidth:
    name: str
    patients: int
    width: str


@dataclass(frozen=True, slots=True)
class _TaskSize:
    """Facts of a task; without `macro` there is no precision, because a class is too small.

    `macro` and `difference` are numbers in words; `difference` is empty where the run has nothing
    to compare or none could be shown. `largest` and `smallest` are classes, None for two classes,
    which have one AUC.
    """

    task_name: str
    by_class: str
    macro: str = ""
    largest: _ClassWidth | None = None
    smallest: _ClassWidth | None = None
    difference: str = ""


@dataclass(frozen=True, slots=True)
class _SampleSize:
    assumed: float
    confidence: float
    power: float
    correlation: float
    tasks: list[_TaskSize]


def sample_size(results: Results) -> str:
    """Describe the evaluated patients of each class, and the expected width of intervals.

    The widths are those that `her2 power` prints for these numbers; they do not depend on results.
    """
    return paragraph(
        "sample_size",
        _SampleSize(
            assumed=ASSUMED_AUC,
            confidence=results.config.evaluation.confidence,
            power=POWER,
            correlation=CORRELATION,
            tasks=[
                _task_size(name, models, results)
                for name in results.config.tasks
                if (models := results.task_models(name))
            ],
        ),
    )


def _task_size(task_name: str, models: tuple[EvaluatedModel, ...], results: Results) -> _TaskSize:
    names, targets = models[0].task.class_names, models[0].patients["target"].to_list()
    sizes = tuple(targets.count(index) for index in range(len(names)))
    section = results.config.folds
    folds, repeats = (1, 1) if results.split else (section.number, section.repeats)
    by_class = listed(
        [f"{plural(sizes[0], 'patient')} of {names[0]}"]
        + [f"{size:,} of {name}" for name, size in zip(names[1:], sizes[1:], strict=True)]
    )
    if min(sizes) < 2 or folds > sum(sizes) // 2:
        return _TaskSize(task_name, by_class)
    confidence = results.config.evaluation.confidence
    design = Design(sizes, folds=folds, repeats=repeats, confidence=confidence)
    macro, *classes = precision(design)
    each = [
        _ClassWidth(name, one.n, number(one.width, 2))
        for name, one in zip(names, classes, strict=True)
    ]
    several = len(each) > 2
    shown = len(models) > 1 and not math.isnan(macro.difference)
    return _TaskSize(
        task_name=task_name,
        by_class=by_class,
        macro=number(macro.width, 2),
        largest=max(each, key=lambda one: one.patients) if several else None,
        smallest=min(each, key=lambda one: one.patients) if several else None,
        difference=number(macro.difference, 2) if shown else "",
    )
