"""A tile at a place, its neighbours, why there is none, and slides that are tiled again."""

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import polars as pl
import pytest

from her2.config import TilingSection
from her2.core.errors import SlideError, UserError
from her2.filters.registry import FILTERS
from her2.storage.facts import StoredSlide, TileGrid
from her2.tiling.artefacts import KEPT, Judgement
from her2.viewer.layers import rejected
from her2.viewer.overlay import nowhere, retiling
from her2.viewer.overlay.layer import Categories, Painted, Seen
from her2.viewer.overlay.retiling import ComputingError, Retiled, Retiling
from her2.viewer.pages.tile import neighbour, tile_at
from her2.viewer.run import NotThereError, ViewedCohort
from her2.viewer.slide_facts import _extent
from her2.viewer.stored import PlacedTiles
from her2.viewer.zoom import TILE_PX

SIDE = 100.0


def placed(*corners: tuple[int, int]) -> PlacedTiles:
    slide = StoredSlide("f", (0.5, 0.5), "metadata", (SIDE, SIDE), (10_000, 10_000))
    return PlacedTiles("e", np.array(corners, np.int32), slide, (1.0, 50))


@pytest.mark.parametrize(
    ("x", "y", "index"),
    [(0, 0, 0), (99.9, 99.9, 0), (100, 0, 1), (100, 100, None), (-0.1, 0, None), (199.9, 5, 1)],
)
def test_a_place_is_of_the_tile_whose_px_it_is(x: float, y: float, index: int | None) -> None:
    assert tile_at(placed((0, 0), (100, 0)), x, y) == index


def test_of_tiles_that_overlap_the_one_with_the_nearest_middle_counts() -> None:
    tiles = placed((0, 0), (50, 0), (100, 0))
    assert [tile_at(tiles, x, 50) for x in (10, 70, 80, 120, 130)] == [0, 0, 1, 1, 2]


def test_a_neighbour_is_the_next_in_the_row_before_one_that_is_aside() -> None:
    tiles = placed((0, 0), (200, 0), (100, 100), (0, 300))
    assert neighbour(tiles, 0, "right") == 1  # two ahead, and the other is one ahead and one aside
    assert neighbour(tiles, 0, "down") == 3
    assert neighbour(tiles, 1, "left") == 0
    assert neighbour(tiles, 0, "up") is None
    assert neighbour(tiles, 0, "left") is None
    with pytest.raises(NotThereError, match="left, right, up, down"):
        neighbour(tiles, 0, "north")


@pytest.mark.parametrize("index", [-1, 2])
def test_there_is_no_box_of_a_tile_that_is_none(index: int) -> None:
    with pytest.raises(NotThereError, match="has 2 of them"):
        placed((0, 0), (100, 0)).box(index)


def retiled(**changed: Any) -> Retiled:
    """Tissue in the left half of 400 x 200 px: a tile kept, one not drawn, two rejected."""
    tissue = np.zeros((20, 40), bool)
    tissue[:, :20] = True
    pen = next(i for i, one in enumerate(FILTERS) if one.name == "pen")
    blur = next(i for i, one in enumerate(FILTERS) if one.name == "blur")
    values = {one.name: np.zeros(4, np.float32) for one in FILTERS}
    values["pen"][2], values["blur"][3] = 0.31, 0.9
    judgement = Judgement(tuple(FILTERS), np.array([KEPT, KEPT, pen, blur]), values, {})
    made: dict[str, Any] = {
        "grid": TileGrid(target_mpp=1.0, tile_px=50, level0_width=SIDE, level0_height=SIDE,
                         read_level=0),
        "tissue": tissue,
        "coords": np.array([(0, 0), (100, 0), (0, 100), (100, 100)], np.int32),
        "found": judgement,
        "drawn": np.array([0]),
        "tiling": TilingSection(),
        "size_px": (400, 200),
        "differs": None,
    }  # fmt: skip
    return Retiled(**made | changed)


def seen_with(found: Retiled | None) -> Seen:
    """A slide of which this is known."""
    known = SimpleNamespace(known=lambda *_: found)
    viewer = SimpleNamespace(part=lambda _: known)
    one = Seen(cast(Any, SimpleNamespace(viewer=viewer, cohort=None, slide_id="a")), "t/e/h")
    run = SimpleNamespace(
        model=lambda _: SimpleNamespace(encoder="e"),
        config=SimpleNamespace(encoders={"e": SimpleNamespace(grid="50px-1mpp")}),
    )
    viewer.run = run
    return one


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (150, 50, "it was not drawn (tiling.max_tiles)"),
        (50, 150, "Rejected for pen: 0.31, more than tiling.max_pen 0.05"),
        (150, 150, "more than tiling.max_blur"),
        (250, 50, "Not tissue: 0 % of this place of the grid is tissue, less than"),
        (399, 199, "Not tissue: 0 %"),
        (400, 10, "beyond the slide"),
        (10, 250, "beyond the slide"),
        (-1, 10, "beyond the slide"),
    ],
)  # fmt: skip
def test_why_there_is_no_tile_is_said(x: float, y: float, words: str) -> None:
    assert words in nowhere.why_no_tile(seen_with(retiled()), x, y)


def test_before_a_slide_was_tiled_again_it_is_said_how_to_know() -> None:
    assert "Switch on the layer" in nowhere.why_no_tile(seen_with(None), 5, 5)


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_the_share_of_tissue_is_that_of_the_place_of_the_grid(overlap: float) -> None:
    found = retiled(tiling=TilingSection(overlap=overlap), coords=np.zeros((4, 2), np.int32) + 999)
    # With tiles every 50 px, the place at x = 160 begins at 150, of which half is tissue.
    share = "50 %" if overlap else "100 %"
    assert f"Not tissue: {share}" in nowhere.why_no_tile(seen_with(found), 160, 20)


def test_rejected_tiles_are_counted_by_their_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Seen, "retiled", lambda _: retiled(differs="differs"))
    made = rejected.make(seen_with(None))
    assert isinstance(made, Painted)
    assert isinstance(made.legend, Categories)
    rows = {row.label.partition(",")[0]: (row.count, row.colour) for row in made.legend.rows}
    pen = "#{:02x}{:02x}{:02x}".format(*next(o.colour for o in FILTERS if o.name == "pen"))
    assert rows["pen"] == (1, pen)
    assert {name: count for name, (count, _) in rows.items()} == {
        "pen": 1, "out of focus": 1, "kept": 1,
    }  # fmt: skip
    assert (len(made.levels), made.note) == (3, "differs")
    monkeypatch.setattr(Seen, "retiled", lambda _: retiled(drawn=np.arange(4)))
    with pytest.raises(UserError, match="no tile with enough tissue was rejected"):
        rejected.make(seen_with(None))


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], Retiled]]:
    """What tiling a slide does, by its id."""
    found: dict[str, Callable[[], Retiled]] = {}
    monkeypatch.setattr(retiling, "_prepare", lambda _, __, slide_id, ___: found[slide_id])
    monkeypatch.setattr(retiling, "_FIRST_WAIT_SECONDS", 0.05)
    return found


def no_file(slide_id: str) -> Any:
    raise NotThereError(slide_id)


COHORT = cast(ViewedCohort, SimpleNamespace(key="development", file=no_file, folder=Path()))


def ask(one: Retiling, slide_id: str) -> Retiled:
    return one.find(cast(Any, None), COHORT, slide_id, "g")


def test_a_slow_slide_is_computed_while_the_page_asks_again(
    work: dict[str, Callable[[], Retiled]],
) -> None:
    go, one, expected = threading.Event(), Retiling(), retiled()
    work["slow"] = lambda: expected if go.wait(30) else retiled()
    work["next"] = retiled
    with pytest.raises(ComputingError, match="is being tiled again") as first:
        ask(one, "slow")
    with pytest.raises(ComputingError, match="waits for another slide"):
        ask(one, "next")
    with pytest.raises(ComputingError) as later:
        ask(one, "slow")
    assert later.value.seconds > first.value.seconds
    assert one.known(COHORT, "slow", "g") is None
    go.set()
    for _ in range(100):
        if one.known(COHORT, "next", "g") is not None:
            break
        threading.Event().wait(0.02)
    assert ask(one, "slow") is expected is one.known(COHORT, "slow", "g")


def test_a_slide_that_fails_is_tried_again_when_it_is_asked_for(
    work: dict[str, Callable[[], Retiled]],
) -> None:
    def fail() -> Retiled:
        raise SlideError("damaged")

    one, work["a"] = Retiling(), fail
    for _ in range(2):
        with pytest.raises(SlideError, match="damaged"):
            ask(one, "a")
    work["a"] = retiled
    assert ask(one, "a").differs is None


def test_only_the_latest_slides_stay_in_memory(work: dict[str, Callable[[], Retiled]]) -> None:
    one = Retiling()
    made: list[str] = []

    def tiles(name: str) -> Retiled:
        made.append(name)
        return retiled()

    for name in "abcdef":
        work[name] = partial(tiles, name)
        ask(one, name)
    ask(one, "f")
    ask(one, "a")
    assert made == [*"abcdef", "a"]


def test_the_slide_that_was_asked_for_last_is_tiled_first_and_abandoned_ones_are_not(
    work: dict[str, Callable[[], Retiled]], monkeypatch: pytest.MonkeyPatch
) -> None:
    go, one, made = threading.Event(), Retiling(), list[str]()

    def tiles(name: str) -> Retiled:
        made.append(name)
        if name == "slow":
            go.wait(30)
        return retiled()

    before = threading.active_count()
    for name in ("slow", *(f"passed-{number}" for number in range(20)), "wanted"):
        work[name] = partial(tiles, name)
        monkeypatch.setattr(retiling, "_FIRST_WAIT_SECONDS", 0.05 if name == "slow" else 0.0)
        with pytest.raises(ComputingError):
            ask(one, name)
    assert threading.active_count() == before + 1  # not one for each slide that was passed
    monkeypatch.setattr(retiling, "_ABANDONED_SECONDS", 0.05)
    threading.Event().wait(0.1)
    for name in ("passed-3", "wanted"):
        with pytest.raises(ComputingError):
            ask(one, name)
    go.set()
    for _ in range(100):
        if one.known(COHORT, "passed-3", "g") is not None:
            break
        threading.Event().wait(0.02)
    assert made == ["slow", "wanted", "passed-3"]


@pytest.mark.parametrize("content", [b"PAR1 and no more", b""])
def test_a_damaged_tile_table_is_no_reason_to_show_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tiles/g").mkdir(parents=True)
    (tmp_path / "tiles/g/a.parquet").write_bytes(content)
    one: Any = SimpleNamespace(cohort=SimpleNamespace(folder=tmp_path), slide_id="a")
    assert _extent(one, pl.DataFrame({"grid": ["g", "absent"]})) == (TILE_PX, TILE_PX)
