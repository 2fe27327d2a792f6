import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from her2.config import HeatmapSection
from her2.core.errors import UserError
from her2.core.plot_style import FigureContext
from her2.explanation.heatmap import (
    draw_picture,
    length_words,
    overlay,
    panels,
    picture_scale,
    scale_bar_um,
)
from her2.explanation.held_out import HeldOutSlide, find_held_out
from her2.explanation.listing import read_heatmaps
from her2.explanation.strips import times_words
from her2.explanation.tiles import SlideTiles, ranks
from her2.slides.slide import Slide
from her2.storage.entries import FeatureEntry, write_entries
from her2.storage.facts import StoredSlide
from tests.unit.heatmap_makers import (
    BUCKET,
    MPP,
    PER_SIDE,
    SIDE_PX,
    TILE_PX,
    TILES,
    World,
    make_world,
)
from tests.unit.products import reseal


@pytest.fixture
def world(tmp_path: Path, drawn_slide: Path) -> World:
    return make_world(tmp_path, drawn_slide)


@dataclass
class Drawn:
    """All slides drawn once, in all formats; tests of it change nothing."""

    world: World
    rows: dict[str, dict[str, object]]
    scores: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, drawn_slide: Path) -> Drawn:
    world = make_world(tmp_path_factory.mktemp("drawn"), drawn_slide)
    rows = world.draw(slides=99, formats=("png", "parquet", "geojson", "ome_tiff"))
    assert read_heatmaps(world.folder / "heatmaps.json") == rows
    return Drawn(world, {row["slide_id"]: row for row in rows}, read_scores(world))


def read_scores(world: World) -> dict[str, dict[str, Any]]:
    return {row["label"]: row for row in json.loads((world.folder / "tiles.json").read_text())}


def brightness(picture: np.ndarray) -> np.ndarray:
    return picture.astype(float) @ np.array([0.299, 0.587, 0.114])


def grid(side: int, count: int) -> np.ndarray:
    """Boxes (count * count, 4) that cover a square of `side` px, row by row."""
    corners = np.array([(x, y) for y in range(count) for x in range(count)]) * (side // count)
    return np.concatenate([corners, corners + side // count], axis=1).astype(float)


def some_tiles(
    attention: np.ndarray,
    maps: dict[str, np.ndarray] | None = None,
    shown: str | None = None,
    names: tuple[str, str] = ("negative", "positive"),
    size_px: tuple[int, int] = (9000, 9000),
) -> SlideTiles:
    """Nine tiles of 1000 x 1000 level-0 px at the top left of a slide."""
    return SlideTiles(
        of=HeldOutSlide("slide-1", "p1", "positive", 0, 2),
        class_names=names,
        coords=np.array([(x, y) for y in range(3) for x in range(3)], np.int32) * 1000,
        slide=StoredSlide("f", (0.25, 0.5), "metadata", (1000.0, 1000.0), size_px),
        encoder_px=96,
        attention=np.asarray(attention, np.float32),
        maps=maps or {},
        probabilities=(0.25, 0.75),
        shown=shown,
        model={"model": "k", "repeat": 0, "fold": 2},
    )


class TestOverlay:
    @settings(max_examples=30)
    @given(best=st.integers(0, 8), seed=st.integers(0, 1000))
    def test_the_tile_of_most_attention_is_the_brightest_and_in_its_place(
        self, best: int, seed: int
    ) -> None:
        values = np.random.default_rng(seed).random(9).astype(np.float32)
        values[best] = 2
        painted = overlay(np.full((90, 90, 3), 200, np.uint8), grid(90, 3), ranks(values))
        row, column = divmod(int(brightness(painted).argmax()), 90)
        assert (row // 30, column // 30) == divmod(best, 3)

    @settings(max_examples=30)
    @given(seed=st.integers(0, 1000))
    def test_more_attention_is_brighter_on_equal_tissue(self, seed: int) -> None:
        values = np.random.default_rng(seed).permutation(9).astype(np.float32)
        painted = overlay(np.full((90, 90, 3), 200, np.uint8), grid(90, 3), ranks(values))
        centres = brightness(painted)[15::30, 15::30].ravel()
        assert centres.argsort().tolist() == values.argsort().tolist()

    def test_colours_are_viridis_in_rgb_from_least_to_most(self) -> None:
        black = np.zeros((2, 4, 3), np.uint8)
        painted = overlay(black, np.array([[0, 0, 2, 2], [2, 0, 4, 2]], float), np.array([0, 1.0]))
        # The ends of matplotlib's viridis, (68, 1, 84) and (253, 231, 37), over 45 % of black.
        assert painted[0, 0] == pytest.approx(0.55 * np.array([68, 1, 84]), abs=1.5)
        assert painted[0, 3] == pytest.approx(0.55 * np.array([253, 231, 37]), abs=1.5)

    def test_what_is_no_tile_keeps_its_colour(self) -> None:
        thumbnail = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
        painted = overlay(thumbnail, np.array([[8, 4, 20, 16]], float), np.ones(1))
        inside = np.zeros((40, 40), bool)
        inside[4:16, 8:20] = True
        np.testing.assert_array_equal(painted[~inside], thumbnail[~inside])
        assert (painted[inside] != thumbnail[inside]).any()


class TestRanks:
    def test_ranks_go_from_nought_to_one_and_ignore_the_size_of_attention(self) -> None:
        values = np.array([0.3, 0.1, 0.6], np.float32)
        assert ranks(values).tolist() == [0.5, 0, 1]
        np.testing.assert_array_equal(ranks(values), ranks(np.exp(9 * values)))

    def test_equal_attention_has_equal_rank(self) -> None:
        assert ranks(np.array([1, 0, 0, 0], np.float32)).tolist() == pytest.approx(
            [1] + [1 / 3] * 3
        )

    def test_a_lone_tile_is_neither_low_nor_high(self) -> None:
        assert ranks(np.ones(1, np.float32)).tolist() == [0.5]


class TestPanels:
    thumbnail = np.full((90, 90, 3), 230, np.uint8)

    def test_a_contribution_is_orange_for_its_class_and_purple_against_it(self) -> None:
        values = np.array([3, -3, 0, 0, 0, 0, 0, 0, 0], np.float32)
        tiles = some_tiles(np.arange(9), {"contribution_positive": values}, "contribution_positive")
        _, _, panel = panels(tiles, self.thumbnail, None, "")
        assert (panel.name, panel.title) == ("contribution", "Contribution to positive")
        for_it, against = (panel.image[5, x].astype(int) for x in (5, 15))
        assert for_it[0] > for_it[2] + 30
        assert against[2] > against[1] + 30
        red, green, blue = panel.image[5, 25].astype(int)
        assert max(red, green, blue) - min(red, green, blue) < 6  # nought has no colour

    def test_the_truth_is_the_last_panel_where_there_is_one(self) -> None:
        truth = np.zeros((90, 90), bool)
        truth[:, 45:] = True
        *_, last = panels(some_tiles(np.arange(9)), self.thumbnail, truth, "Annotated")
        assert (last.name, last.title) == ("truth", "Annotated")
        yellow = last.image[..., :2].mean(2) - last.image[..., 2]
        assert yellow[:, 45:].min() > yellow[:, :45].max() + 50

    def test_a_head_with_a_map_a_class_says_whose_map_is_shown(self) -> None:
        maps = {f"attention_{name}": np.ones(9) for name in ("negative", "positive")}
        found = panels(some_tiles(np.arange(9), maps), self.thumbnail, None, "")
        assert [panel.title for panel in found] == ["H&E", "Attention, map of positive"]

    def test_uniform_attention_is_said_and_has_no_bar(self) -> None:
        _, panel = panels(some_tiles(np.ones(9)), self.thumbnail, None, "")
        assert panel.title == "Attention: uniform"
        assert panel.bar is None


class TestPicture:
    @pytest.mark.parametrize("shape", [(640, 200), (200, 640), (400, 400)])
    @pytest.mark.parametrize("number", [2, 3])
    def test_nothing_is_cut_however_long_the_names_and_whatever_the_shape(
        self, tmp_path: Path, shape: tuple[int, int], number: int
    ) -> None:
        names = ("a" * 60, "W" * 60)
        maps = {f"contribution_{names[1]}": np.linspace(-1e-5, 2e-5, 9)}
        height, width = shape
        tiles = some_tiles(
            np.arange(9), maps, f"contribution_{names[1]}", names, (width * 40, height * 20)
        )
        thumbnail = np.full((*shape, 3), 90, np.uint8)
        draw_picture(
            panels(tiles, thumbnail, None, "")[:number],
            picture_scale(tiles, thumbnail),
            FigureContext(synthetic=True),
            headline=("W" * 128, "scored and " + "W" * 128),
            path=tmp_path / "x.png",
        )
        image = np.asarray(Image.open(tmp_path / "x.png").convert("L"))
        border = np.concatenate([image[:3].ravel(), image[-3:].ravel(), image[:, -3:].ravel()])
        assert border.min() == 255

    @settings(max_examples=50)
    @given(width=st.floats(20, 1e6))
    def test_the_scale_bar_is_a_round_length_of_a_tenth_to_a_quarter_of_the_width(
        self, width: float
    ) -> None:
        length = scale_bar_um(width)
        assert 0.1 * width * (1 - 1e-9) <= length <= 0.25 * width * (1 + 1e-9)
        assert f"{length:e}"[0] in "125"

    def test_lengths_are_in_um_below_a_millimetre(self) -> None:
        assert [length_words(v) for v in (200, 1000, 5000)] == ["200 \u00b5m", "1 mm", "5 mm"]

    def test_um_per_px_of_the_picture_are_exact_on_each_axis(self) -> None:
        tiles = some_tiles(np.arange(9), size_px=(9001, 7003))
        scale = picture_scale(tiles, np.zeros((70, 90, 3), np.uint8))
        assert scale.mpp_x == pytest.approx(9001 * 0.25 / 90)
        assert scale.mpp_y == pytest.approx(7003 * 0.5 / 70)


def test_every_slide_is_painted_by_the_fold_that_tested_it(drawn: Drawn) -> None:
    world = drawn.world
    assert sorted(drawn.rows) == sorted(set(world.entries) - {"u0-a"})
    for name, row in drawn.rows.items():
        assert row["fold"] == world.test_fold(name)
        # The other folds have attention of it as well, with its most on another tile.
        table = pl.read_parquet(world.folder / f"slides/{name}.parquet")
        assert table["attention"].arg_max() == world.best[name]


def test_a_model_that_did_not_hold_the_slide_out_is_never_asked(world: World) -> None:
    name = world.draw(slides=1)[0]["slide_id"]
    path = world.model(name) / "attention.parquet"
    pl.read_parquet(path).filter(pl.col("slide_id") != name).write_parquet(path)
    with pytest.raises(UserError, match=r"changed file attention\.parquet"):
        world.draw(slides=1)
    reseal(path.parent)
    with pytest.raises(UserError, match=f"{name}: has no attention"):
        world.draw(slides=1)


def test_attention_of_other_tiles_than_the_store_s_is_refused(world: World) -> None:
    name = world.draw(slides=1)[0]["slide_id"]
    path = world.model(name) / "attention.parquet"
    table = pl.read_parquet(path).with_columns(pl.col("attention").list.head(5))
    table.write_parquet(path)
    reseal(path.parent)
    with pytest.raises(UserError, match=rf"attention for 5 tiles but features of {TILES}"):
        world.draw(slides=1)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_slides_are_spread_over_the_classes(world: World, count: int) -> None:
    labels = [row["label"] for row in world.draw(slides=count)]
    assert len(labels) == count
    assert abs(labels.count("negative") - labels.count("positive")) <= 1
    assert labels == sorted(labels)


def test_the_same_job_makes_the_same_bytes(world: World) -> None:
    job = {"slides": 1, "formats": ("png", "parquet", "geojson", "ome_tiff")}
    first = world.draw(**job)
    files = {p: p.read_bytes() for p in world.folder.rglob("*") if p.is_file()}
    assert len(files) == 9
    assert world.draw(**job) == first
    assert {p: p.read_bytes() for p in world.folder.rglob("*") if p.is_file()} == files


def test_files_of_slides_that_an_earlier_run_drew_go_away(world: World) -> None:
    world.draw(slides=2, formats=("png", "geojson"))
    rows = world.draw(slides=1)
    names = {path.name for path in (world.folder / "slides").iterdir()}
    assert names == {f"{rows[0]['slide_id']}.png"}


def test_only_slides_with_features_are_drawn(world: World) -> None:
    lost = {name: FeatureEntry("excluded", "no tissue") for name in ("n0-a", "p1-a")}
    write_entries(world.root / "features" / f"{BUCKET}.json", world.entries | lost)
    found = find_held_out(
        world.spec(), world.cache, folds=world.root / "folds.parquet",
        models=world.root / "models", features=world.root / "features",
    )  # fmt: skip
    assert {held.slide_id for held in found.slides} == set(world.entries) - {"n0-a", "p1-a", "u0-a"}


def test_a_slide_that_is_gone_is_reported_and_the_others_are_drawn(world: World) -> None:
    first = world.draw(slides=2)[0]["slide_id"]
    world.lose(first)
    lost, other = world.draw(slides=2)
    assert lost == {"slide_id": first, "reason": "the file does not exist"}
    assert (world.folder / other["picture"]).exists()
    assert not list(world.folder.rglob(f"{first}.*"))


def test_the_list_names_what_is_there(drawn: Drawn) -> None:
    for name, row in drawn.rows.items():
        assert row["files"] == [
            f"slides/{name}{end}" for end in (".parquet", ".geojson", ".ome.tiff")
        ]
        for path in (row["picture"], row["tile_strip"], *row["files"]):
            assert (drawn.world.folder / path).stat().st_size > 0
        assert (row["tiles"], row["panels"]) == (TILES, ["thumbnail", "attention"])
        assert row["predicted"] == "positive"
        assert row["um_per_px"] == pytest.approx(SIDE_PX * MPP / 640)


@pytest.mark.parametrize("formats", [("png",), ("png", "geojson")])
def test_only_the_asked_formats_are_written_and_the_picture_always(
    world: World, formats: tuple[str, ...]
) -> None:
    item = world.draw(slides=1, formats=formats)[0]
    written = {path.name.split(".", 1)[1] for path in (world.folder / "slides").iterdir()}
    assert written == set(formats)
    assert len(item["files"]) == len(formats) - 1


def test_the_config_s_formats_have_one_order_and_the_picture() -> None:
    assert HeatmapSection(formats=("geojson", "parquet")).formats == ("png", "parquet", "geojson")
    with pytest.raises(ValueError, match="svg"):
        HeatmapSection(formats=("svg",))


def test_a_ground_truth_is_a_panel_and_one_that_cannot_be_used_is_a_note(
    world: World, tmp_path: Path
) -> None:
    first, second = (row["slide_id"] for row in world.draw(slides=2))
    masks = tmp_path / "masks"
    masks.mkdir()
    cv2.imwrite(str(masks / f"{first}.png"), np.full((96, 96), 255, np.uint8))
    (masks / f"{second}.png").write_bytes(b"no picture")
    good, bad = world.draw(masks, slides=2)
    assert good["panels"] == ["thumbnail", "attention", "truth"]
    assert "note" not in good
    assert bad["panels"] == ["thumbnail", "attention"]
    assert f"its ground truth {second}.png is not a readable PNG or TIFF" in bad["note"]


@pytest.mark.parametrize(("origin", "left"), [("level0", 0), ("bounds", SIDE_PX // 2)])
def test_regions_of_qupath_are_drawn_where_they_are_counted_from(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: str, left: int
) -> None:
    class Mirax(Slide):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.bounds_corner_px = (SIDE_PX // 2, 0)

    shown: list[np.ndarray] = []

    def note(tiles: SlideTiles, thumbnail: np.ndarray, truth: np.ndarray, words: str) -> object:
        shown.append(truth)
        return panels(tiles, thumbnail, truth, words)

    monkeypatch.setattr("her2.explanation.drawing.Slide", Mirax)
    monkeypatch.setattr("her2.explanation.drawing.panels", note)
    ring = [[0, 0], [SIDE_PX // 2, 0], [SIDE_PX // 2, SIDE_PX], [0, SIDE_PX], [0, 0]]
    name = world.draw(slides=1)[0]["slide_id"]
    (tmp_path / f"{name}.geojson").write_text(
        json.dumps({"type": "Polygon", "coordinates": [ring]})
    )
    row = world.draw(tmp_path, slides=1, annotation_origin=origin)[0]
    assert row["panels"][-1] == "truth"
    columns = np.flatnonzero(shown[-1].all(axis=0)) * SIDE_PX / shown[-1].shape[1]
    assert columns.min() == pytest.approx(left, abs=3)
    assert columns.max() == pytest.approx(left + SIDE_PX // 2, abs=3)


def test_a_head_without_attention_of_its_own_is_drawn_and_says_so(world: World) -> None:
    world.train(uniform=True)
    for item in world.draw(slides=2):
        assert str(item["note"]).startswith("this head has no attention of its own")
        assert item["tile_strip"] is None
    scores = read_scores(world).values()
    assert all("no attention of its own" in row["note"] for row in scores)
    assert not list((world.folder / "scores").iterdir())


@pytest.mark.parametrize("synthetic", [True, False])
def test_every_picture_says_what_to_be_wary_of(
    world: World, monkeypatch: pytest.MonkeyPatch, synthetic: bool
) -> None:
    said: dict[Figure, list[str]] = {}
    write = Figure.text

    def note(canvas: Figure, x: float, y: float, text: str, **looks: object) -> object:
        said.setdefault(canvas, []).append(text)
        return write(canvas, x, y, text, **looks)

    monkeypatch.setattr(Figure, "text", note)
    world.draw(slides=1, synthetic=synthetic)
    assert len(said) == 4  # the slide, its tiles, and two scores
    for words in map(" ".join, said.values()):
        assert "Attention is not HER2 staining" in words
        assert ("SYNTHETIC" in words) == synthetic


def test_how_much_attention_a_tile_has_is_said_without_an_exponent() -> None:
    shown = [times_words(value) for value in (0, 4e-39, 0.00123, 1, 12.34, 99.6, 12345)]
    assert shown == [
        f"{text}\u00d7" for text in ("< 0.001", "< 0.001", "0.0012", "1", "12", "100", "12345")
    ]


class TestScores:
    def test_they_hold_the_extremes_of_all_held_out_slides_of_the_score(self, drawn: Drawn) -> None:
        for label, first in (("negative", "n"), ("positive", "p")):
            row = drawn.scores[label]
            assert (row["slides"], row["patients"], row["not_opened"]) == (4, 3, [])
            assert (drawn.world.folder / row["picture"]).exists()
            mine = [name for name in drawn.world.entries if name.startswith(first)]
            highest = max(drawn.world.attention(name).max() for name in mine) * TILES
            ends = {end: [t for t in row["tiles"] if t["end"] == end] for end in ("most", "least")}
            assert ends["most"][0]["attention_times_tiles"] == pytest.approx(highest, rel=1e-5)
            assert {tile["slide_id"] for tile in row["tiles"]} <= set(mine)
            for sign, tiles in ((1, ends["most"]), (-1, ends["least"])):
                values = [sign * tile["attention_times_tiles"] for tile in tiles]
                assert all(a >= b for a, b in pairwise(values))

    def test_each_tile_is_where_its_attention_is(self, drawn: Drawn) -> None:
        for tile in drawn.scores["negative"]["tiles"]:
            row = tile["y_level0_px"] // TILE_PX * PER_SIDE + tile["x_level0_px"] // TILE_PX
            expected = drawn.world.attention(tile["slide_id"])[row] * TILES
            assert tile["attention_times_tiles"] == pytest.approx(expected, rel=1e-5)
            assert tile["fold"] == drawn.world.test_fold(tile["slide_id"])

    def test_a_patient_gives_at_most_two_tiles_to_an_end(self, drawn: Drawn) -> None:
        for row in drawn.scores.values():
            ends = [(tile["end"], tile["patient_id"]) for tile in row["tiles"]]
            assert len(ends) == 12
            assert max(map(ends.count, ends)) == 2

    def test_a_slide_that_is_gone_is_named_and_another_stands_in(self, world: World) -> None:
        world.lose("n0-a")
        world.draw(slides=1)
        row = read_scores(world)["negative"]
        assert row["not_opened"] == [{"slide_id": "n0-a", "reason": "the file does not exist"}]
        assert {tile["patient_id"] for tile in row["tiles"]} == {"n1", "n2"}

    def test_when_no_slide_can_be_read_there_is_a_reason_and_no_picture(self, world: World) -> None:
        for name in ("n0-a", "n1-a", "n2-a", "n2-b"):
            world.lose(name)
        world.draw(slides=1)
        row = read_scores(world)["negative"]
        assert row["note"] == "none of the slides could be read"
        assert "picture" not in row
        assert not (world.folder / "scores" / "0.png").exists()
