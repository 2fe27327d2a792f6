"""Arrow tables of NumPy columns, made and read without pandas."""

import io
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from her2.core.tables import arrow_table, table_columns

COLUMNS = {
    "x": np.arange(7, dtype=np.int32),
    "side": np.full(7, 336.5),
    "tissue": np.linspace(0, 1, 14, dtype=np.float32)[::2],
    "kept": np.arange(7) % 2 == 0,
}


def parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pa.parquet.write_table(table, out, write_page_checksum=True)
    return out.getvalue()


@pytest.mark.parametrize("rows", [0, 7])
def test_a_table_has_the_bytes_that_pyarrow_gives_it(rows: int) -> None:
    """Tile tables of caches made before and after are the same files."""
    columns = {name: values[:rows] for name, values in COLUMNS.items()}
    assert parquet(arrow_table(columns)) == parquet(pa.table(columns))


@pytest.mark.parametrize("rows", [0, 7])
def test_columns_come_back_as_they_were_and_may_be_changed(rows: int) -> None:
    columns = {name: values[:rows] for name, values in COLUMNS.items()}
    found = table_columns(pa.table(columns))
    assert list(found) == list(columns)
    for name, values in found.items():
        assert values.dtype == columns[name].dtype
        np.testing.assert_array_equal(values, columns[name])
        values[:] = 0


def test_neither_imports_pandas() -> None:
    code = (
        "import sys, numpy as np; from her2.core.tables import arrow_table, table_columns; "
        "table_columns(arrow_table({'x': np.arange(3)})); sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
