"""Stage 2, compare: compare encoders, and heads, on identical patients and folds."""

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path

import polars as pl

from her2.config import EvaluationSection, Task
from her2.config.jobs import CompareSpec
from her2.core.tables import null, read_result, write_table
from her2.evaluation.families import TEST, with_holm
from her2.evaluation.groupings import groupings_of
from her2.evaluation.nested import PICKS
from her2.evaluation.paired import MACRO, Model, Paired, pair_models
from her2.evaluation.paper_claim import statement_records
from her2.evaluation.selection import SELECTION, selection_records

COMPARISON = {
    "task": pl.String,
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
    **TEST,
    "n": pl.Int64,
    "note": pl.String,
}
STATEMENT = {
    "task": pl.String,
    "head": pl.String,
    "statement": pl.String,
    "first": pl.String,
    "second": pl.String,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    **TEST,
    "n": pl.Int64,
    "holds": pl.Boolean,
    "note": pl.String,
}


def compare(spec: CompareSpec, evaluation: Path, output: Path) -> pl.DataFrame:
    """Write `statement`, `comparison`, `selection` and `picks` of all tasks, as Parquet and CSV.

    Args:
        spec: the job's spec.
        evaluation: folder of evaluated models, `{task}/{encoder}/{head}/predictions.parquet`.
        output: folder of the tables.

    Returns:
        The table `comparison`.

    Raises:
        UserError: the models disagree on a slide's class or fold, or have no patient in common.
    """
    paired: dict[str, Paired] = {}
    selection: list[dict[str, object]] = []
    picks: list[dict[str, object]] = []
    for name, task in spec.tasks.items():
        predictions = {
            (encoder, head): read_result(evaluation / name / encoder / head / "predictions.parquet")
            for head in spec.heads
            for encoder in spec.encoders
        }
        if len(predictions) > 1:
            paired[name] = pair_models(predictions, task, spec.evaluation)
        found = selection_records(predictions, task, spec.evaluation, seed=spec.seed)
        for whole, records in zip((selection, picks), found, strict=True):
            whole += [{"task": name, **record} for record in records]
    comparison, statement = comparison_tables(paired, spec)
    write_table(statement, output / "statement")
    write_table(pl.DataFrame(selection, schema=SELECTION), output / "selection")
    write_table(pl.DataFrame(picks, schema=PICKS), output / "picks")
    write_table(comparison, output / "comparison")
    return comparison


def comparison_tables(
    paired: Mapping[str, Paired], spec: CompareSpec
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Compare each pair of encoders under each head, and each pair of heads under each encoder.

    The AUC (of each class, macro and of each grouping) is computed at patient level, on the
    patients that all models of the task tested; `difference` is first minus second.

    `p_holm` corrects for the family. There are two per kind of pair: `encoders` has the macro AUC
    and the groupings of all tasks, and the claim of the paper; `encoders, single classes` has the
    AUCs of the classes. A class that a grouping sets against all others is that grouping, and
    counts once.

    Args:
        paired: task -> its models, without a task of a single model.
        spec: the job's spec.

    Returns:
        The tables `comparison` and `statement`.
    """
    records = [
        {"task": task, **record}
        for task, own in paired.items()
        for record in _records(own, spec, _same_as_grouping(spec.tasks[task], spec.evaluation))
    ]
    claims = [
        {"task": task, **record}
        for task in spec.tasks
        for record in statement_records(paired.get(task), spec.domains, spec.heads)
    ]
    comparison = pl.DataFrame(records, schema=COMPARISON | {"question": pl.String})
    statement = pl.DataFrame(claims, schema=STATEMENT)
    # All rows of two models in a task of two classes are the same AUC.
    binary = [task for task, own in spec.tasks.items() if len(own.class_names) == 2]
    pair = pl.concat_str("task", "within", "first", "second", separator="/")
    asked = pl.concat_str(pair, "question", separator="/")
    test = pl.when(pl.col("task").is_in(binary)).then(pair).otherwise(asked).alias("test")
    none = pl.lit(None, pl.String).alias("test")
    shared = ["family", "p"]
    both = with_holm(pl.concat([comparison.select(*shared, test), statement.select(*shared, none)]))
    corrected = both.select("p_holm", "family_size")
    count = len(comparison)
    return (
        comparison.drop("question").with_columns(corrected[:count]),
        statement.with_columns(corrected[count:]).with_columns(
            holds=(pl.col("low") > 0) & (pl.col("p_holm") < 1 - spec.evaluation.confidence)
        ),
    )


def _same_as_grouping(task: Task, section: EvaluationSection) -> dict[str, str]:
    """Return class -> the grouping that sets it against all other classes, so has its AUC."""
    names = task.class_names
    found: dict[str, str] = {}
    for grouping in groupings_of(task, section):
        if len(grouping.negative) + len(grouping.positive) == len(names):
            for side in (grouping.negative, grouping.positive):
                if len(side) == 1:
                    found.setdefault(names[side[0]], grouping.name)
    return found


def _records(
    paired: Paired, spec: CompareSpec, same_as_grouping: Mapping[str, str]
) -> Iterator[dict[str, object]]:
    for kind, within, names, models in _pairs(spec):
        for question in paired.questions:
            found = paired.difference(*models, question)
            name, grouping = question
            values = (null(paired.areas[model][question].value) for model in models)
            yield {
                "kind": kind,
                "within": within,
                "class": name,
                "grouping": grouping,
                "question": grouping or same_as_grouping.get(name, name),
                **dict(zip(("first", "second"), names, strict=True)),
                **dict(zip(("first_value", "second_value"), values, strict=True)),
                "difference": null(found.value),
                "low": null(found.low),
                "high": null(found.high),
                "p": null(found.p),
                "family": kind
                if grouping or question == MACRO or name in same_as_grouping
                else f"{kind}, single classes",
                "n": paired.counts[question],
                "note": "; ".join(note for note in (found.note, paired.left_out) if note),
            }


def _pairs(spec: CompareSpec) -> Iterator[tuple[str, str, tuple[str, str], tuple[Model, Model]]]:
    """Yield the kind, the name that both share, the two names, and the two models."""
    for head in spec.heads:
        for first, second in combinations(spec.encoders, 2):
            yield "encoders", head, (first, second), ((first, head), (second, head))
    for encoder in spec.encoders:
        for first, second in combinations(spec.heads, 2):
            yield "heads", encoder, (first, second), ((encoder, first), (encoder, second))
