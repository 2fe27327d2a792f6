"""Stage 2, external cohorts: what covariates that were learned in development tell of them.

The logistic regression and the forest of the controls are trained on all development patients, and
read once on the external ones. `site` is left out: the external sites are others, so that what was
learned of the development's cannot be applied to them. A value of another category (a scanner) that
development does not have is none of its values: the regression adds nothing for it.
"""

from dataclasses import dataclass, replace

import polars as pl

from her2.cohort.columns import covariates, place_in_table
from her2.config.external_jobs import ValidateSpec
from her2.evaluation.controls.against_model import compare_with_covariates, no_covariates
from her2.evaluation.controls.covariate_models import FOREST, LOGISTIC, predict_by_covariates
from her2.evaluation.controls.covariates import MISSING, WORDS, Covariates, covariates_of
from her2.evaluation.controls.stage import slides_of_model
from her2.evaluation.external.truth import class_in_truth

SITE = "site"
INSIDE, OUTSIDE = "development/", "external/"
"""Before the ids of slides and patients: both cohorts may have the same ones."""


@dataclass(frozen=True, slots=True)
class Cohorts:
    """What the covariates are learned on, and what they are read on.

    Attributes:
        development: usable slides of the development cohort's table on one grid.
        folds: the task's folds table.
        trained: the development's predictions table.
        external: usable slides of the external cohort's table on that grid.
        predictions: the external predictions table, in the classes of the truth.
    """

    development: pl.DataFrame
    folds: pl.DataFrame
    trained: pl.DataFrame
    external: pl.DataFrame
    predictions: pl.DataFrame


def external_covariates(
    spec: ValidateSpec, cohorts: Cohorts, reason: str = ""
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the covariates that are used, and their AUCs beside those of the model.

    Args:
        spec: the job's spec.
        cohorts: the tables of both cohorts.
        reason: why no one is evaluated; "" if some are.

    Returns:
        The tables `inputs` and `covariates` with the columns of the controls.
    """
    task = spec.truth.truth
    learned = _learned_on(spec, cohorts)
    tested = cohorts.predictions.filter(pl.col("role") == "test")
    found = shared_covariates(spec, cohorts, learned["slide_id"].to_list())
    if not reason and not found.any_used:
        reason = "no covariate is known in both cohorts and differs in development"
    if not reason and learned["label"].n_unique() < 2:
        reason = "the development cohort has patients of one class only"
    if reason:
        return found.inputs, no_covariates(task, f"not defined: {reason}")
    roles = pl.concat(
        [
            _marked(learned, INSIDE).with_columns(role=pl.lit("train")),
            _marked(tested.select("slide_id", "patient_id", label="target"), OUTSIDE).with_columns(
                role=pl.lit("test")
            ),
        ]
    ).with_columns(repeat=pl.lit(0, pl.Int32), fold=pl.lit(0, pl.Int32))
    wanted = roles.filter(pl.col("role") == "test").select("slide_id", "repeat", "fold")
    made = {
        by: predict_by_covariates(found, roles, wanted, task, by=by, seed=spec.seed).with_columns(
            pl.col("slide_id", "patient_id").str.strip_prefix(OUTSIDE)
        )
        for by in (LOGISTIC, FOREST)
    }
    return found.inputs, compare_with_covariates(cohorts.predictions, made, task, spec.evaluation)


def shared_covariates(spec: ValidateSpec, cohorts: Cohorts, learned: list[str]) -> Covariates:
    """Return the covariates of both cohorts' slides that development can teach.

    `inputs` describes all that development has, with the number of levels and missing values there.
    """
    labels = {spec.truth.task.label, spec.truth.truth.label}
    columns = [name for name in spec.evaluation.covariates if name not in labels]
    own = covariates_of(cohorts.development, learned, columns=columns, label=spec.truth.task.label)
    places = {place_in_table(name, cohorts.development.columns): name for name in columns}
    words = WORDS | covariates("number") | covariates("category") | places
    common = [name for name in cohorts.development.columns if name in cohorts.external.columns]
    tested = cohorts.predictions.filter(pl.col("role") == "test")["slide_id"].to_list()
    both = pl.concat(
        [
            _marked(table.select(common), mark)
            for table, mark in ((cohorts.development, INSIDE), (cohorts.external, OUTSIDE))
        ],
        how="vertical_relaxed",
    )
    slides = [*(INSIDE + name for name in learned), *(OUTSIDE + name for name in tested)]
    joint = covariates_of(
        both, slides, columns=[name for place, name in places.items() if place in common]
    )
    outside = joint.table.filter(pl.col("slide_id").str.starts_with(OUTSIDE))
    notes = {
        words[place]: note
        for place in (*own.numbers, *own.categories)
        if (note := _unusable(place, own, joint, outside))
    }
    kept = {place for place in (*own.numbers, *own.categories) if words[place] not in notes}
    told = pl.col("covariate").replace_strict(notes, default=None, return_dtype=pl.String)
    return replace(
        joint,
        numbers=tuple(name for name in own.numbers if name in kept),
        categories=tuple(name for name in own.categories if name in kept),
        inputs=own.inputs.with_columns(
            used=pl.col("used") & told.is_null(), note=told.fill_null(pl.col("note"))
        ),
    )


def _unusable(place: str, own: Covariates, joint: Covariates, outside: pl.DataFrame) -> str:
    """Return why a covariate of development cannot be read on the external slides; "" if it can."""
    if place == SITE:
        return "left out: the sites of another cohort are others"
    if place not in joint.table.columns:
        return "left out: the external cohort has no such column"
    values = outside[place]
    if values.dtype == pl.String:
        values = values.filter(values != MISSING)
    if not values.drop_nulls().len():
        return "left out: not known for any external slide"
    if place in own.numbers and joint.table[place].dtype == pl.String:
        return "left out: a number in development, and not in the external cohort"
    return ""


def _learned_on(spec: ValidateSpec, cohorts: Cohorts) -> pl.DataFrame:
    """Return `slide_id, patient_id, label` of the development's slides, in classes of the truth."""
    slides = slides_of_model(cohorts.folds, cohorts.trained)
    labelled = (
        cohorts.folds.filter(pl.col("role") != "predict", pl.col("slide_id").is_in(slides))
        .select("slide_id", "patient_id", "label")
        .unique("slide_id")
        .join(cohorts.development.select("slide_id"), on="slide_id", how="semi")
        .sort("slide_id")
    )
    return labelled.with_columns(label=class_in_truth(labelled["label"], spec.truth))


def _marked(table: pl.DataFrame, mark: str) -> pl.DataFrame:
    return table.with_columns(
        (pl.lit(mark) + pl.col(name)).alias(name)
        for name in ("slide_id", "patient_id")
        if name in table.columns
    )
