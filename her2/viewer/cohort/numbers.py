"""`her2 view`: the predictions of a model for a cohort's slides, as the evaluation wrote them.

Nothing is computed anew here but the mean, by the evaluation's own function, for slides without a
label, which are in no table of figures.
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from her2.config import Task
from her2.config.names import split_protocol
from her2.core.tables import read_result
from her2.evaluation.predictions import averaged
from her2.frozen.bundle.asked import Wanted
from her2.viewer.run import DEVELOPMENT, ViewedCohort, ViewedRun

PROBABILITY = "prob_"
"""Before a class's name in the tables."""

_OUT_OF_FOLD = {
    "sound": "out-of-fold: the mean, over the rounds, of the models that were not trained on the "
    "slide's patient, before temperatures (the tables evaluation/{model}/slides)",
    "published": "of the published protocol, whose folds divide slides and not patients, so that a "
    "model may know other slides of the patient, and figures are optimistic: the mean, over the "
    "rounds, of the models that were not trained on the slide (the tables "
    "evaluation/{model}/slides)",
}
_WITHOUT_LABEL = "slides without a label: the mean of all models"
_FROZEN = (
    "of the frozen model: the mean of the calibrated probabilities of {final} "
    "(the tables validation/{cohort}/evaluation/{model}/slides)"
)
_FINAL = {"folds": "all folds' models", "refit": "the one model of all development patients"}
_BUNDLE = (
    "of the bundle that predicted them, whichever model is chosen: the mean of the calibrated "
    "probabilities of its models; nothing is known of the truth"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What a model says of the slides of a cohort.

    Attributes:
        table: `slide_id`, `truth` (class name, null without a label), `predicted` (class name) and
            `prob_<class>`, one row per predicted slide.
        classes: the classes of the table.
        task: tells the class of a label, for slides that were not predicted; None where unknown.
        words: which numbers these are, for people.
    """

    table: pl.DataFrame
    classes: tuple[str, ...]
    task: Task | None
    words: str


def numbers_of(run: ViewedRun, cohort: ViewedCohort, model: Wanted | None) -> Numbers:
    """Return the predictions for a cohort.

    Args:
        run: the run.
        cohort: one of its cohorts.
        model: one of its models; None where there is none yet.

    Raises:
        UserError: a table is damaged.
    """
    if any(name.startswith(PROBABILITY) for name in cohort.table.columns):
        return _of_bundle(cohort.table)
    if model is None:
        task = next(iter(run.config.tasks.values()), None)
        return _nothing(task, "no model is evaluated yet")
    if cohort.key == DEVELOPMENT:
        task = run.config.tasks.get(model.task)
        folder = model.folder("evaluation")
        protocol = split_protocol(model.head)[1]
        words = f"{_OUT_OF_FOLD[protocol].format(model='/'.join(model.names))}; {_WITHOUT_LABEL}"
        return _evaluated(folder, task, words)
    return _external(run, cohort, model)


def _external(run: ViewedRun, cohort: ViewedCohort, model: Wanted) -> Numbers:
    """Return the predictions in the classes of the cohort's truth.

    Where a cohort tells the truth of the task in several ways, it is the one with all classes.
    """
    name = cohort.external or ""
    own = run.config.tasks.get(model.task)
    truths = run.config.truths(name) if name in run.config.validation else {}
    known = sorted(
        (bool(section.positive), number, truth)
        for number, (truth, (of, section)) in enumerate(truths.items())
        if of == model.task
    )
    if own is None or not known:
        return _nothing(None, "not predicted: the cohort has no truth for this task")
    *_, truth = known[0]
    names = (truth, model.encoder, model.head)
    words = _FROZEN.format(
        final=_FINAL[run.config.validation[name].final], cohort=name, model="/".join(names)
    )
    return _evaluated(
        cohort.folder.joinpath("evaluation", *names), truths[truth][1].truth(own), words
    )


def _evaluated(folder: Path, task: Task | None, words: str) -> Numbers:
    """Return the evaluated slides as they are in the tables, and the mean for those without label.

    A slide is in one of the two: its label decides on its role in all models.
    """
    if not (folder / "predictions.parquet").is_file():
        return _nothing(task, "not predicted by this model")
    slides = read_result(folder / "slides.parquet")
    classes = tuple(
        name.removeprefix(PROBABILITY) for name in slides.columns if name.startswith(PROBABILITY)
    )
    rows = read_result(folder / "predictions.parquet").filter(pl.col("role") == "predict")
    unlabelled = averaged(rows, classes, by="slide_id").with_columns(
        target=pl.lit(None, pl.Int32)  # an external label of no class, or of a patient left out
    )
    table = pl.concat([slides, unlabelled.select(slides.columns)])
    names = dict(enumerate(classes))
    return Numbers(
        table=table.select(
            "slide_id",
            *(f"{PROBABILITY}{name}" for name in classes),
            truth=pl.col("target").replace_strict(names, return_dtype=pl.String),
            predicted=pl.col("predicted").replace_strict(names, return_dtype=pl.String),
        ),
        classes=classes,
        task=task,
        words=words,
    )


def _of_bundle(table: pl.DataFrame) -> Numbers:
    columns = [name for name in table.columns if name.startswith(PROBABILITY)]
    return Numbers(
        table=table.select(
            "slide_id", pl.lit(None, pl.String).alias("truth"), "predicted", *columns
        ).drop_nulls("predicted"),
        classes=tuple(name.removeprefix(PROBABILITY) for name in columns),
        task=None,
        words=_BUNDLE,
    )


def _nothing(task: Task | None, words: str) -> Numbers:
    schema = dict.fromkeys(("slide_id", "truth", "predicted"), pl.String)
    classes = () if task is None else task.class_names
    return Numbers(table=pl.DataFrame(schema=schema), classes=classes, task=task, words=words)
