"""Stage 2, report: encoders against each other on identical patients, pair by pair."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from her2.report.overlap import mark, seen
from her2.report.performance import Cell
from her2.report.read import Results
from her2.report.text import interval, number, p_value, signed


@dataclass(frozen=True, slots=True)
class Pair:
    """Two encoders and the AUC of one class or the macro; `difference` is first minus second.

    Its note says when the interval holds 0, or why there is no difference.
    """

    encoder: str
    other: str
    class_name: str
    auc: str
    other_auc: str
    difference: Cell
    p: str
    n: int


@dataclass(frozen=True, slots=True)
class Shared:
    """Whether two encoders read the same tiles."""

    encoder: str
    other: str
    same: bool
    tiles: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """All pairs under one head of a task: macro, and each class of each pair."""

    task_name: str
    head: str
    macro: tuple[Pair, ...]
    classes: tuple[Pair, ...]


def comparisons(results: Results) -> list[Comparison]:
    """One a task and head; none where one encoder stands alone."""
    found = []
    for task_name, table in _encoder_pairs(results).items():
        for head in table["head"].unique(maintain_order=True):
            pairs = [_pair(results, row) for row in _rows(table, head)]
            found.append(
                Comparison(
                    task_name=task_name,
                    head=head,
                    macro=tuple(pair for pair in pairs if pair.class_name == "macro"),
                    classes=tuple(pair for pair in pairs if pair.class_name != "macro"),
                )
            )
    return found


def shared_tiles(results: Results) -> list[Shared]:
    """Which pairs read the same tile grid: um/px and size both agree."""
    tables = [table.select("encoder", "other") for table in _encoder_pairs(results).values()]
    if not tables:
        return []
    encoders = results.config.encoders
    found = []
    for first, second in pl.concat(tables).unique(maintain_order=True).iter_rows():
        grids = [f"{encoders[name].size} px at {encoders[name].mpp:g} um/px" for name in
                 (first, second)]  # fmt: skip
        same = encoders[first].grid == encoders[second].grid
        tiles = grids[0] if same else f"{grids[0]}; {grids[1]}"
        found.append(Shared(first, second, same, tiles))
    return found


def comparison_table(results: Results) -> pl.DataFrame | None:
    """The tables of all tasks, with how many patients of the cohort either encoder saw."""
    parts = [
        table.select(pl.lit(task).alias("task"), pl.all())
        for task, table in _encoder_pairs(results).items()
    ]
    if not parts:
        return None
    counts = {name: seen(results, name) for name in results.config.encoders}
    return pl.concat(parts).with_columns(
        pl.col(column).replace_strict(counts, return_dtype=pl.Int64).alias(name)
        for column, name in (("encoder", "overlap"), ("other", "other_overlap"))
    )


def _encoder_pairs(results: Results) -> dict[str, pl.DataFrame]:
    """The pairs of encoders by task, AUC per class and macro."""
    names = {
        "within": "head",
        "first": "encoder",
        "second": "other",
        "first_value": "auc",
        "second_value": "other_auc",
    }
    return {
        task: table.filter((pl.col("kind") == "encoders") & (pl.col("grouping") == "")).rename(
            names
        )
        for task, table in results.comparisons.items()
    }


def _rows(table: pl.DataFrame, head: str) -> list[dict[str, Any]]:
    return table.filter(pl.col("head") == head).to_dicts()


def _pair(results: Results, row: dict[str, Any]) -> Pair:
    marks = {column: mark(results, row[column]) for column in ("encoder", "other")}
    low, high = row["low"], row["high"]
    note = row["note"] or ""
    if low is not None and high is not None and low <= 0 <= high:
        note = "no difference shown"
    either = marks["encoder"] or marks["other"]
    return Pair(
        encoder=row["encoder"] + marks["encoder"],
        other=row["other"] + marks["other"],
        class_name=row["class"],
        auc=number(row["auc"], sign=marks["encoder"]),
        other_auc=number(row["other_auc"], sign=marks["other"]),
        difference=Cell(signed(row["difference"], sign=either), interval(low, high), note),
        p=p_value(row["p"]),
        n=row["n"],
    )
