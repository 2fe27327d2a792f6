from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from her2.cache import Cache
from her2.cohort import Cohort, SlideRow
from her2.config import Task
from her2.errors import UserError
from her2.explanation.run import draw_heatmaps, overlay, read_heatmaps
from her2.files import digest
from her2.folds import make_folds
from her2.manifest import FeatureEntry, FoldEntry, write_manifest
from her2.specs import FoldsSpec, HeatmapSpec
from her2.store import write_store
from her2.synthetic import draw_slide

TASK = Task(label="her2", classes={"negative": ["0"], "positive": ["3+"]})
BUCKET, CHUNK = "0000-of-0001", "r0f0-r0f2"
SIDE_PX, TILE_PX, PANEL_PX, GAP_PX = 768, 128, 640, 12
PER_SIDE = SIDE_PX // TILE_PX


def brightness(picture: np.ndarray) -> np.ndarray:
    return picture.astype(float) @ np.array([0.299, 0.587, 0.114])


def grid(side: int, count: int) -> np.ndarray:
    """Boxes (count * count, 4) that cover a square of `side` px, row by row."""
    corners = np.array([(x, y) for y in range(count) for x in range(count)]) * (side // count)
    return np.concatenate([corners, corners + side // count], axis=1).astype(float)


class TestOverlay:
    @settings(max_examples=30, deadline=None)
    @given(best=st.integers(0, 8), seed=st.integers(0, 1000))
    def test_the_tile_of_most_attention_is_the_brightest_and_in_its_place(
        self, best: int, seed: int
    ) -> None:
        values = np.random.default_rng(seed).random(9).astype(np.float32)
        values[best] = 2
        painted = brightness(overlay(np.full((90, 90, 3), 200, np.uint8), grid(90, 3), values))
        row, column = np.unravel_index(painted.argmax(), painted.shape)
        assert (row // 30, column // 30) == divmod(best, 3)

    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 1000))
    def test_more_attention_is_brighter_on_equal_tissue(self, seed: int) -> None:
        values = np.random.default_rng(seed).permutation(9).astype(np.float32)
        painted = brightness(overlay(np.full((90, 90, 3), 200, np.uint8), grid(90, 3), values))
        centres = painted[15::30, 15::30].ravel()
        assert centres.argsort().tolist() == values.argsort().tolist()

    def test_colours_are_viridis_in_rgb_from_least_to_most(self) -> None:
        painted = overlay(
            np.zeros((2, 4, 3), np.uint8),
            np.array([[0, 0, 2, 2], [2, 0, 4, 2]], float),
            np.array([0.1, 0.9], np.float32),
        )
        # The ends of matplotlib's viridis, (68, 1, 84) and (253, 231, 37), over 45 % of black.
        assert painted[0, 0] == pytest.approx(0.55 * np.array([68, 1, 84]), abs=1.5)
        assert painted[0, 3] == pytest.approx(0.55 * np.array([253, 231, 37]), abs=1.5)

    def test_ranks_count_and_not_the_size_of_attention(self) -> None:
        thumbnail = np.full((90, 90, 3), 200, np.uint8)
        values = np.arange(9, dtype=np.float32)
        np.testing.assert_array_equal(
            overlay(thumbnail, grid(90, 3), values),
            overlay(thumbnail, grid(90, 3), np.exp(5 * values)),
        )

    def test_what_is_no_tile_keeps_its_colour(self) -> None:
        thumbnail = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
        box = np.array([[8, 4, 20, 16]], float)
        painted = overlay(thumbnail, box, np.ones(1, np.float32))
        inside = np.zeros((40, 40), bool)
        inside[4:16, 8:20] = True
        np.testing.assert_array_equal(painted[~inside], thumbnail[~inside])
        assert (painted[inside] != thumbnail[inside]).any()

    def test_a_slide_of_one_tile_can_be_painted(self) -> None:
        painted = overlay(np.zeros((4, 4, 3), np.uint8), grid(4, 1), np.ones(1, np.float32))
        assert painted.shape == (4, 4, 3)
        assert painted.any()


@dataclass
class World:
    """Slides, stores, folds and trained folds, as the stages before leave them."""

    root: Path
    cohort: Cohort
    entries: dict[str, FeatureEntry]
    best: dict[str, int]
    keys: dict[int, str]

    def spec(self, **changed: object) -> HeatmapSpec:
        values = {
            "task": TASK,
            "chunks": (CHUNK,),
            "buckets": (BUCKET,),
            "slides": 4,
            "seed": 3,
            "synthetic": True,
        }
        return HeatmapSpec(**(values | changed))

    def draw(self, masks: Path | None = None, **changed: object) -> list[dict[str, object]]:
        return draw_heatmaps(
            self.spec(**changed),
            self.cohort,
            Cache(self.root / "cache"),
            folds=self.root / "folds.parquet",
            models=self.root / "models",
            features=self.root / "features",
            masks=masks,
            output=self.root / "heatmaps" / "heatmaps.json",
        )

    def test_fold(self, slide_id: str) -> int:
        table = pl.read_parquet(self.root / "folds.parquet")
        return table.filter((pl.col("slide_id") == slide_id) & (pl.col("role") == "test"))[
            "fold"
        ].item()

    def picture(self, slide_id: str) -> np.ndarray:
        image = cv2.imread(str(self.root / "heatmaps" / f"{slide_id}.png"))
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slide")
    draw_slide(
        slide_id="demo-001-a",
        patient_id="demo-001",
        her2="2+",
        site="north",
        seed=7,
        slide_path=folder / "demo.svs",
        mask_path=folder / "demo.png",
        side_px=SIDE_PX,
    )
    return folder / "demo.svs"


@pytest.fixture
def world(tmp_path: Path, slide: Path) -> World:
    """Eight labelled slides and one without a label, all one file; every tile of the grid."""
    cache = Cache(tmp_path / "cache")
    rows = [
        SlideRow(f"{c}{i}-a", str(slide), f"{c}{i}", {"her2": value})
        for c, value in (("n", "0"), ("p", "3+"))
        for i in range(4)
    ]
    rows.append(SlideRow("u0-a", str(slide), "u0", {}))
    cohort = Cohort(tuple(rows), tmp_path)
    folds = make_folds(
        FoldsSpec(rows="", task=TASK, folds=3, repeats=1, tune=0.25, seed=1),
        cohort,
        tmp_path / "folds.parquet",
    )
    coords = np.array(
        [(x, y) for y in range(PER_SIDE) for x in range(PER_SIDE)], np.int32
    ) * np.int32(TILE_PX)
    entries, best = {}, {}
    for number, row in enumerate(rows):
        key = digest(row.slide_id)
        with cache.publish("features", key) as path:
            write_store(
                path,
                np.ones((len(coords), 2), np.float16),
                coords,
                {
                    "slide": {
                        "mpp": [0.5, 0.5],
                        "mpp_source": "metadata",
                        "level0_tile": [float(TILE_PX)] * 2,
                        "size_px": [SIDE_PX] * 2,
                    }
                },
            )
        entries[row.slide_id] = FeatureEntry("ok", None, key, len(coords), 0, 2)
        best[row.slide_id] = (7 * number + 3) % len(coords)
    write_manifest(tmp_path / "features" / f"{BUCKET}.json", entries)
    keys, manifest = {}, {}
    for fold in range(3):
        held = folds.filter((pl.col("fold") == fold) & pl.col("role").is_in(["test", "predict"]))
        attention = []
        for name in held["slide_id"]:
            values = np.full(len(coords), 0.5 / len(coords))
            values[best[name]] += 0.5
            attention.append((name, values.tolist()))
        keys[fold] = digest(["fold", fold])
        with cache.publish("models", keys[fold]) as folder:
            pl.DataFrame(
                attention,
                schema={"slide_id": pl.String, "attention": pl.List(pl.Float32)},
                orient="row",
            ).write_parquet(folder / "attention.parquet")
        manifest[f"r0f{fold}"] = FoldEntry(keys[fold], 1, 1, 1, 0, 1, 0.5)
    write_manifest(tmp_path / "models" / f"{CHUNK}.json", manifest)
    return World(tmp_path, cohort, entries, best, keys)


def test_every_slide_is_painted_by_the_fold_that_tested_it(world: World) -> None:
    drawn = world.draw(slides=99)
    assert sorted(item["slide_id"] for item in drawn) == sorted(set(world.entries) - {"u0-a"})
    for item in drawn:
        assert item["fold"] == world.test_fold(item["slide_id"])


def test_a_model_that_did_not_hold_the_slide_out_is_never_asked(world: World) -> None:
    # Only the fold that tested a slide has its attention; without it there is no picture.
    item = world.draw(slides=1)[0]
    folder = Cache(world.root / "cache").path("models", world.keys[item["fold"]])
    table = pl.read_parquet(folder / "attention.parquet")
    table.filter(pl.col("slide_id") != item["slide_id"]).write_parquet(folder / "attention.parquet")
    with pytest.raises(UserError, match=f"{item['slide_id']}: has no attention"):
        world.draw(slides=1)


def test_the_picture_is_brightest_where_the_attention_is(world: World) -> None:
    for item in world.draw(slides=99):
        picture = world.picture(item["slide_id"])
        assert picture.shape == (PANEL_PX, 2 * PANEL_PX + GAP_PX, 3)
        thumbnail = picture[:, :PANEL_PX].astype(float)
        painted = picture[:, PANEL_PX + GAP_PX :].astype(float)
        colour = brightness((painted - 0.45 * thumbnail) / 0.55)  # the tissue taken off again
        row, column = divmod(world.best[item["slide_id"]], PER_SIDE)
        side = PANEL_PX / PER_SIDE
        means = [
            colour[int(r * side) + 5 : int((r + 1) * side) - 5,
                   int(c * side) + 5 : int((c + 1) * side) - 5].mean()
            for r in range(PER_SIDE) for c in range(PER_SIDE)
        ]  # fmt: skip
        assert int(np.argmax(means)) == row * PER_SIDE + column


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_the_slides_are_spread_over_the_classes(world: World, count: int) -> None:
    labels = [item["label"] for item in world.draw(slides=count)]
    assert len(labels) == count
    assert abs(labels.count("negative") - labels.count("positive")) <= 1


def test_the_seed_chooses_the_slides(world: World) -> None:
    first, again = world.draw(), world.draw()
    assert first == again
    chosen = {
        tuple(item["slide_id"] for item in world.draw(slides=2, seed=seed)) for seed in range(8)
    }
    assert len(chosen) > 1


def test_only_slides_with_features_are_drawn(world: World) -> None:
    lost = {name: FeatureEntry("excluded", "no tissue") for name in ("n0-a", "p1-a")}
    write_manifest(world.root / "features" / f"{BUCKET}.json", world.entries | lost)
    drawn = {item["slide_id"] for item in world.draw(slides=99)}
    assert drawn == set(world.entries) - {"n0-a", "p1-a", "u0-a"}


def test_a_slide_that_is_gone_is_reported_and_the_others_are_drawn(
    world: World, tmp_path: Path
) -> None:
    rows = [
        SlideRow(row.slide_id, "gone.svs", row.patient_id, row.labels)
        if row.slide_id == "n0-a"
        else row
        for row in world.cohort.rows
    ]
    world.cohort = Cohort(tuple(rows), tmp_path)
    found = {item["slide_id"]: item for item in world.draw(slides=99)}
    assert found["n0-a"] == {"slide_id": "n0-a", "reason": "the file does not exist"}
    assert sum("picture" in item for item in found.values()) == 7
    assert not (world.root / "heatmaps" / "n0-a.png").exists()


def test_the_table_of_pictures_is_what_was_drawn(world: World) -> None:
    drawn = world.draw()
    assert read_heatmaps(world.root / "heatmaps" / "heatmaps.json") == drawn
    for item in drawn:
        assert (world.root / "heatmaps" / item["picture"]).exists()
        assert item["tiles"] == PER_SIDE**2
        assert item["um_per_px"] == pytest.approx(SIDE_PX * 0.5 / PANEL_PX)


def test_a_mask_is_a_third_panel_where_there_is_one(world: World, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    truth = np.zeros((96, 96), np.uint8)
    truth[:, 48:] = 255
    cv2.imwrite(str(masks / "n0-a.png"), truth)
    panels = {item["slide_id"]: item["panels"] for item in world.draw(masks, slides=99)}
    assert panels.pop("n0-a") == 3
    assert set(panels.values()) == {2}
    third = world.picture("n0-a")[:, 2 * (PANEL_PX + GAP_PX) :].astype(float)
    yellow = third[..., :2].mean(2) - third[..., 2]
    half = PANEL_PX // 2
    assert yellow[:, half + 5 :].mean() > yellow[:, : half - 5].mean() + 50
