"""Stage 2, external: all models compared on an external cohort, and its cases.

Encoders and heads are compared as in development (`her2.evaluation.compare`): paired, on the
patients that all models of a truth predicted, with p values corrected over all truths of the
cohort. There is one test set, so the comparison is of the models that were trained.
"""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from her2.config.external_jobs import ExternalSpec, Truth
from her2.config.jobs import CompareSpec
from her2.core.tables import read_result, write_table
from her2.evaluation.areas import held_out
from her2.evaluation.compare import comparison_tables
from her2.evaluation.external.case_mix import case_mix, development_classes
from her2.evaluation.groupings import groupings_of
from her2.evaluation.paired import Model, Paired, areas_of, pair_models

Tables = Mapping[Model, pl.DataFrame]


def compare_external(
    spec: ExternalSpec,
    *,
    evaluation: Path,
    cohort: Path,
    development_cohort: Path,
    folds: Path,
    output: Path,
) -> pl.DataFrame:
    """Write `statement`, `case_mix` and `comparison` of an external cohort, as Parquet and CSV.

    Args:
        spec: the job's spec.
        evaluation: folder of its evaluated models, `{truth}/{encoder}/{head}/predictions.parquet`.
        cohort: the external cohort's table of all slides on all grids.
        development_cohort: the development cohort's table.
        folds: folder of the development's folds tables, `{task}.parquet`.
        output: folder of the tables.

    Returns:
        The table `comparison`.

    Raises:
        UserError: the models disagree on a slide's class.
    """
    outside, inside = read_result(cohort), read_result(development_cohort)
    predictions = {
        name: {
            (encoder, head): read_result(evaluation / name / encoder / head / "predictions.parquet")
            for head in spec.heads
            for encoder in spec.encoders
        }
        for name in spec.truths
    }
    classes = {
        name: (
            development_classes(read_result(folds / f"{truth.of}.parquet"), inside, truth),
            _evaluated(predictions[name]),
        )
        for name, truth in spec.truths.items()
    }
    comparison, statement = external_comparison(spec, predictions)
    write_table(statement, output / "statement")
    write_table(case_mix(spec, inside, outside, classes), output / "case_mix")
    write_table(comparison, output / "comparison")
    return comparison


def external_comparison(
    spec: ExternalSpec, predictions: Mapping[str, Tables]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the tables `comparison` and `statement` with the columns of the development's.

    A truth whose models have no evaluated patient in common has rows without figures, and the
    reason.

    Args:
        spec: the job's spec.
        predictions: name of a truth -> the predictions table of each model.
    """
    whole = CompareSpec(
        tasks={name: truth.truth for name, truth in spec.truths.items()},
        encoders=spec.encoders,
        domains=spec.domains,
        heads=spec.heads,
        evaluation=spec.evaluation,
        seed=spec.seed,
    )
    paired = {
        name: _paired(own, spec.truths[name], spec)
        for name, own in predictions.items()
        if len(own) > 1
    }
    return comparison_tables(paired, whole)


def _paired(tables: Tables, truth: Truth, spec: ExternalSpec) -> Paired:
    tested = [set(table.filter(pl.col("role") == "test")["slide_id"]) for table in tables.values()]
    if set.intersection(*tested):
        return pair_models(tables, truth.truth, spec.evaluation)
    task, groupings = truth.truth, groupings_of(truth.truth, spec.evaluation)
    nobody = {
        model: areas_of(held_out(table.clear(), task, level="patient"), task, groupings)
        for model, table in tables.items()
    }
    return Paired(
        areas=nobody,
        counts=dict.fromkeys(next(iter(nobody.values())), 0),
        confidence=spec.evaluation.confidence,
        left_out="no evaluated patient was predicted by all models",
    )


def _evaluated(tables: Tables) -> pl.DataFrame:
    """Return `patient_id, target` of the patients that any model was evaluated on."""
    return (
        pl.concat(
            table.filter(pl.col("role") == "test").select("patient_id", "target")
            for table in tables.values()
        )
        .unique("patient_id")
        .sort("patient_id")
    )
