"""Stage 2, report: effect of the evaluation protocol, sound against as published."""

from dataclasses import dataclass

import polars as pl

from her2.config.names import PUBLISHED
from her2.core.tables import read_result
from her2.report.format import interval, number
from her2.report.results import Results
from her2.report.sections.overlap import mark
from her2.report.tables import TableCell


@dataclass(frozen=True, slots=True)
class ProtocolRow:
    """Macro AUC of one encoder and head under both protocols."""

    task_name: str
    encoder: str
    head: str
    sound_patients: TableCell
    sound_slides: TableCell
    published_slides: TableCell
    published_bags: TableCell


def protocols(results: Results) -> list[ProtocolRow]:
    """Return one row per model that was also evaluated under the published protocol."""
    if not results.config.published_protocol:
        return []
    rows = []
    for model in results.models:
        path = results.folder / "evaluation" / model.task_name / model.encoder
        twin = path / f"{model.head}{PUBLISHED}" / "metrics.parquet"
        if not twin.exists():
            continue
        metrics = read_result(twin)
        rows.append(
            ProtocolRow(
                task_name=model.task_name,
                encoder=model.encoder + mark(results, model.encoder),
                head=model.head,
                sound_patients=_macro(model.metrics, "patient"),
                sound_slides=_macro(model.metrics, "slide"),
                published_slides=_macro(metrics, "slide"),
                published_bags=_macro(metrics, "bag"),
            )
        )
    return rows


def _macro(metrics: pl.DataFrame, level: str) -> TableCell:
    row = metrics.row(
        by_predicate=(pl.col("level") == level)
        & (pl.col("metric") == "auc")
        & (pl.col("class") == "macro"),
        named=True,
    )
    return TableCell(number(row["value"]), interval(row["low"], row["high"]))
