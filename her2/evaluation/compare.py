"""Stage 2, compare: compare encoders, and heads, on identical patients and folds."""

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from her2.config.jobs import CompareSpec
from her2.core.tables import write_table
from her2.core.types import Floats
from her2.evaluation.bootstrap import tail_p
from her2.evaluation.delong import compare_areas
from her2.evaluation.figures import null
from her2.evaluation.groupings import two_sides
from her2.evaluation.paired import MACRO, Model, Paired, Question, difference, pair_models
from her2.evaluation.paper_claim import statement_table

FEW_RESAMPLES = "p_holm is as low as this number of resamples allows (evaluation.bootstrap)"
COMPARISON = {
    "kind": pl.String,
    "within": pl.String,
    "first": pl.String,
    "second": pl.String,
    "class": pl.String,
    "grouping": pl.String,
    "first_value": pl.Float64,
    "second_value": pl.Float64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
    "p_holm": pl.Float64,
    "family": pl.Int64,
    "method": pl.String,
    "n": pl.Int64,
    "note": pl.String,
}


def compare(spec: CompareSpec, evaluation: Path, output: Path) -> pl.DataFrame:
    """Write `statement` and `comparison`, as Parquet and CSV.

    Args:
        spec: the job's spec.
        evaluation: the task's folder of evaluated models, `{encoder}/{head}/predictions.parquet`.
        output: folder of the tables.

    Returns:
        The table `comparison`.

    Raises:
        UserError: the models disagree on a slide's class or fold, or have no patient in common.
    """
    predictions = {
        (encoder, head): pl.read_parquet(evaluation / encoder / head / "predictions.parquet")
        for head in spec.heads
        for encoder in spec.encoders
    }
    paired = None
    if len(predictions) > 1:
        paired = pair_models(predictions, spec.task, spec.evaluation, seed=spec.seed)
    write_table(statement_table(paired, spec.domains, spec.heads), output / "statement")
    table = comparison_table(paired, spec)
    write_table(table, output / "comparison")
    return table


def comparison_table(paired: Paired | None, spec: CompareSpec) -> pl.DataFrame:
    """Compare each pair of encoders under each head, and each pair of heads under each encoder.

    The AUC (of each class, macro and of each grouping) is computed at patient level, on the
    patients that all models of the task tested. `difference` is first minus second, with the
    bootstrap interval and p value of `paired.difference`. Groupings have a second row with DeLong's
    paired test.

    `p_holm` corrects for the family (Holm, Scandinavian Journal of Statistics 6(2), 1979). A family
    consists of the task's tests of one kind (encoders or heads), of one sort (macro AUC, AUC of a
    class, AUC of a grouping) and by one method; `family` is their number. Tests that are not
    defined are not counted.

    Returns:
        `kind, within, first, second, class, grouping, first_value, second_value, difference, low,
        high, p, p_holm, family, method, n, note`; no rows for a single model.
    """
    if paired is None:
        return pl.DataFrame(schema=COMPARISON)
    records = [
        {
            "kind": kind,
            "within": within,
            "first": names[0],
            "second": names[1],
            "class": question[0],
            "grouping": question[1],
            "n": paired.counts[question],
            **result,
        }
        for kind, within, names, models in _pairs(spec)
        for question in paired.problems
        for result in _results(paired, models, question)
    ]
    return _holm(
        pl.DataFrame(records, schema=COMPARISON),
        least_p={
            question: tail_p(1 / (spec.evaluation.bootstrap + 1), sizes)
            for question, sizes in paired.sizes.items()
        },
        alpha=1 - spec.evaluation.confidence,
    )


def _pairs(spec: CompareSpec) -> Iterator[tuple[str, str, tuple[str, str], tuple[Model, Model]]]:
    """Yield the kind, the name that both share, the two names, and the two models."""
    for head in spec.heads:
        for first, second in combinations(spec.encoders, 2):
            yield "encoders", head, (first, second), ((first, head), (second, head))
    for encoder in spec.encoders:
        for first, second in combinations(spec.heads, 2):
            yield "heads", encoder, (first, second), ((encoder, first), (encoder, second))


def _results(
    paired: Paired, models: tuple[Model, Model], question: Question
) -> Iterator[dict[str, Any]]:
    """Yield the values from column `first_value` on, for each method that the question has."""
    first, second = (paired.areas[model][question] for model in models)
    problem = paired.problems[question]
    values = {"first_value": null(first[0]), "second_value": null(second[0])}
    left_out = (
        f"patients left out because not all models tested them: {paired.left_out}"
        if paired.left_out
        else ""
    )
    record = values | {
        "method": "bootstrap",
        "difference": null(first[0] - second[0]),
        "note": "; ".join(note for note in (problem, left_out) if note),
    }
    yield (
        record
        if problem
        else record | difference(first - second, paired.confidence, paired.sizes[question])
    )
    if not question[1]:
        return
    grouping = paired.groupings[question[1]]
    sides = [two_sides(paired.rows[model], grouping) for model in models]
    test = compare_areas(sides[0].positive, sides[0].scores, sides[1].scores, paired.confidence)
    if not problem and np.isnan(test.p):
        problem = "not defined: the difference has no variance"
    yield values | {
        "method": "delong",
        "difference": null(test.difference),
        "low": null(test.low),
        "high": null(test.high),
        "p": null(test.p),
        "note": "; ".join(note for note in (problem, left_out) if note),
    }


def holm(p: Floats) -> Floats:
    """Correct p values (n,) for multiple testing.

    The k-th smallest of n is multiplied by n - k + 1. The results are limited to 1 and made
    monotonic: none is below that of a smaller p value. Source: Holm, Scandinavian Journal of
    Statistics 6(2), 1979.
    """
    order = np.argsort(p)
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(raised, 1)
    return corrected


def _holm(table: pl.DataFrame, *, least_p: Mapping[Question, float], alpha: float) -> pl.DataFrame:
    """Fill `p_holm` and `family`; `least_p` is the lowest p value that the bootstrap can give."""
    sort = (
        pl.when(pl.col("grouping") != "")
        .then(pl.lit("grouping"))
        .when(pl.col("class") == MACRO[0])
        .then(pl.lit("macro"))
        .otherwise(pl.lit("class"))
    )
    keys = table.select("kind", sort.alias("sort"), "method").rows()
    asked = table.select("class", "grouping").rows()
    p = table["p"].to_list()
    corrected: list[float | None] = [None] * len(p)
    family = [0] * len(p)
    notes = table["note"].to_list()
    for key in dict.fromkeys(keys):
        members = [i for i, own in enumerate(keys) if own == key]
        tested = [i for i in members if p[i] is not None]
        for i in members:
            family[i] = len(tested)
        if tested:
            adjusted = holm(np.array([p[i] for i in tested]))
            for i, value in zip(tested, adjusted, strict=True):
                corrected[i] = float(value)
            # With b resamples no p is below `least_p`, so a large family cannot become significant.
            for i in tested if key[2] == "bootstrap" else ():
                least = least_p[asked[i]]
                if len(tested) * least > alpha and p[i] <= least * (1 + 1e-9):
                    notes[i] = "; ".join(filter(None, (notes[i], FEW_RESAMPLES)))
    return table.with_columns(
        pl.Series("p_holm", corrected, pl.Float64),
        pl.Series("family", family, pl.Int64),
        pl.Series("note", notes, pl.String),
    )
