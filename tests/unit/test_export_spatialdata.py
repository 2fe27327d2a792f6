"""The layout of a SpatialData export.

spatialdata pins a library that Snakemake pins too, so it cannot be installed here. In an
environment of its own, spatialdata 0.7.3 read exports of this form with `read_zarr`, transformed
the shapes to um, joined them with their table, cut both by a bounding box, and wrote them again.
What these tests expect is what that version writes itself, file by file.
"""

import json
from pathlib import Path

import anndata
import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely

from her2.exchange.export import export_features
from tests.unit.export_makers import Made, make


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, Path]:
    root = tmp_path_factory.mktemp("spatialdata")
    made = make(root, mpp=(0.2525, 0.25))
    export_features(made.root, root / "out", "spatialdata", slides=["A-1"])
    return made, root / "out" / "A-1.zarr"


def attributes(path: Path) -> dict:
    found = json.loads((path / "zarr.json").read_text())
    assert (found["zarr_format"], found["node_type"]) == (3, "group")
    return found["attributes"]


def axes(name: str) -> dict:
    return {
        "name": name,
        "axes": [{"name": axis, "type": "space", "unit": "unit"} for axis in ("x", "y")],
    }


def test_the_groups_have_the_versions_and_transformations_of_spatialdata(
    exported: tuple[Made, Path],
) -> None:
    folder = exported[1]
    assert attributes(folder)["spatialdata_attrs"]["version"] == "0.2"
    assert attributes(folder / "shapes") == attributes(folder / "tables") == {}
    to_um = {"type": "scale", "scale": [0.2525, 0.25], "input": axes("xy"), "output": axes("um")}
    assert attributes(folder / "shapes" / "tiles") == {
        "encoding-type": "ngff:shapes",
        "axes": ["x", "y"],
        "coordinateTransformations": [
            {"type": "identity", "input": axes("xy"), "output": axes("global")},
            to_um,
        ],
        "spatialdata_attrs": {"version": "0.3"},
    }
    assert attributes(folder / "tables" / "features") == {
        "encoding-type": "anndata",
        "encoding-version": "0.1.0",
        "spatialdata-encoding-type": "ngff:regions_table",
        "region": "tiles",
        "region_key": "region",
        "instance_key": "tile",
        "version": "0.2",
    }


def test_shapes_are_the_squares_of_the_tiles_as_geoparquet(exported: tuple[Made, Path]) -> None:
    made, folder = exported
    table = pq.read_table(folder / "shapes" / "tiles" / "shapes.parquet")
    found = shapely.from_wkb(table["geometry"].to_pylist())
    width, height = 128 / 0.2525, 512
    corners = made.coords["A-1"].astype(float)
    expected = [shapely.box(x, y, x + width, y + height) for x, y in corners]
    assert shapely.equals_exact(found, expected).all()
    geo = json.loads(table.schema.metadata[b"geo"])
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    column = geo["columns"]["geometry"]
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Polygon"])
    np.testing.assert_array_equal(column["bbox"], shapely.total_bounds(found))


def test_the_table_annotates_each_shape_by_its_position(exported: tuple[Made, Path]) -> None:
    made, folder = exported
    found = anndata.read_zarr(folder / "tables" / "features")
    np.testing.assert_array_equal(found.X, made.features["A-1"])
    assert found.obs["tile"].to_list() == [0, 1, 2, 3, 4]
    assert set(found.obs["region"]) == {"tiles"}
    assert dict(found.uns["spatialdata_attrs"]) == {
        "region": "tiles", "region_key": "region", "instance_key": "tile",
    }  # fmt: skip
    assert json.loads(found.uns["her2"]["export"])["slide_id"] == "A-1"
