"""Output tables: Parquet for programs, CSV for people and spreadsheets."""

import math
from pathlib import Path

import polars as pl

from her2.core.files import atomic_path


def write_csv(table: pl.DataFrame, path: Path) -> None:
    """Write a CSV that is safe to open in a spreadsheet, atomically."""
    with atomic_path(path) as temporary:
        guard_cells(table).write_csv(temporary)


def write_table(table: pl.DataFrame, stem: Path) -> None:
    """Write `{stem}.csv`, then `{stem}.parquet`."""
    write_csv(table, stem.with_name(f"{stem.name}.csv"))
    with atomic_path(stem.with_name(f"{stem.name}.parquet")) as temporary:
        table.write_parquet(temporary)


def guard_cells(table: pl.DataFrame) -> pl.DataFrame:
    """Put a single quote before text that a spreadsheet would run as a formula."""
    texts = [name for name, kind in table.schema.items() if kind == pl.String]
    return table.with_columns(
        pl.when(pl.col(name).str.contains(r"^[=+\-@\t\r]"))
        .then(pl.concat_str(pl.lit("'"), pl.col(name)))
        .otherwise(pl.col(name))
        .alias(name)
        for name in texts
    )


def null(value: float) -> float | None:
    """Return a number for a cell, or None for NaN."""
    return None if math.isnan(value) else float(value)
