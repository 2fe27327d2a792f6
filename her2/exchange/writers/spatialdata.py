"""Features out: SpatialData, one `.zarr` for each slide: tiles as shapes, features as their table.

The layout is that which spatialdata 0.7.3 writes (container version 0.2, shapes 0.3, tables 0.2;
https://spatialdata.scverse.org/en/stable/design_doc.html): Zarr version 3, shapes as GeoParquet
1.1.0, the table in anndata's format. It is written with the libraries that her2 has, since
spatialdata cannot be installed beside Snakemake; tests/unit/test_export_spatialdata.py says how
spatialdata itself was asked to read it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from her2 import __version__
from her2.exchange.outgoing import Outgoing
from her2.exchange.slide_features import SlideFeatures
from her2.exchange.writers import Writer
from her2.exchange.writers._anndata import X_ATTRIBUTES, one_category, write_elements

_SHAPES, _TABLE = "tiles", "features"
_POLYGON = np.dtype(
    [("order", "u1"), ("kind", "<u4"), ("rings", "<u4"), ("points", "<u4"), ("xy", "<f8", (5, 2))]
)
"""A polygon with one ring of five points in little-endian WKB."""


def _files(outgoing: Outgoing, slide: SlideFeatures) -> dict[str, str]:
    return {"features": f"{slide.slide_id}.zarr"}


def _write(outgoing: Outgoing, slide: SlideFeatures, paths: Mapping[str, Path]) -> None:
    import zarr

    folder = paths["features"]
    own = {"version": "0.2", "spatialdata_software_version": f"her2 {__version__}"}
    root = zarr.create_group(folder, zarr_format=3, attributes={"spatialdata_attrs": own})
    root.create_group("shapes").create_group(_SHAPES, attributes=_shape_attributes(slide))
    _write_squares(slide, folder / "shapes" / _SHAPES / "shapes.parquet")
    table = root.create_group("tables").create_group(_TABLE)
    link = {"region": _SHAPES, "region_key": "region", "instance_key": "tile"}
    write_elements(
        table,
        outgoing,
        slide,
        obs={
            "region": one_category(_SHAPES, len(slide.store)),
            "tile": np.arange(len(slide.store)),
        },
        uns={"spatialdata_attrs": link},
    )
    table.attrs.update(
        {"spatialdata-encoding-type": "ngff:regions_table", "version": "0.2", **link}
    )
    _write_features(table, slide)


def _write_features(table: Any, slide: SlideFeatures) -> None:
    array = table.create_array(
        "X",
        shape=slide.shape,
        dtype=slide.dtype,
        chunks=(min(slide.block_rows, slide.shape[0]), slide.shape[1]),
        attributes=X_ATTRIBUTES,
    )
    start = 0
    for block in slide.blocks():
        array[start : start + len(block)] = block
        start += len(block)


def _shape_attributes(slide: SlideFeatures) -> dict[str, Any]:
    """Return the attributes of the shapes, in level-0 px, which um/px turns into um."""
    scale = {"type": "scale", "scale": list(slide.slide_mpp)}
    return {
        "encoding-type": "ngff:shapes",
        "axes": ["x", "y"],
        "coordinateTransformations": [
            {"type": "identity", "input": _axes("xy"), "output": _axes("global")},
            {**scale, "input": _axes("xy"), "output": _axes("um")},
        ],
        "spatialdata_attrs": {"version": "0.3"},
    }


def _axes(name: str) -> dict[str, Any]:
    axes = [{"name": axis, "type": "space", "unit": "unit"} for axis in ("x", "y")]
    return {"name": name, "axes": axes}


def _write_squares(slide: SlideFeatures, path: Path) -> None:
    """Write the tiles as polygons in level-0 px, in the order of the features."""
    start = slide.coords.astype(np.float64)
    end = start + np.array(slide.level0_tile)
    (left, top), (right, bottom) = start.T, end.T
    squares = np.zeros(len(start), _POLYGON)
    squares["order"], squares["kind"], squares["rings"], squares["points"] = 1, 3, 1, 5
    squares["xy"][:, :, 0] = np.stack([right, right, left, left, right], axis=1)
    squares["xy"][:, :, 1] = np.stack([top, bottom, bottom, top, top], axis=1)
    box = [float(value) for value in (left.min(), top.min(), right.max(), bottom.max())]
    geo = {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {
            "geometry": {
                "encoding": "WKB",
                "crs": None,
                "geometry_types": ["Polygon"],
                "bbox": box,
            }
        },
    }
    schema = pa.schema([pa.field("geometry", pa.binary())], metadata={"geo": json.dumps(geo)})
    column = pa.array([square.tobytes() for square in squares], pa.binary())
    pq.write_table(pa.Table.from_arrays([column], schema=schema), path)


def _losses(outgoing: Outgoing, slide: SlideFeatures) -> list[str]:
    return []


def _advice(outgoing: Outgoing, slides: Sequence[str], out: Path) -> tuple[str, ...]:
    return (
        f"spatialdata 0.7 or later: spatialdata.read_zarr('{out}/SLIDE.zarr')",
        "  coordinate systems: 'global' (level-0 px) and 'um'",
    )


WRITER = Writer(
    name="spatialdata",
    words="SpatialData: a .zarr for each slide, tiles as shapes with a table of features",
    files=_files,
    write=_write,
    losses=_losses,
    advice=_advice,
    needs=("coords", "level0_tile", "slide_mpp"),
    package="anndata",
)
