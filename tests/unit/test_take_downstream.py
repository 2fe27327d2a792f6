"""What cannot be known of given features is left out of pictures and searches, and not guessed."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from her2.cohort.manifest import Cohort
from her2.cohort.similar import _places, shared_tiles
from her2.core.errors import UserError
from her2.explanation.attention_stage import _inside
from her2.explanation.heatmap_stage import drawable
from her2.explanation.held_out import find_held_out
from her2.explanation.one_slide import draw_heatmap
from her2.explanation.sources import Source
from tests.unit.exchange_makers import (
    corners,
    features_of,
    write_clam_h5,
    write_torch,
    write_trident,
)
from tests.unit.heatmap_makers import World, make_world
from tests.unit.take_makers import World as Given
from tests.unit.take_makers import row


class TestPictures:
    @pytest.fixture
    def world(self, tmp_path: Path, drawn_slide: Path) -> World:
        world = make_world(tmp_path, drawn_slide)
        world.train()
        return world

    def remove(self, world: World, *names: str) -> None:
        rows = (replace(one, path="") if one.slide_id in names else one
                for one in world.cohort.rows)  # fmt: skip
        world.cohort = Cohort(tuple(rows), world.root)

    def test_absent_slides_are_not_drawn_and_said_once(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        self.remove(world, "n0-a", "p0-a")
        places = {name: world.root / name for name in ("models", "features")}
        folds = world.root / "folds.parquet"
        found = find_held_out(world.spec(), world.cache, folds=folds, **places).source()
        drawn = {one.slide_id for one in drawable(found, world.cohort).slides}
        assert drawn == set(world.entries) - {"n0-a", "p0-a", "u0-a"}
        assert caplog.text.count("2 of 8 held-out slides are not drawn: there is no slide") == 1

    def test_without_any_slide_there_is_an_empty_list(self, world: World) -> None:
        self.remove(world, *(one.slide_id for one in world.cohort.rows))
        assert world.draw(slides=99) == []
        assert (world.folder / "tiles.json").read_text().strip() == "[]"


def taken(tmp_path: Path, suffix: str) -> tuple[Given, Source]:
    (tmp_path / "a.svs").write_bytes(b"")
    made = Given(tmp_path, (row("a"),))
    write = write_torch if suffix == ".pt" else write_clam_h5
    write(made.files / f"a{suffix}", features_of(60, 8))
    store = made.take().store("a").path
    source = Source(
        class_names=(), kind="held-out slide", slides=[row("a")], attention={},  # type: ignore[list-item]
        tiles=lambda name: pytest.fail(name), store=lambda _: store, masks_key="",
    )  # fmt: skip
    return made, source


@pytest.mark.parametrize(
    ("untold", "mpp"),
    [
        ({"patch_size": 0}, 0.25),
        ({"patch_size_level0": 0, "level0_magnification": 0}, 0.25),
        ({"level0_width": 0}, 0.25),
        ({}, None),
        ({"told": "all"}, 0.25),
    ],
)
def test_one_unknown_fact_is_enough_to_draw_nothing(
    untold: dict[str, Any], mpp: float | None, tmp_path: Path
) -> None:
    made = Given(tmp_path, (row("a", mpp=mpp),))
    told = {"level0_width": 4000, "level0_height": 2000} | untold
    write_trident(made.files / "a.h5", features_of(6, 8), **told)
    store = made.take().store("a")
    Image.new("RGB", (4000, 2000)).save(tmp_path / "a.png")
    weights = np.full(6, 1 / 6)
    if "told" in untold:
        assert draw_heatmap(store, weights, tmp_path / "a.png").width > 100
        return
    with pytest.raises(UserError, match="do not tell where on the slide they are"):
        draw_heatmap(store, weights, tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".pt", ".h5"])
def test_slides_are_not_drawn_whose_features_do_not_tell_where_they_are(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    _, source = taken(tmp_path, suffix)
    assert drawable(source, Cohort((row("a", "a.svs"),), tmp_path)).slides == []
    assert "do not tell where on the slide they are" in caplog.text


def test_attention_is_not_localised_without_places(tmp_path: Path) -> None:
    from her2.core.errors import SlideError
    from tests.unit.heatmap_makers import TASK

    _, source = taken(tmp_path, ".pt")
    from her2.config.jobs import AttentionSpec

    spec = AttentionSpec(
        task=TASK, chunks=(), buckets=(), faithfulness_slides=0, confidence=0.95, seed=0
    )
    with pytest.raises(SlideError, match="do not tell where on the slide"):
        _inside(spec, source.store("a"), tmp_path / "a.png")


class TestSimilarSlides:
    def test_tiles_of_unknown_size_are_compared_by_the_step_of_their_grid(
        self, tmp_path: Path
    ) -> None:
        made, _ = taken(tmp_path, ".h5")
        store = made.take(again=True).store("a")
        places = _places(store)
        assert places is not None
        np.testing.assert_array_equal(places[:, 0], corners(60)[:, 0] / 512)

    def test_without_places_only_equal_features_are_told(self, tmp_path: Path) -> None:
        from her2.cohort.similar import Tissue

        made, _ = taken(tmp_path, ".pt")
        store = made.take(again=True).store("a")
        assert _places(store) is None
        one, other = (Tissue(name, name, store, None) for name in "ab")
        zero, unit = np.zeros(8, np.float32), np.ones(8, np.float32)
        assert shared_tiles(one, other, zero, unit) == 1.0  # one file under two names
        write_torch(made.files / "a.pt", features_of(60, 8, seed=7))
        another = Tissue("b", "b", made.take(again=True).store("a"), None)
        assert shared_tiles(one, another, zero, unit) is None
