"""The files of a heatmap for other programs: Parquet, GeoJSON as QuPath reads it, OME-TIFF."""

import json
import re
from pathlib import Path

import geojson
import numpy as np
import openslide
import polars as pl
import pyarrow.parquet
import pytest
import shapely
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from her2.explanation.drawing import _thumbnail
from her2.explanation.exports import (
    METADATA_KEY,
    OME_SIDE_PX,
    rectangles,
    write_geojson,
    write_ome_tiff,
    write_parquet,
)
from her2.explanation.held_out import HeldOutSlide
from her2.explanation.tiles import SlideTiles
from her2.slides.annotations import read_regions
from her2.slides.slide import Scale, Slide
from her2.storage.facts import StoredSlide
from her2.storage.features import read_coords
from tests.unit.heatmap_makers import (
    FORMATS,
    MPP,
    SIDE_PX,
    TASK,
    TILE_PX,
    World,
    make_world,
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, drawn_slide: Path) -> World:
    """Two slides, by a head that has contributions and a map a class."""
    world = make_world(tmp_path_factory.mktemp("files"), drawn_slide)
    world.train(maps=("attention", "contribution"))
    world.draw(slides=2, formats=FORMATS)
    return world


def names(world: World) -> list[str]:
    rows = json.loads((world.folder / "heatmaps.json").read_text())
    return [row["slide_id"] for row in rows]


def some_tiles(count: int, level0_tile: tuple[float, float], seed: int = 0) -> SlideTiles:
    """Tiles on a row of a slide of 0.2431 um/px."""
    generator = np.random.default_rng(seed)
    width, height = level0_tile
    columns, rows = np.arange(count) % 200, np.arange(count) // 200
    return SlideTiles(
        of=HeldOutSlide("slide-1", "p1", "1+", 0, 2),
        class_names=("0", "1+"),
        coords=np.stack([np.rint(columns * width), np.rint(rows * height)], 1).astype(np.int32),
        slide=StoredSlide("f", (0.2431, 0.2431), "metadata", level0_tile, (100_000, 80_000)),
        encoder_px=96,
        attention=generator.dirichlet(np.ones(count)).astype(np.float32),
        maps={"contribution_1+": generator.normal(size=count).astype(np.float32)},
        probabilities=(0.25, 0.75),
        shown="contribution_1+",
        model={"model": "k", "repeat": 0, "fold": 2},
    )


class TestParquet:
    def test_its_rows_are_the_store_s_tiles_and_the_model_s_attention(self, drawn: World) -> None:
        for name in names(drawn):
            table = pl.read_parquet(drawn.folder / f"slides/{name}.parquet")
            store = drawn.cache.path("features", drawn.entries[name].key)
            np.testing.assert_array_equal(
                table.select("x_level0_px", "y_level0_px").to_numpy(), read_coords(store)
            )
            assert set(table["width_level0_px"]) == set(table["height_level0_px"]) == {TILE_PX}
            attention = drawn.attention(name)
            np.testing.assert_array_equal(table["attention"].to_numpy(), attention)
            np.testing.assert_allclose(table["attention_times_tiles"].mean(), 1, rtol=1e-5)
            order = table["attention_rank"].to_numpy().argsort()
            assert (order == attention.argsort()).all()
            assert (table["attention_rank"].min(), table["attention_rank"].max()) == (0, 1)

    def test_it_has_the_maps_of_every_class(self, drawn: World) -> None:
        import safetensors.numpy

        for name in names(drawn):
            table = pl.read_parquet(drawn.folder / f"slides/{name}.parquet")
            maps = safetensors.numpy.load_file(drawn.model(name) / "maps.safetensors")
            for kind in ("attention", "contribution"):
                columns = [f"{kind}_{label}" for label in TASK.class_names]
                np.testing.assert_array_equal(
                    table.select(columns).to_numpy(), maps[f"{kind}/{name}"]
                )

    def test_its_metadata_say_which_slide_which_model_and_that_it_is_synthetic(
        self, drawn: World
    ) -> None:
        name = names(drawn)[0]
        schema = pyarrow.parquet.read_schema(drawn.folder / f"slides/{name}.parquet")
        facts = json.loads(schema.metadata[METADATA_KEY])
        assert facts["slide_id"] == name
        assert facts["fold"] == drawn.test_fold(name)
        assert facts["model"] == drawn.keys[facts["fold"]]
        assert facts["mpp"] == [MPP, MPP]
        assert facts["class_names"] == ["negative", "positive"]
        assert re.fullmatch("[0-9a-f]{64}", facts["fingerprint"])
        assert facts["synthetic"] is True
        assert facts["warning"] == "Attention is not HER2 staining"

    def test_the_tiles_keep_their_exact_size(self, tmp_path: Path) -> None:
        write_parquet(some_tiles(3, (394.9, 395.1)), tmp_path / "x.parquet", {})
        table = pl.read_parquet(tmp_path / "x.parquet")
        assert table.row(1)[:4] == (395, 0, 394.9, 395.1)


class TestGeoJSON:
    def test_it_is_valid_and_its_polygons_are_the_tiles_of_the_parquet(self, drawn: World) -> None:
        for name in names(drawn):
            text = (drawn.folder / f"slides/{name}.geojson").read_text(encoding="utf-8")
            found = geojson.loads(text)
            assert isinstance(found, geojson.FeatureCollection)
            assert found.is_valid
            table = pl.read_parquet(drawn.folder / f"slides/{name}.parquet")
            assert len(found.features) == len(table)
            for feature, row in zip(found.features, table.iter_rows(named=True), strict=True):
                x, y = row["x_level0_px"], row["y_level0_px"]
                expected = shapely.box(
                    x, y, x + row["width_level0_px"], y + row["height_level0_px"]
                )
                polygon = shapely.geometry.shape(feature.geometry)
                assert polygon.is_valid
                assert polygon.equals(expected)

    def test_shapely_reads_the_file_by_itself(self, drawn: World) -> None:
        name = names(drawn)[0]
        text = (drawn.folder / f"slides/{name}.geojson").read_text(encoding="utf-8")
        area = shapely.unary_union(shapely.from_geojson(text))
        assert area.equals(shapely.box(0, 0, SIDE_PX, SIDE_PX))  # its tiles cover the slide

    def test_its_measurements_are_the_stored_values_to_the_last_bit(self, drawn: World) -> None:
        for name in names(drawn):
            path = drawn.folder / f"slides/{name}"
            features = json.loads(path.with_suffix(".geojson").read_text())["features"]
            table = pl.read_parquet(path.with_suffix(".parquet")).drop(pl.col("^.*_level0_px$"))
            assert "contribution_positive" in table.columns
            for column in table.columns:
                measured = [item["properties"]["measurements"][column] for item in features]
                np.testing.assert_array_equal(np.float32(measured), table[column].to_numpy())
            assert {len(f["properties"]["measurements"]) for f in features} == {table.width}

    def test_qupath_reads_its_objects_as_tiles(self, drawn: World) -> None:
        """QuPath's PathObjectTypeAdapter: `objectType`, and `measurements` as name -> number."""
        text = (drawn.folder / f"slides/{names(drawn)[0]}.geojson").read_text()
        for feature in json.loads(text)["features"]:
            assert feature["type"] == "Feature"
            assert set(feature["properties"]) == {"objectType", "measurements"}
            assert feature["properties"]["objectType"] == "tile"
            ring = feature["geometry"]["coordinates"][0]
            assert all(isinstance(value, int) for point in ring for value in point)

    def test_it_is_not_taken_for_an_annotation(self, drawn: World) -> None:
        assert read_regions(drawn.folder / f"slides/{names(drawn)[0]}.geojson") == ()

    def test_it_counts_from_the_corner_of_the_scanned_area_as_qupath_does(
        self, tmp_path: Path, drawn_slide: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Mirax(Slide):
            def __init__(self, path: Path) -> None:
                super().__init__(path)
                self.bounds_corner_px = (100, 30)

        monkeypatch.setattr("her2.explanation.drawing.Slide", Mirax)
        world = make_world(tmp_path, drawn_slide)
        row = world.draw(slides=1, formats=("png", "geojson"))[0]
        found = json.loads((world.folder / row["files"][0]).read_text())
        first = found["features"][0]["geometry"]["coordinates"][0][0]
        assert first == (world.coords()[0] - [100, 30]).tolist()
        assert found["her2"]["origin_level0_px"] == [100, 30]

    @settings(max_examples=20)
    @given(
        width=st.floats(5, 2000),
        height=st.floats(5, 2000),
        x=st.integers(-5000, 5000),
        y=st.integers(-5000, 5000),
    )
    def test_tiles_of_any_size_move_with_the_origin_and_are_rounded_by_half_a_pixel(
        self, tmp_path_factory: pytest.TempPathFactory, width: float, height: float, x: int, y: int
    ) -> None:
        path = tmp_path_factory.mktemp("x") / "x.geojson"
        tiles = some_tiles(4, (width, height))
        write_geojson(tiles, path, {}, origin_px=(x, y))
        found = json.loads(path.read_text())
        assert found["her2"]["origin_level0_px"] == [x, y]
        for feature, corners in zip(found["features"], tiles.corners(), strict=True):
            bounds = np.array(shapely.geometry.shape(feature["geometry"]).bounds)
            assert np.abs(bounds + np.array([x, y, x, y]) - corners).max() <= 0.5

    def test_a_name_of_a_class_may_hold_anything(self, tmp_path: Path) -> None:
        tiles = some_tiles(2, (10.0, 10.0))
        hostile = 'contribution_"</script>\u00e9\\'
        tiles.maps[hostile] = np.array([-1, np.float32(1e-30)], np.float32)
        write_geojson(tiles, tmp_path / "x.geojson", {}, origin_px=(0, 0))
        features = json.loads((tmp_path / "x.geojson").read_text(encoding="utf-8"))["features"]
        values = [item["properties"]["measurements"][hostile] for item in features]
        np.testing.assert_array_equal(np.float32(values), tiles.maps[hostile])

    def test_fifty_thousand_tiles_are_a_few_megabytes(self, tmp_path: Path) -> None:
        tiles = some_tiles(50_000, (395.0, 395.0))
        write_geojson(tiles, tmp_path / "x.geojson", {}, origin_px=(0, 0))
        assert (tmp_path / "x.geojson").stat().st_size < 400 * len(tiles)
        features = json.loads((tmp_path / "x.geojson").read_text())["features"]
        assert len(features) == len(tiles)
        ring = features[-1]["geometry"]["coordinates"][0]
        assert [*ring[0], *ring[2]] == rectangles(tiles)[-1].tolist()


class TestOmeTiff:
    def test_tifffile_reads_a_pyramid_with_um_per_px(self, drawn: World) -> None:
        for name in names(drawn):
            with tifffile.TiffFile(drawn.folder / f"slides/{name}.ome.tiff") as tiff:
                assert tiff.is_ome
                series = tiff.series[0]
                assert [level.shape[0] for level in series.levels] == [SIDE_PX, SIDE_PX // 2]
                assert len(series.keyframe.subifds) == 1
                assert series.keyframe.is_tiled
                assert series.keyframe.compression == tifffile.COMPRESSION.JPEG
                about = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
            assert about["Name"] == name
            assert "Attention is not HER2 staining" in about["Description"]
            assert "Synthetic" in about["Description"]
            pixels = about["Pixels"]
            assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeXUnit"]) == (MPP, "\u00b5m")
            assert (pixels["PhysicalSizeY"], pixels["PhysicalSizeYUnit"]) == (MPP, "\u00b5m")

    def test_openslide_opens_it_with_the_same_um_per_px(self, drawn: World) -> None:
        for name in names(drawn):
            path = drawn.folder / f"slides/{name}.ome.tiff"
            with openslide.OpenSlide(path) as opened:
                assert opened.dimensions == (SIDE_PX, SIDE_PX)
                for axis in ("x", "y"):
                    assert float(opened.properties[f"openslide.mpp-{axis}"]) == pytest.approx(MPP)
            with Slide(path) as ours:
                assert ours.scale().mpp_x == pytest.approx(MPP)

    def test_its_brightest_tile_is_the_most_attended(self, drawn: World, drawn_slide: Path) -> None:
        name = names(drawn)[0]
        painted = tifffile.imread(drawn.folder / f"slides/{name}.ome.tiff").astype(float)
        with Slide(drawn_slide) as opened:
            tissue = opened.thumbnail(MPP, opened.scale()).astype(float)
        colour = (painted - 0.45 * tissue) / 0.55  # the tissue taken off again
        means = [
            (
                colour[y + 8 : y + TILE_PX - 8, x + 8 : x + TILE_PX - 8] @ [0.299, 0.587, 0.114]
            ).mean()
            for x, y in drawn.coords()
        ]
        assert int(np.argmax(means)) == drawn.best[name]

    def test_axes_of_unequal_scale_keep_it_on_every_level(self, tmp_path: Path) -> None:
        picture = np.random.default_rng(0).integers(0, 256, (1201, 1803, 3)).astype(np.uint8)
        path = tmp_path / "x.ome.tiff"
        write_ome_tiff(picture, path, scale=Scale(5.37, 5.41, "x"), name="x", about="y")
        with tifffile.TiffFile(path) as tiff:
            for level in tiff.series[0].levels:
                page = level.keyframe
                per_cm = [a / b for a, b in (page.tags[t].value for t in (282, 283))]
                height, width = page.shape[:2]
                assert width * 1e4 / per_cm[0] == pytest.approx(1803 * 5.37, rel=1e-5)
                assert height * 1e4 / per_cm[1] == pytest.approx(1201 * 5.41, rel=1e-5)
            assert len(tiff.series[0].levels) == 3

    def test_a_large_slide_gives_a_picture_of_bounded_size(self) -> None:
        class Large:
            asked: float

            def thumbnail(self, mpp: float, scale: Scale) -> np.ndarray:
                self.asked = mpp
                return np.zeros((1, 1, 3), np.uint8)

        opened = Large()
        tiles = some_tiles(3, (395.0, 395.0))
        _thumbnail(opened, tiles, OME_SIDE_PX)
        assert 100_000 * 0.2431 / opened.asked == pytest.approx(OME_SIDE_PX)
