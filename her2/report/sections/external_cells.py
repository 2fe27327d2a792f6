"""Stage 2, report: the rows of external cohorts in the headline table."""

from her2.metrics.base import Metric
from her2.report.external_results import ExternalCohort, ExternalModel
from her2.report.format import NA, interval, number, plural
from her2.report.results import EvaluatedModel, Results
from her2.report.sections.covariate_tables import covariates_cell
from her2.report.sections.overlap import external_mark
from her2.report.shown_model import find
from her2.report.tables import TableCell

COVARIATES_ALONE = "Covariates alone"
"""Title of the column with what covariates alone reach."""


def external_models(results: Results, model: EvaluatedModel) -> list[ExternalModel]:
    """Return a model on each external cohort that tells the truth of its task."""
    return [
        one
        for cohort in results.external
        for one in cohort.models
        if (one.truth.of, one.encoder, one.head) == (model.task_name, model.encoder, model.head)
    ]


def external_words(model: ExternalModel, level: str) -> tuple[str, str, str]:
    """Return where a row leads, its cohort (with a truth of its own name), and what it is."""
    truth = model.truth
    cohort = model.cohort if truth.name == truth.of else f"{model.cohort} ({truth.name})"
    rows = model.patients if level == "patient" else model.slides
    sides = f", {' vs '.join(truth.task.class_names)}" if truth.positive else ""
    anchor = model.anchor if model.evaluated else f"external/{model.cohort}"
    return anchor, cohort, f"external, frozen models: {plural(len(rows), level)}{sides}"


def external_cell(
    results: Results, model: ExternalModel, level: str, metric: Metric, name: str
) -> TableCell:
    """Return a figure on an external cohort; of two sides of the classes, their AUC alone."""
    if not model.evaluated:
        return TableCell(NA, note="no labels")
    if model.truth.positive and not (metric.name == "auc" and name == "macro"):
        return TableCell(NA, note="other classes")
    record = find(model, level, metric.name, name)
    if record is None:
        return TableCell(NA, note="not evaluated")
    notes = [record["note"]] if record["note"] else []
    if metric.name == "auc" and name == "macro" and level == "patient":
        inside = record["low"] is not None and record["low"] <= 0.5 <= record["high"]
        notes += ["interval reaches chance (0.5)"] if inside else []
    if record["n_positive"] is not None:
        notes.append(f"{record['n_positive']} of {record['n']}")
    value = number(
        record["value"], metric.decimals, sign=external_mark(results, model.cohort, model.encoder)
    )
    ends = interval(record["low"], record["high"], metric.decimals)
    return TableCell(value, ends, "; ".join(notes))


def external_control(model: ExternalModel, title: tuple[str, str]) -> TableCell:
    """Return what an external macro AUC is to be read against, of the controls of development."""
    if title[0] == COVARIATES_ALONE:
        return covariates_cell(model.tables["covariates"])
    return TableCell(NA, note="development only")


def development_of(results: Results, model: ExternalModel) -> EvaluatedModel | None:
    """Return a model in development; None where its classes are not those of the truth."""
    if model.truth.positive:
        return None
    return next(
        one
        for one in results.task_models(model.truth.of)
        if (one.encoder, one.head) == (model.encoder, model.head)
    )


def model_head(results: Results, model: ExternalModel) -> str:
    """Return `encoder / head`, marked if the encoder saw patients of the cohort."""
    return f"{model.encoder} / {model.head}{external_mark(results, model.cohort, model.encoder)}"


def patients_and_slides(model: ExternalModel) -> str:
    """Return `20 patients with 21 slides`, of those evaluated."""
    return f"{plural(len(model.patients), 'patient')} with {plural(len(model.slides), 'slide')}"


def where(cohort: ExternalCohort, truth: str) -> str:
    """Return `yale, task score`, or `yale, truth status` for a truth of its own name."""
    of = next(one.of for one in cohort.truths if one.name == truth)
    return f"{cohort.name}, {'task' if of == truth else 'truth'} {truth}"
