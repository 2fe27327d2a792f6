"""Stage 2, report: the trained models on external cohorts, beside what they are in development."""

from dataclasses import dataclass

from her2.evaluation.calibration import SCALED
from her2.report.external_results import ExternalCohort, ExternalModel, ExternalTruth
from her2.report.figures.base import Figure
from her2.report.figures.curves import benefit_figure, reliability_figure
from her2.report.figures.external import ChangeLine, Limited, change_figure
from her2.report.results import Results
from her2.report.section import Link, Section
from her2.report.sections import (
    explanation,
    external_checks,
    external_csv,
    external_tables,
    external_words,
)
from her2.report.sections import external_probabilities as probabilities
from her2.report.sections.cohort import Excluded
from her2.report.sections.comparison import Comparison, compared
from her2.report.sections.external_cells import development_of
from her2.report.sections.leakage import Check
from her2.report.sections.overlap import external_mark
from her2.report.sections.pictures import ATTENTION_SHOWN, ModelPictures, model_pictures
from her2.report.sections.probabilities import benefit_lines, reliability_lines
from her2.report.tables import PageTable

FULLY_DRAWN = 6
"""Models of a cohort that have every figure; those after them have their tables."""


@dataclass(frozen=True, slots=True)
class ModelPart:
    """A frozen model on a cohort; `figures` come with captions."""

    name: str
    anchor: str
    figures: tuple[tuple[Figure, str], ...]
    tables: tuple[PageTable, ...]


@dataclass(frozen=True, slots=True)
class TruthPart:
    """All models by one truth of a cohort; without labels only the words and the counts."""

    name: str
    words: str
    counts: PageTable
    tables: tuple[PageTable, ...]
    change: Figure | None
    comparisons: tuple[Comparison, ...]
    covariates: PageTable | None
    models: tuple[ModelPart, ...]
    localised: bool
    attention: tuple[PageTable, ...]
    pictures: tuple[ModelPictures, ...]


@dataclass(frozen=True, slots=True)
class CohortPart:
    """An external cohort on the page."""

    name: str
    anchor: str
    facts: external_words.CohortFacts
    truths: tuple[TruthPart, ...]
    case_mix: tuple[PageTable, ...]
    cautions: PageTable
    checks: tuple[Check, ...]
    excluded: tuple[Excluded, ...]


def _cohort(results: Results, cohort: ExternalCohort) -> CohortPart:
    return CohortPart(
        name=cohort.name,
        anchor=cohort.anchor,
        facts=external_words.facts(results, cohort),
        truths=tuple(_truth(results, cohort, truth) for truth in cohort.truths),
        case_mix=external_checks.case_mix_page_tables(cohort),
        cautions=external_checks.cautions_page_table(
            cohort, external_checks.cautions(results, cohort)
        ),
        checks=external_checks.leak_checks(results, cohort),
        excluded=external_checks.excluded_slides(results, cohort),
    )


def _truth(results: Results, cohort: ExternalCohort, truth: ExternalTruth) -> TruthPart:
    models, evaluated = cohort.of_truth(truth.name), _evaluated(cohort, truth)
    marked = [(model, external_mark(results, cohort.name, model.encoder)) for model in models]
    tables: list[PageTable | None] = []
    if evaluated:
        tables = [
            external_tables.internal_page_table(results, cohort, truth.name),
            external_tables.sites_page_table(results, cohort, truth.name),
            probabilities.calibration_page_table(results, cohort, truth.name),
            probabilities.calibration_errors_page_table(results, cohort, truth.name),
        ]
    heading = "Cohort / truth / encoder / head"
    attention = (
        explanation.localisation(marked, "all", heading),
        explanation.faithfulness(marked, heading),
        explanation.agreement(marked, "the models of the folds", heading),
    )
    share = max(1, ATTENTION_SHOWN // max(1, sum(len(one.models) for one in results.external)))
    return TruthPart(
        name=truth.name,
        words=external_words.about(truth),
        counts=external_tables.counts_page_table(cohort, truth.name),
        tables=tuple(table for table in tables if table is not None),
        change=_change(results, cohort, truth) if evaluated else None,
        comparisons=tuple(
            compared(results, truth.name, cohort.comparisons[truth.name], where=f", {cohort.name}")
            if truth.name in cohort.comparisons
            else ()
        ),
        covariates=external_tables.external_covariates_page_table(results, cohort, truth.name)
        if evaluated
        else None,
        models=tuple(
            _model(results, model, drawn=at < FULLY_DRAWN) for at, model in enumerate(evaluated)
        ),
        localised=any(len(model.attention["localisation"]) for model in models),
        attention=tuple(table for table in attention if table is not None),
        pictures=tuple(model_pictures(results, model, share, held_out=False) for model in models),
    )


def _evaluated(cohort: ExternalCohort, truth: ExternalTruth) -> list[ExternalModel]:
    return [model for model in cohort.of_truth(truth.name) if model.evaluated]


def _change(results: Results, cohort: ExternalCohort, truth: ExternalTruth) -> Figure | None:
    lines = []
    for model in cohort.of_truth(truth.name):
        row = external_words.internal_row(model)
        if row is not None:
            inside, outside = (_limited(row, name) for name in ("internal", "external"))
            lines.append(ChangeLine(f"{model.encoder} / {model.head}", inside, outside))
    if not any(line.outside for line in lines):
        return None
    return change_figure(lines, cohort.name, truth.name, results.figure_context)


def _limited(row: dict[str, float | None], name: str) -> Limited | None:
    value = row[name]
    return None if value is None else (value, row[f"{name}_low"], row[f"{name}_high"])


def _model(results: Results, model: ExternalModel, *, drawn: bool) -> ModelPart:
    inside = development_of(results, model)
    tables = (
        probabilities.operating_page_table(results, model),
        external_tables.classes_page_table(results, model),
        external_tables.metrics_page_table(model, inside),
    )
    return ModelPart(
        name=model.name,
        anchor=model.anchor,
        figures=_figures(results, model) if drawn else (),
        tables=tuple(table for table in tables if table is not None),
    )


def _figures(results: Results, model: ExternalModel) -> tuple[tuple[Figure, str], ...]:
    inside, context = development_of(results, model), results.figure_context
    states, benefits = {}, {}
    if inside is not None:
        states["out-of-fold"] = reliability_lines(
            inside.reliability, SCALED, model.task.class_names
        )
        benefits = {one.name: one for one in benefit_lines(inside.decision, SCALED)}
    states[f"external: {model.cohort}"] = reliability_lines(
        model.tables["reliability"], SCALED, model.task.class_names
    )
    states = {name: lines for name, lines in states.items() if lines}
    found: list[tuple[Figure, str]] = []
    if states:
        found.append(
            (
                reliability_figure(states, model.name, context),
                "Observed share of patients with a score, by predicted probability after "
                "temperature scaling, with Wilson intervals. Dotted: perfect calibration.",
            )
        )
    own = benefit_lines(model.tables["decision"], SCALED)
    if own:
        found.append(
            (
                benefit_figure(own, model.name, context, benefits),
                "Decision curves of the external patients: net benefit of acting on the model, of "
                "treating everyone and of treating no one, by threshold probability. The curve "
                "out-of-fold is of another prevalence, with which net benefit changes.",
            )
        )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class ExternalData:
    """Data of the section: every external cohort."""

    cohorts: tuple[CohortPart, ...]


def _collect(results: Results) -> ExternalData:
    return ExternalData(tuple(_cohort(results, cohort) for cohort in results.external))


SECTION = Section(
    anchor="external",
    title="External validation",
    order=15,
    collect=_collect,
    is_shown=lambda data: bool(data.cohorts),
    links=lambda data: (Link(f"External validation ({len(data.cohorts)})", "external"),),
    tables=external_csv.TABLES,
)
