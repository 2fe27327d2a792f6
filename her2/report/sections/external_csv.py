"""Stage 2, report: the tables of all external cohorts, for the CSV files."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields

import polars as pl

from her2.report.external_results import ExternalCohort, ExternalModel
from her2.report.results import Results
from her2.report.section import MakeTable
from her2.report.sections import external_checks
from her2.report.sections.cohort import Excluded
from her2.report.sections.failures import failures_table
from her2.report.sections.overlap import overlap_of


def _of_models(table: Callable[[ExternalModel], pl.DataFrame]) -> MakeTable:
    """Return a function that stacks a table of each model, with its names in front."""

    def stack(results: Results) -> pl.DataFrame | None:
        parts = [
            table(model).select(
                pl.lit(cohort.name).alias("cohort"),
                pl.lit(model.truth.name).alias("truth"),
                pl.lit(model.truth.of).alias("task"),
                pl.lit(model.encoder).alias("encoder"),
                pl.lit(model.head).alias("head"),
                pl.exclude("cohort", "truth", "task", "encoder", "head"),
                pl.lit(_seen(results, cohort, model), pl.Int64).alias("overlap"),
            )
            for cohort in results.external
            for model in cohort.models
        ]
        return pl.concat(parts, how="diagonal_relaxed") if parts else None

    return stack


def _seen(results: Results, cohort: ExternalCohort, model: ExternalModel) -> int | None:
    """Return the number of a cohort's patients that an encoder saw; None where it is unknown."""
    found = overlap_of(results, model.encoder, cohort.name)
    return None if found is None or not (found.known or found.patients) else len(found.patients)


def _table(name: str) -> MakeTable:
    return _of_models(lambda model: model.tables[name])


def _attention(name: str) -> MakeTable:
    return _of_models(lambda model: model.attention[name])


def _of_cohorts(
    table: Callable[[Results, ExternalCohort], pl.DataFrame | None],
) -> MakeTable:
    """Return a function that stacks a table of each cohort, with its name in front."""

    def stack(results: Results) -> pl.DataFrame | None:
        parts = [
            found.select(pl.lit(cohort.name).alias("cohort"), pl.all())
            for cohort in results.external
            if (found := table(results, cohort)) is not None
        ]
        return pl.concat(parts, how="diagonal_relaxed") if parts else None

    return stack


def _cautions_table(results: Results, cohort: ExternalCohort) -> pl.DataFrame:
    rows = [
        asdict(one)
        for caution in external_checks.cautions(results, cohort)
        for one in caution.slides
    ]
    names = [field.name for field in fields(external_checks.Outside)]
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String))


def _excluded_table(results: Results, cohort: ExternalCohort) -> pl.DataFrame:
    rows = [asdict(one) for one in external_checks.excluded_slides(results, cohort)]
    names = [field.name for field in fields(Excluded)]
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String))


def _comparison_table(_: Results, cohort: ExternalCohort) -> pl.DataFrame | None:
    parts = [
        table.select(pl.lit(truth).alias("truth"), pl.all())
        for truth, table in cohort.comparisons.items()
    ]
    return pl.concat(parts) if parts else None


def _similar_table(_: Results, cohort: ExternalCohort) -> pl.DataFrame | None:
    parts = [
        table.select(pl.lit(encoder).alias("encoder"), pl.all())
        for encoder, table in cohort.similar.items()
    ]
    return pl.concat(parts, how="diagonal_relaxed") if parts else None


FIGURES = (
    "counts", "metrics", "internal", "sites", "confusion", "binary", "calibration", "reliability",
    "operating", "decision", "inputs", "covariates",
)  # fmt: skip
"""Tables of each model that are written as they are."""

TABLES: Mapping[str, MakeTable] = {
    **{f"external_{name}": _table(name) for name in FIGURES},
    "external_predictions": _of_models(lambda model: model.applied),
    "external_failures": _of_models(failures_table),
    **{
        f"external_{name}": _attention(name)
        for name in ("localisation_summary", "faithfulness_summary", "agreement")
    },
    "external_case_mix": _of_cohorts(lambda _, cohort: cohort.case_mix),
    "external_cautions": _of_cohorts(_cautions_table),
    "external_excluded": _of_cohorts(_excluded_table),
    "external_comparison": _of_cohorts(_comparison_table),
    "external_similar": _of_cohorts(_similar_table),
}
"""Name of a CSV file -> the function that returns its table, None without external cohorts."""
