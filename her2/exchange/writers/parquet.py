"""Features out: a Parquet table for each slide, for DuckDB, Polars, R and whatever else reads it.

The types are those of Apache Parquet's format: `features` is a list of equal length, FLOAT16 where
the store has float16.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from her2.core.files import canonical_json
from her2.exchange.outgoing import LABEL, Outgoing
from her2.exchange.slide_features import SlideFeatures
from her2.exchange.writers import Writer


def _files(outgoing: Outgoing, slide: SlideFeatures) -> dict[str, str]:
    return {"features": f"features/{slide.slide_id}.parquet"}


def _write(outgoing: Outgoing, slide: SlideFeatures, paths: Mapping[str, Path]) -> None:
    width = slide.shape[1]
    schema = pa.schema(
        [
            pa.field("slide_id", pa.string(), nullable=False),
            pa.field("x", pa.int32()),
            pa.field("y", pa.int32()),
            pa.field("features", pa.list_(pa.from_numpy_dtype(slide.dtype), width), nullable=False),
        ],
        metadata={"her2": canonical_json({**outgoing.provenance(), **slide.provenance()})},
    )
    start = 0
    with pq.ParquetWriter(paths["features"], schema, write_page_checksum=True) as file:
        for block in slide.blocks():
            values = pa.array(np.ascontiguousarray(block, slide.dtype).reshape(-1))
            columns = [
                pa.array([slide.slide_id] * len(block), pa.string()),
                *(_places(slide, axis, start, len(block)) for axis in (0, 1)),
                pa.FixedSizeListArray.from_arrays(values, width),
            ]
            file.write_table(pa.Table.from_arrays(columns, schema=schema))
            start += len(block)


def _places(slide: SlideFeatures, axis: int, start: int, count: int) -> pa.Array:
    """Return the x or y of some tiles; null where it is not known."""
    if not slide.knows("coords"):
        return pa.nulls(count, pa.int32())
    return pa.array(np.ascontiguousarray(slide.coords[start : start + count, axis]))


def _tables(outgoing: Outgoing, slides: Sequence[str]) -> dict[str, pl.DataFrame]:
    """Return the patients and labels of the slides, where the results have them."""
    known = outgoing.rows or {}
    rows = {slide: known[slide] for slide in slides if slide in known}
    if not rows:
        return {}
    labels = sorted({name for row in rows.values() for name in row.labels})
    columns = {
        "slide_id": list(rows),
        "patient_id": [row.patient_id for row in rows.values()],
        **{f"{LABEL}{name}": [row.labels.get(name) for row in rows.values()] for name in labels},
    }
    return {"slides.parquet": pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))}


def _losses(outgoing: Outgoing, slide: SlideFeatures) -> list[str]:
    return []


def _advice(outgoing: Outgoing, slides: Sequence[str], out: Path) -> tuple[str, ...]:
    return (f"Polars: pl.read_parquet('{out}/features/*.parquet')",)


WRITER = Writer(
    name="parquet",
    words="Parquet: a row for each tile, with a list of its features",
    files=_files,
    write=_write,
    losses=_losses,
    tables=_tables,
    advice=_advice,
)
