"""Output tables: Parquet for programs, CSV for people and spreadsheets."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from numpy.typing import NDArray

from her2.core.errors import UserError, first_line
from her2.core.files import WRITTEN, atomic_path
from her2.core.reading import ABSENT, MAKE_AGAIN, path_problem
from her2.core.sharing import check_readable
from her2.core.stamps import noted

if TYPE_CHECKING:
    import pyarrow as pa


def read_result(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """Read a Parquet table that her2 made, and note it for the job's stamp.

    Raises:
        UserError: the file is absent, damaged, another kind of file, may not be read, or lacks the
            columns.
    """
    return _read(path, lambda: pl.read_parquet(noted(path), columns=columns))


def read_row(path: Path, column: str, value: str) -> pl.DataFrame:
    """Read the first row of such a table with a value in a column; no row where there is none.

    Rows behind it are not read, so that one of a large table costs little memory.

    Raises:
        UserError: as `read_result`.
    """

    def found() -> pl.DataFrame:
        index = pl.read_parquet(noted(path), columns=[column])[column].index_of(value)
        return pl.scan_parquet(path).slice(index or 0, 0 if index is None else 1).collect()

    return _read(path, found)


def _read(path: Path, read: Callable[[], pl.DataFrame]) -> pl.DataFrame:
    check_readable(path)
    problem = path_problem(path)
    if problem is None:
        try:
            return read()
        except (Exception, pl.exceptions.PanicException) as error:  # of bytes that are no Parquet
            problem = f"cannot be read as a table ({first_line(error)})"
    again = "Run snakemake again." if problem == ABSENT else MAKE_AGAIN
    raise UserError(f"{path}: {problem}. {again}")


def arrow_table(columns: Mapping[str, NDArray[Any]]) -> "pa.Table":
    """Return columns, each (n,), as an Arrow table.

    `pa.table(columns)` gives the same one, but imports pandas first, where that is installed, which
    takes as long as the rest of a short job's imports. So does pyarrow's `to_numpy`.
    """
    import pyarrow as pa  # not every table is an Arrow table

    return pa.table({name: pl.Series(name, values).to_arrow() for name, values in columns.items()})


def table_columns(table: "pa.Table") -> dict[str, NDArray[Any]]:
    """Return the columns of an Arrow table, each (n,), without pandas as `arrow_table` does."""
    found = pl.DataFrame(pl.from_arrow(table))
    return {name: found[name].to_numpy(writable=True) for name in found.columns}


def write_csv(table: pl.DataFrame, path: Path) -> None:
    """Write a CSV that is safe to open in a spreadsheet, atomically."""
    with atomic_path(path) as temporary:
        guard_cells(table).write_csv(temporary)
    WRITTEN.add(path)


def write_table(table: pl.DataFrame, stem: Path) -> None:
    """Write `{stem}.csv`, then `{stem}.parquet`."""
    write_csv(table, stem.with_name(f"{stem.name}.csv"))
    write_parquet(table, stem.with_name(f"{stem.name}.parquet"))


def write_parquet(table: pl.DataFrame, path: Path) -> None:
    """Write a Parquet table of the results atomically, and note it for the job's stamp."""
    with atomic_path(path) as temporary:
        table.write_parquet(temporary)
    WRITTEN.add(path)


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
