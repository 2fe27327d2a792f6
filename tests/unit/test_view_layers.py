"""Layers: what they show is what was stored, and a layer is one file."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import polars as pl
import pytest
import shapely
import shapely.geometry

from her2.core.errors import UserError
from her2.core.tables import read_row
from her2.explanation.held_out import HeldOut, find_held_out, read_tiles, runs_of
from her2.explanation.tiles import NOWHERE, UNIFORM, SlideTiles
from her2.storage.entries import FeatureEntry, FoldEntry, write_entries
from her2.storage.fold_files import check_fold
from her2.storage.products import FindProduct, find_product, present_product
from her2.viewer import layers
from her2.viewer.kept import Kept
from her2.viewer.layers import all_layers
from her2.viewer.overlay import attention
from her2.viewer.overlay.attention import Attended
from her2.viewer.overlay.colours import DIVERGING, SEQUENTIAL, colours_of
from her2.viewer.overlay.layer import Bar, Layer, Painted, Seen
from her2.viewer.overlay.outlines import of_mask
from her2.viewer.run import NotThereError
from tests.unit.heatmap_makers import CHUNK, TILES, World, make_world


@pytest.fixture(scope="module")
def additive(tmp_path_factory: pytest.TempPathFactory, drawn_slide: Path) -> World:
    """Three folds of a head with maps of both kinds."""
    world = make_world(tmp_path_factory.mktemp("additive"), drawn_slide)
    world.train(maps=("contribution", "attention"))
    return world


def held_out(world: World, only: str | None, **more: Any) -> HeldOut:
    return find_held_out(
        world.spec(), world.cache, folds=world.root / "folds.parquet",
        models=world.root / "models", features=world.root / "features", only=only, **more,
    )  # fmt: skip


def seen(tiles: SlideTiles, *, external: str | None = None, **asked: Any) -> Seen:
    """A slide whose tiles were read."""
    cohort = SimpleNamespace(external=external, key="development", title="development")
    one = Seen(SimpleNamespace(cohort=cohort, slide_id=tiles.of.slide_id), "task/e/h", **asked)
    one.__dict__["attended"] = Attended(tiles, "r0f0")
    return one


def layer(name: str) -> Layer:
    return next(one for one in all_layers() if one.name == name)


def equal(one: SlideTiles, other: SlideTiles) -> bool:
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name == "maps":
            if a.keys() != b.keys() or any(a[k].tobytes() != b[k].tobytes() for k in a):
                return False
        elif isinstance(a, np.ndarray):
            if a.dtype != b.dtype or a.tobytes() != b.tobytes():
                return False
        elif a != b:
            return False
    return True


def test_one_slide_is_read_as_among_all(additive: World) -> None:
    every = held_out(additive, None)
    assert len(every.slides) == 8
    for one in every.slides:
        alone = held_out(additive, one.slide_id)
        assert alone.slides == (one,)
        assert set(alone.attention) == {(one.slide_id, 0)}
        assert equal(read_tiles(alone, one), read_tiles(every, one))
        assert runs_of(
            additive.spec(), one.slide_id,
            folds=additive.root / "folds.parquet", models=additive.root / "models",
        ) == {one.run: (one.repeat, one.fold)}  # fmt: skip


def test_of_several_repeats_the_one_that_is_asked_for_is_read(
    tmp_path: Path, drawn_slide: Path
) -> None:
    world = make_world(tmp_path, drawn_slide)
    folds = pl.read_parquet(world.root / "folds.parquet")
    # In the second repeat, each fold tests what the one before it does in the first.
    again = folds.with_columns(pl.lit(1, pl.Int32).alias("repeat"), (pl.col("fold") + 1) % 3)
    pl.concat([folds, again]).write_parquet(world.root / "folds.parquet")
    entries = {
        f"r{repeat}f{fold}": FoldEntry(world.keys[fold], 1, 1, 1, 0, 1, 0.5)
        for repeat in (0, 1)
        for fold in range(3)
    }
    write_entries(world.root / "models" / f"{CHUNK}.json", entries)
    places = {"folds": world.root / "folds.parquet", "models": world.root / "models"}
    runs = runs_of(world.spec(), "p1-a", **places)
    (first, fold), (second, other) = runs.values()
    assert (first, second, other) == (0, 1, (fold + 1) % 3)
    for repeat, own in ((0, fold), (1, other)):
        found = held_out(world, "p1-a", repeat=repeat)
        tiles = read_tiles(found, found.slides[0])
        table = pl.read_parquet(world.cache.path("models", world.keys[own]) / "attention.parquet")
        stored = table.filter(pl.col("slide_id") == "p1-a")["attention"][0].to_numpy()
        assert tiles.attention.tobytes() == stored.tobytes()
        assert tiles.model["repeat"] == repeat
    assert len(held_out(world, "p1-a", repeat=None).slides) == 2


@pytest.mark.parametrize("slide_id", ["u0-a", "none", ""])
def test_a_slide_without_a_fold_is_not_found_alone(additive: World, slide_id: str) -> None:
    assert held_out(additive, slide_id).slides == ()


def test_a_row_is_read_by_its_value(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pl.DataFrame({"name": ["a", "b", "b"], "values": [[1.0], [2.0, 3.0], []]})
    table.write_parquet(path)
    for value, rows in (("a", table[:1]), ("b", table[1:2]), ("c", table[:0])):
        assert read_row(path, "name", value).equals(rows)
    with pytest.raises(UserError, match="cannot be read as a table"):
        read_row(path, "other", "a")
    with pytest.raises(UserError, match="snakemake again"):
        read_row(tmp_path / "none.parquet", "name", "a")


def test_looking_changes_nothing_in_the_cache(additive: World) -> None:
    state = {path: path.stat().st_mtime_ns for path in additive.root.rglob("*")}
    read_tiles(found := held_out(additive, "p2-b", find=present_product), found.slides[0])
    assert {path: path.stat().st_mtime_ns for path in additive.root.rglob("*")} == state


@pytest.mark.parametrize("find", [find_product, present_product])
def test_a_product_that_is_in_neither_place_is_an_error(additive: World, find: FindProduct) -> None:
    with pytest.raises(UserError, match="cache"):
        find(additive.cache, "features", "0" * 64, additive.root / "none.zarr.zip")


def test_another_product_under_a_key_is_refused_and_stays(additive: World) -> None:
    keys = [entry.key or "" for entry in additive.entries.values()]
    wrong = additive.cache.path("features", "1" * 64)
    wrong.parent.mkdir(parents=True, exist_ok=True)
    wrong.write_bytes(additive.cache.path("features", keys[0]).read_bytes())
    with pytest.raises(UserError, match="another key"):
        present_product(additive.cache, "features", "1" * 64, Path("none"))
    assert wrong.exists()
    wrong.unlink()


@pytest.mark.parametrize("name", ["low", ""])
def test_contributions_are_the_stored_ones_around_zero(additive: World, name: str) -> None:
    found = held_out(additive, "p1-a")
    tiles = read_tiles(found, found.slides[0])
    of_class = "negative" if name else None
    made = layer("contribution").make(seen(tiles, of_class=of_class))
    assert isinstance(made, Painted)
    assert isinstance(made.legend, Bar)
    # 0.75 for positive is what the fold predicted, whose contribution shows first.
    values = tiles.maps[f"contribution_{of_class or 'positive'}"]
    stored = np.asarray(values, np.float64)
    limit = float(np.quantile(np.abs(values), 0.99))
    expected = np.rint(np.clip(stored / (2 * limit) + 0.5, 0, 1) * 254)
    assert np.abs(made.levels.astype(int) - expected).max() <= 1  # float32 or float64
    assert made.legend.title == f"Contribution to {of_class or 'positive'}"
    low, *_, zero, _, high = [tick.label for tick in made.legend.ticks]
    assert (zero, float(high)) == ("0", -float(low))
    assert float(high) == pytest.approx(limit, rel=0.05)
    grey = colours_of(DIVERGING)[127].astype(int)
    assert np.ptp(grey) <= 5  # zero has no colour


@pytest.mark.parametrize(("of_class", "column"), [(None, None), ("negative", "attention_negative")])
def test_attention_is_that_of_the_map_that_is_asked_for(
    additive: World, of_class: str | None, column: str | None
) -> None:
    found = held_out(additive, "n0-a")
    tiles = read_tiles(found, found.slides[0])
    made = layer("attention").make(seen(tiles, of_class=of_class))
    assert isinstance(made, Painted)
    values = tiles.attention if column is None else tiles.maps[column]
    order = np.argsort(values)
    assert (np.diff(made.levels[order].astype(int)) >= 0).all()
    assert (made.levels.min(), made.levels.max()) == (0, 254)
    assert (made.colours == colours_of(SEQUENTIAL)).all()


def test_the_legend_of_ranks_says_how_much_attention_is_there(additive: World) -> None:
    found = held_out(additive, "n0-a")
    tiles = read_tiles(found, found.slides[0])
    legend = layer("attention").make(seen(tiles)).legend
    assert isinstance(legend, Bar)
    times = np.sort(tiles.attention.astype(np.float64)) * TILES
    said = {tick.at: float(tick.label.rpartition("\u00d7")[2]) for tick in legend.ticks}
    assert said[0.0] == pytest.approx(times[0], rel=0.01)
    assert said[1.0] == pytest.approx(times[-1], rel=0.01)
    assert said[0.5] == pytest.approx(np.median(times), rel=0.01)


def test_the_scale_of_values_begins_at_nothing_and_ends_where_colours_do(additive: World) -> None:
    found = held_out(additive, "n0-a")
    tiles = read_tiles(found, found.slides[0])
    made = layer("attention").make(seen(tiles, scale="times"))
    assert isinstance(made, Painted)
    assert isinstance(made.legend, Bar)
    high = float(np.quantile(tiles.times_tiles, 0.99))
    assert [float(t.label[1:]) for t in made.legend.ticks] == pytest.approx(
        [high * share for share in (0, 0.25, 0.5, 0.75, 1)], rel=0.01
    )
    middle = np.clip(tiles.times_tiles / high, 0, 1) * 254
    assert np.abs(made.levels - middle).max() <= 1


def test_a_head_without_attention_says_so(tmp_path: Path, drawn_slide: Path) -> None:
    world = make_world(tmp_path, drawn_slide)
    world.train(uniform=True)
    found = held_out(world, "n0-a")
    tiles = read_tiles(found, found.slides[0])
    assert layer("attention").make(seen(tiles)).note == UNIFORM
    with pytest.raises(UserError, match="does not divide"):
        layer("contribution").make(seen(tiles))
    with pytest.raises(UserError, match="mean attention of all folds"):
        layer("contribution").make(seen(tiles, external="east"))


@pytest.mark.parametrize("name", ["attention", "contribution"])
def test_a_class_without_a_map_does_not_exist(additive: World, name: str) -> None:
    found = held_out(additive, "n0-a")
    tiles = read_tiles(found, found.slides[0])
    with pytest.raises(NotThereError, match="negative, positive"):
        layer(name).make(seen(tiles, of_class="3+"))


def test_a_changed_fold_is_refused_after_it_was_read(additive: World, tmp_path: Path) -> None:
    kept = attention.Attention()
    folder = additive.model("n0-a")
    names = ["attention.parquet", "predictions.parquet"]
    kept._check(folder, names)
    content = (folder / names[0]).read_bytes()
    try:
        (folder / names[0]).write_bytes(content[:-1] + b"x")
        with pytest.raises(UserError, match="changed file"):
            kept._check(folder, names)
    finally:
        (folder / names[0]).write_bytes(content)
    kept._check(folder, names)
    check_fold(folder, names)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (None, "not embedded by the encoder"),
        (FeatureEntry("excluded", "no tissue found"), "no features: no tissue found"),
        (FeatureEntry("failed"), "no features: failed"),
        (FeatureEntry("ok", None, "0" * 64, 3), "no model that never saw it"),
    ],
)
def test_why_a_slide_has_no_attention_is_said(
    additive: World, entry: FeatureEntry | None, words: str
) -> None:
    entries = {} if entry is None else {"x": entry}
    found = dataclasses.replace(held_out(additive, "none"), entries=entries)
    assert words in attention._reason(found, "x", attention.NO_FOLD)


def test_features_that_do_not_tell_where_they_are_say_so() -> None:
    def read() -> SlideTiles:
        raise ValueError("does not tell where on the slide its tiles are")

    with pytest.raises(UserError, match=NOWHERE):
        attention._placed(read)


def circle(shape: tuple[int, int], middle: tuple[int, int], radius: int, value: int = 1) -> Any:
    return cv2.circle(np.zeros(shape, np.uint8), middle, radius, value, cv2.FILLED) > 0


@pytest.mark.parametrize("scale", [1.0, 16.0, 7.3])
def test_an_outline_has_the_area_of_its_mask_with_its_holes(scale: float) -> None:
    mask = circle((200, 300), (100, 90), 60) & ~circle((200, 300), (100, 90), 20)
    mask |= circle((200, 300), (240, 150), 30)
    size_px = (round(300 * scale), round(200 * scale))
    found = [shapely.geometry.shape(one["geometry"]) for one in of_mask(mask, size_px, label="x")]
    assert [one.is_valid for one in found] == [True, True]
    assert sorted(len(one.interiors) for one in found) == [0, 1]
    assert sum(one.area for one in found) == pytest.approx(mask.sum() * scale**2, rel=0.02)
    x, y = shapely.unary_union(found).centroid.coords[0]
    rows, columns = np.nonzero(mask)
    assert (x / scale, y / scale) == pytest.approx(
        (columns.mean() + 0.5, rows.mean() + 0.5), abs=0.3
    )
    assert of_mask(np.zeros((4, 4), bool), (8, 8)) == []
    json.dumps(of_mask(mask, size_px))


def test_layers_are_found_by_listing_their_package() -> None:
    files = {file.stem for file in Path(layers.__file__).parent.glob("[a-z]*.py")}
    assert {one.name for one in all_layers()} == files
    assert [one.order for one in all_layers()] == sorted({one.order for one in all_layers()})
    assert {one.kind for one in all_layers()} == {"image", "outline", "grid"}


CHEQUERED = '''
"""`her2 view`, layer: tiles in a chequered pattern."""

import numpy as np

from her2.viewer.overlay.layer import Categories, Category, Layer, Painted
from her2.viewer.overlay.raster import cells_of


def make(seen):
    tiles = seen.attended.tiles
    levels = (np.arange(len(tiles)) % 2).astype(np.uint8)
    colours = np.array([(0, 0, 0), (255, 255, 255)], np.uint8)
    cells = cells_of(tiles.coords, tiles.slide.level0_tile)
    return Painted(cells, levels, colours, Categories("Pattern", [Category("#000000", "odd", 1)]))


LAYER = Layer(name="chequered", title="Pattern", kind="image", order=ORDER, make=make)
'''


def test_a_layer_is_one_file(
    additive: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowest = min(one.order for one in all_layers())
    (tmp_path / "chequered.py").write_text(CHEQUERED.replace("ORDER", str(lowest - 1)))
    monkeypatch.setattr(layers, "__path__", [*layers.__path__, str(tmp_path)])
    assert all_layers()[0].name == "chequered"
    found = held_out(additive, "n0-a")
    made = layer("chequered").make(seen(read_tiles(found, found.slides[0])))
    assert isinstance(made, Painted)
    assert made.levels.tolist() == [0, 1] * (TILES // 2)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (
            "twin",
            CHEQUERED.replace("ORDER", "40").replace('"chequered"', '"twin"'),
            "attention and twin",
        ),
        ("other", CHEQUERED.replace("ORDER", "1"), "does not define LAYER"),
        ("empty", "", "does not define LAYER"),
    ],
)
def test_a_layer_that_cannot_be_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, problem: str
) -> None:
    (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.setattr(layers, "__path__", [*layers.__path__, str(tmp_path)])
    with pytest.raises(TypeError, match=problem):
        all_layers()


def test_what_is_kept_is_made_once_and_up_to_a_limit() -> None:
    made: list[int] = []
    kept: Kept[int] = Kept(2)

    def make(number: int) -> int:
        made.append(number)
        return number

    for number in (1, 2, 1, 3, 1, 2):
        assert kept.get(number, lambda number=number: make(number)) == number
    assert made == [1, 2, 3, 2]

    def fail() -> int:
        raise UserError("no")

    for _ in range(2):
        with pytest.raises(UserError):
            kept.get("x", fail)
    kept.forget(lambda key: key == 1)
    assert kept.get(2, lambda: make(2)) == 2
    assert kept.get(1, lambda: make(1)) == 1
    assert made == [1, 2, 3, 2, 1]
