"""Stage 2, report: the methods of external validation."""

from dataclasses import dataclass

import polars as pl

from her2.report.external_results import ExternalCohort
from her2.report.format import plural, signed
from her2.report.results import Results
from her2.report.sections import external_checks, external_words
from her2.report.sections.external_words import CohortFacts
from her2.report.sections.paper.methods_figures import grouping_names
from her2.report.sections.paper.prose import paragraph


@dataclass(frozen=True, slots=True)
class _External:
    """Facts of the paragraph; without `cohorts` it is empty.

    `frozen` and `refitted` name the cohorts by what predicted them. `sides` are the two groups of
    scores that a cohort distinguishes, and `outside` the slides outside of development, in words.
    `given` are the encoders whose features another program computed, `computed` is true where
    there are others.
    """

    synthetic: bool
    cohorts: list[CohortFacts]
    frozen: list[str]
    refitted: list[str]
    models: str
    sides: list[str]
    evaluated: bool
    groupings: list[str]
    compared: bool
    covariates: bool
    limit: float
    outside: list[str]
    computed: bool
    given: list[str]


def external(results: Results) -> str:
    """Describe the external cohorts and what was done with them; empty without any."""
    cohorts = [external_words.facts(results, cohort) for cohort in results.external]
    frozen = [one for one in cohorts if not one.refit]
    models = [model for cohort in results.external for model in cohort.models]
    evaluated = [model for model in models if model.evaluated]
    return paragraph(
        "external",
        _External(
            synthetic=results.synthetic,
            computed=results.config.needs_slides,
            given=list(results.config.given),
            cohorts=cohorts,
            frozen=[one.name for one in frozen],
            refitted=[one.name for one in cohorts if one.refit],
            models=next((one.models for one in frozen), ""),
            sides=list(
                dict.fromkeys(
                    external_words.about(truth)
                    for cohort in results.external
                    for truth in cohort.truths
                    if truth.positive
                )
            ),
            evaluated=bool(evaluated),
            groupings=grouping_names(results),
            compared=any(
                table["difference"].drop_nulls().len()
                for cohort in results.external
                for table in cohort.comparisons.values()
            ),
            covariates=any(
                model.tables["covariates"]["covariates"].drop_nulls().len() for model in evaluated
            ),
            limit=results.config.folds.max_shared_tiles,
            outside=outside(results),
        ),
    )


def outside(results: Results) -> list[str]:
    """Return how many slides of each cohort lie outside of development in any way."""
    found = []
    for cohort in results.external:
        slides = {
            one.slide_id
            for caution in external_checks.cautions(results, cohort)
            for one in caution.slides
        }
        usable = cohort.slides.filter(pl.col("status") == "ok")["slide_id"].n_unique()
        if slides:
            found.append(f"{len(slides)} of {plural(usable, 'slide')} of {cohort.name}")
    return found


CASES_NAMED = 3
"""Largest differences in case mix that the checklist names, for each cohort."""


@dataclass(frozen=True, slots=True)
class ChecklistFacts:
    """Facts that items of the checklist may use where there are external cohorts."""

    external: list[CohortFacts]
    flows: list[str]
    numbers: list[str]
    came: str
    case_mix: list[str]


def checklist_facts(results: Results) -> ChecklistFacts:
    """Return the facts for the checklist."""
    cohorts = [external_words.facts(results, cohort) for cohort in results.external]
    return ChecklistFacts(
        external=cohorts,
        flows=[
            f"External cohort {one.name}: {plural(one.slides, 'slide')} of "
            f"{plural(one.patients, 'patient')}, {one.usable}; {'; '.join(one.truths)}."
            for one in cohorts
        ],
        numbers=[f"{one.name}, {words}" for one in cohorts for words in one.truths],
        came="were tiled and embedded"
        if results.config.needs_slides
        else "come as features of another program",
        case_mix=[_case_mix(cohort) for cohort in results.external],
    )


def _case_mix(cohort: ExternalCohort) -> str:
    """Return the largest standardised differences of a cohort, and where all of them are."""
    table = (
        cohort.case_mix.drop_nulls("difference")
        .sort(pl.col("difference").abs(), descending=True, maintain_order=True)
        .unique("what", keep="first", maintain_order=True)
    )
    named = [
        f"{row['what']}{_level(row['level'])} {signed(row['difference'], 2)}"
        for row in table.head(CASES_NAMED).to_dicts()
    ]
    words = f" (largest standardised differences: {', '.join(named)})" if named else ""
    return f"case mix of {cohort.name} in tables/external_case_mix.csv{words}"


def _level(level: str) -> str:
    return f" {level}" if level else ""
