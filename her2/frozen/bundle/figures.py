"""The figures of the out-of-fold predictions, as a bundle has them: one form for four tables."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import polars as pl

from her2.core.tables import read_result
from her2.frozen.bundle.schema import Figure


def figures_of(evaluation: Path) -> Iterator[Figure]:
    """Yield the figures of four tables of `her2 evaluate` in one form.

    Args:
        evaluation: the folder of the tables.

    Raises:
        UserError: a table is missing or damaged.
    """
    tables: tuple[tuple[Literal["metrics", "binary", "calibration"], str, str], ...] = (
        ("metrics", "class", ""),
        ("binary", "grouping", ""),
        ("calibration", "class", "state"),
    )
    for table, of, at in tables:
        for row in _rows(evaluation / f"{table}.parquet"):
            yield Figure(
                table=table,
                of=row[of] or "",
                at=row[at] if at else "",
                note=row["note"] or "",
                **{name: row[name] for name in ("level", "metric", "value", "low", "high", "n")},
            )
    for row in _rows(evaluation / "operating.parquet"):
        for metric in ("sensitivity", "specificity", "ppv", "npv"):
            yield Figure(
                table="operating",
                level=row["level"],
                metric=metric,
                of=row["grouping"],
                at=f"{row['fixed']} {row['asked']:g}",
                value=row[metric],
                low=row[f"{metric}_low"],
                high=row[f"{metric}_high"],
                n=row["n_positive"] + row["n_negative"],
                note=row["note"] or "",
            )


def _rows(path: Path) -> list[dict[str, Any]]:
    table = read_result(path)
    floats = [name for name, kind in table.schema.items() if kind == pl.Float64]
    return table.with_columns(pl.col(floats).fill_nan(None)).to_dicts()
