"""The stored facts about a slide keep their form, so that old caches and results can be read.

The forms are those of version 0.1.0 with its four filters; another filter adds its own columns.
"""

import json

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest

from her2.cohort.audit import tabulate_cohort
from her2.cohort.manifest import Cohort, SlideRow
from her2.config import TilingSection
from her2.config.jobs import CohortSpec, TileSpec, dump
from her2.core.errors import UserError
from her2.core.files import canonical_json, digest
from her2.filters.base import AreaFilter
from her2.filters.registry import FILTERS, LISTED
from her2.storage.cache import Cache
from her2.storage.entries import TileEntry, read_entries, write_entries
from her2.storage.tiles import TileTable, read_table, write_table
from her2.tiling.stage import tile_bucket, tile_identity
from tests.unit.tile_makers import slide_facts, tile_grid

FIRST = ("border", "pen", "fold", "blur")
SINCE = [one for one in LISTED if one.name not in FIRST]
"""Filters that came later."""

METADATA = (
    '{"blur_reads": 54, "border": 0.09, "fingerprint": "4cd5220c", "fold": 0.0376, '
    '"height_px": 1200, "level0_height": 96.0, "level0_width": 96.5, "mpp_source": "metadata", '
    '"mpp_x": 0.5, "mpp_y": 0.25, "not_drawn": 3, "pen": 0.0778, "read_level": 1, "regions": null, '
    '"rejected": {"blur": 16, "border": 10, "fold": 9, "pen": 6}, "target_mpp": 0.5, '
    '"tile_px": 96, "tissue_mm2": 0.2655, "tissue_source": "detected", "vendor": "generic-tiff", '
    '"width_px": 1100}'
)
"""Of a tile table, as its file has it."""
TILED = {
    "border": 0.09, "fingerprint": "4cd5220c", "fold": 0.0376, "height_px": 1200, "key": "cd12",
    "mpp_source": "metadata", "mpp_x": 0.5, "mpp_y": 0.25, "not_drawn": 3, "pen": 0.0778,
    "reason": None, "regions": 2, "rejected_blur": 16, "rejected_border": 10, "rejected_fold": 9,
    "rejected_pen": 6, "status": "ok", "tiles": 79, "tissue_mm2": 0.2655,
    "tissue_source": "mask file", "vendor": "generic-tiff", "width_px": 1100,
}  # fmt: skip
FAILED = {
    "border": None, "fingerprint": None, "fold": None, "height_px": None, "key": None,
    "mpp_source": None, "mpp_x": None, "mpp_y": None, "not_drawn": 0, "pen": None,
    "reason": "not a slide", "regions": None, "rejected_blur": 0, "rejected_border": 0,
    "rejected_fold": 0, "rejected_pen": 0, "status": "failed", "tiles": 0, "tissue_mm2": None,
    "tissue_source": None, "vendor": None, "width_px": None,
}  # fmt: skip
COLUMNS = [
    "slide_id", "patient_id", "label_her2", "site", "scanner", "split", "annotation", "mask",
    "grid", "status", "reason", "key", "tiles", "fingerprint", "vendor", "width_px", "height_px",
    "mpp_x", "mpp_y", "mpp_source", "tissue_mm2", "tissue_source", "regions", "pen", "fold",
    "border", "rejected_border", "rejected_pen", "rejected_fold", "rejected_blur", "not_drawn",
]  # fmt: skip
OPTIONS = {
    "annotation_classes": [], "annotation_origin": "level0", "blur_step_um": 500.0,
    "max_blur": 0.65, "max_border": 0.05, "max_enlargement": 1.1, "max_fold": 0.2, "max_pen": 0.05,
    "max_tiles": None, "min_tiles": 4, "min_tissue": 0.5, "min_tissue_um": 100.0, "overlap": 0.0,
    "thumbnail_mpp": 8.0,
}  # fmt: skip
SPEC = TileSpec(bucket="0000-of-0001", rows="r", mpp=0.5, size=96, tiling=TilingSection())


def of_later_filters() -> dict[str, object]:
    shares = {one.name: None for one in SINCE if isinstance(one, AreaFilter)}
    return shares | {f"rejected_{one.name}": 0 for one in SINCE}


def test_a_tile_table_of_before_is_read_and_would_be_written_alike(tmp_path):
    table = pa.table(
        {
            "x": pa.array([0, 96], pa.int32()),
            "y": pa.array([5, 7], pa.int32()),
            **{
                name: pa.array([0.5, 0.25], pa.float32())
                for name in ("tissue", *FIRST, "annotated", "blur_read")
            },
        }
    )
    pa.parquet.write_table(
        table.replace_schema_metadata({"her2": METADATA, "her2.key": "k"}), tmp_path / "old"
    )
    found = read_table(tmp_path / "old")
    assert (found.facts.width_px, found.facts.mpp_y, found.facts.not_drawn) == (1100, 0.25, 3)
    assert found.facts.shares == {"pen": 0.0778, "fold": 0.0376, "border": 0.09}
    assert found.facts.rejected == {"blur": 16, "border": 10, "fold": 9, "pen": 6}
    assert (found.grid.level0_width, found.grid.read_level) == (96.5, 1)
    assert found.reads == {"blur": 54}
    write_table(tmp_path / "new", found, "k")
    again = pa.parquet.read_table(tmp_path / "new")
    assert again.schema.metadata[b"her2"].decode() == METADATA
    assert again.equals(table)


def test_a_table_without_a_fact_is_no_tile_table(tmp_path):
    table = TileTable(
        np.zeros((1, 2), np.int32), np.ones(1, np.float32), slide_facts(), tile_grid(9)
    )
    for missing in ("fingerprint", "tile_px"):
        write_table(tmp_path / "t", table, "k")
        raw = pa.parquet.read_table(tmp_path / "t")
        values = json.loads(raw.schema.metadata[b"her2"])
        del values[missing]
        raw = raw.replace_schema_metadata({"her2": json.dumps(values)})
        pa.parquet.write_table(raw, tmp_path / "t")
        with pytest.raises(UserError, match=f"is not a tile table .*{missing}"):
            read_table(tmp_path / "t")


def test_entries_of_before_are_read_and_written_to_the_same_bytes(tmp_path):
    text = json.dumps({"a": TILED, "b": FAILED}, sort_keys=True, indent=1) + "\n"
    (tmp_path / "old.json").write_text(text)
    found = read_entries(tmp_path / "old.json", TileEntry)
    assert found["b"] == TileEntry("failed", "not a slide")
    assert (found["a"].tiles, found["a"].facts.regions, found["a"].facts.vendor) == (
        79, 2, "generic-tiff",
    )  # fmt: skip
    write_entries(tmp_path / "new.json", found)
    again = json.loads((tmp_path / "new.json").read_text())
    later = of_later_filters()
    assert again == {"a": TILED | later, "b": FAILED | later}
    if not SINCE:
        assert (tmp_path / "new.json").read_text() == text
    assert read_entries(tmp_path / "new.json", TileEntry) == found


@pytest.mark.parametrize("change", [{"dimension": 4}, {"status": ...}, {"width_px": ...}])
def test_entries_of_another_kind_are_refused(tmp_path, change):
    values = {key: value for key, value in (TILED | change).items() if value is not ...}
    (tmp_path / "e.json").write_text(json.dumps({"a": values}))
    with pytest.raises(UserError, match="is not a readable"):
        read_entries(tmp_path / "e.json", TileEntry)


def test_the_table_of_the_cohort_has_the_columns_it_had(tmp_path):
    entries = {"a": TileEntry.of_columns(TILED), "b": TileEntry.of_columns(FAILED)}
    write_entries(tmp_path / "tiles" / "g" / "0000-of-0001.json", entries)
    rows = tuple(SlideRow(name, f"{name}.svs", f"p{name}", {"her2": "0"}) for name in "ab")
    spec = CohortSpec(rows="", buckets=("0000-of-0001",), grids=("g",), labels=("her2",))
    table = tabulate_cohort(spec, Cohort(rows, tmp_path), tmp_path / "tiles", tmp_path / "cohort")
    later = of_later_filters()
    assert [name for name in table.columns if name not in later] == COLUMNS
    row = table.filter(pl.col("slide_id") == "a").row(0, named=True)
    assert {name: row[name] for name in TILED} == TILED


def test_the_spec_and_the_key_of_tiles_are_what_they_were(tmp_path):
    """Otherwise every slide in every cache would be tiled again."""
    tiling = OPTIONS | {key: o.default for one in SINCE for key, o in one.keys.items()}
    spec = {"bucket": "0000-of-0001", "mpp": 0.5, "rows": "r", "seed": None, "size": 96,
            "tiling": tiling, "version": 2}  # fmt: skip
    assert dump(SPEC) == canonical_json(spec)
    row = SlideRow("a", "a.svs", "p", {})
    expected = {
        "stage": "tile", "version": 2, "fingerprint": "f" * 64, "manifest_mpp": None,
        "target": [0.5, 96], "tiling": {k: v for k, v in tiling.items() if k != "min_tiles"},
        "seed": None, "annotation": None, "mask": None,
    }  # fmt: skip
    found = digest(tile_identity(SPEC, Cohort((row,), tmp_path), row, None, content="f" * 64))
    assert found == digest(expected)


def test_a_reason_is_the_same_from_the_cache(tmp_path, write_slide):
    """Rejected tiles are listed in the order in which filters run, not in that of the file."""
    image = np.full((768, 768, 3), (205, 135, 180), np.uint8)
    image[:, 330:390] = (38, 62, 168)
    image += np.random.default_rng(1).integers(0, 30, image.shape, np.uint8)
    write_slide(tmp_path / "a.tif", image, mpp=(0.5, 0.5))
    cohort = Cohort((SlideRow("a", "a.tif", "p", {}),), tmp_path)
    limits = {"min_tiles": 1000, "max_pen": 0, "max_blur": 0.05, "blur_step_um": 0}
    tiling = TilingSection.model_validate(limits)
    spec = SPEC.model_copy(update={"tiling": tiling})
    output = tmp_path / "tiles" / "0000-of-0001.json"
    contents = []
    for _ in range(2):
        entry = tile_bucket(spec, cohort, Cache(tmp_path / "cache"), output)["a"]
        contents.append(output.read_bytes())
    words = [
        f"{entry.facts.rejected[one.name]} for {one.name}"
        for one in FILTERS
        if entry.facts.rejected[one.name]
    ]
    assert len(words) > 1
    assert f"(rejected: {', '.join(words)})" in entry.reason
    assert contents[0] == contents[1]
