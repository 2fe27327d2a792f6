"""Features of other programs become the same entries and products as those computed here."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from her2.core.errors import UserError
from her2.encoders.card import read_card
from her2.exchange import taking
from her2.mil.bags import Bag, check_dimensions
from her2.storage.features import places_known, read_coords
from her2.storage.tiles import read_table
from her2.storage.verify import broken_products
from tests.unit.cohort_makers import put_slide
from tests.unit.exchange_makers import (
    SIZE,
    TILE,
    TILES,
    VECTORS,
    corners,
    features_of,
    write_clam_h5,
    write_npy,
    write_stamp,
    write_torch,
    write_trident,
)
from tests.unit.take_makers import IDENTITY, World, row

SAID = {"mpp": 0.5, "size": 256}


def world(tmp_path: Path, *names: str) -> World:
    return World(tmp_path, tuple(row(name) for name in sorted(names)))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("form", TILES)
def test_features_of_tiles_are_kept_bit_for_bit_in_their_own_type(
    form: str, dtype: str, tmp_path: Path
) -> None:
    suffix, write = TILES[form]
    made = world(tmp_path, "a", "b")
    values = {name: features_of(40, 8, dtype, seed) for seed, name in enumerate("ab")}
    for name, rows in values.items():
        write(made.files / f"{name}{suffix}", rows)
    taken = made.take()
    for name, rows in values.items():
        store = taken.store(name)
        assert store.chunks[0].dtype == rows.dtype
        np.testing.assert_array_equal(store.features, rows)
        entry = taken.entries[name]
        assert (entry.status, entry.tiles, entry.dimension) == ("ok", 40, 8)
        assert store.attributes["given"]["form"] == form
    assert broken_products(taken.cache)[1] == []


@pytest.mark.parametrize("program", VECTORS)
def test_a_vector_of_a_slide_is_a_store_of_one_row(program: str, tmp_path: Path) -> None:
    suffix, write = VECTORS[program]
    made = world(tmp_path, "a")
    vector = features_of(1, 8)
    write(made.files / f"a{suffix}", vector)
    taken = made.take(min_tiles=20)  # which is about tiles
    np.testing.assert_array_equal(taken.store("a").features, vector)
    assert read_card(tmp_path / "encoders/uni").arguments["level"] == "slide"
    assert taken.tiles["a"].key is None
    assert not places_known(taken.store("a").attributes)


@pytest.mark.parametrize("form", [*TILES, *VECTORS])
@pytest.mark.parametrize("said", [{}, {"mpp": 0.5}, {"size": 256}, SAID])
def test_what_is_not_known_of_a_store_is_said_to_be_unknown_and_is_no_zero(
    form: str, said: dict[str, Any], tmp_path: Path
) -> None:
    suffix, write = (TILES | VECTORS)[form]
    made = world(tmp_path, "a")
    write(made.files / f"a{suffix}", features_of(5 if form in TILES else 1, 8))
    if form in ("trident", "stamp"):
        said = {}  # these files tell it themselves
    store = made.take(**said).store("a")
    assert f"{len(store)} tiles" in repr(store)
    assert (store.mpp is None) == (form != "stamp" and "mpp" not in said)
    if not store.attributes["given"]["positions"]:
        assert not places_known(store.attributes)
        with pytest.raises(UserError, match="do not tell where on the slide"):
            _ = store.coords
        table = store.to_anndata()
        assert not len(table.obs.columns)
        assert not len(table.obsm)
    else:
        np.testing.assert_array_equal(store.coords, read_coords(store.path))
        assert store.to_anndata().obsm["spatial"].shape == (len(store), 2)


@pytest.mark.parametrize("when", ["before its digest", "after its digest", "never"])
def test_a_file_that_is_replaced_while_it_is_read_gives_no_store_under_its_key(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = world(tmp_path, "a")
    path = made.files / "a.h5"
    first, second = (features_of(5, 8, "float32", seed) for seed in (0, 1))
    write_clam_h5(path, first)
    made.describe(**SAID)

    def replaced() -> None:
        write_clam_h5(tmp_path / "new", second)
        (tmp_path / "new").replace(path)

    if when != "never":
        name = "_content" if when == "before its digest" else "finite_blocks"
        own = getattr(taking, name)

        def swapped(*given: Any) -> Any:
            replaced()
            return own(*given)

        monkeypatch.setattr(taking, name, swapped)
    taken = made.take(again=True, **SAID)
    monkeypatch.undo()
    if when == "never":
        np.testing.assert_array_equal(taken.store("a").features, first)
        return
    assert "a.h5 was changed or replaced while it was read" in taken.reason("a")
    for rows in (first, second):
        write_clam_h5(path, rows)
        np.testing.assert_array_equal(made.take(again=True, **SAID).store("a").features, rows)


def test_files_that_were_swapped_are_refused_where_they_name_their_slides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Equal numbers of tiles, of one encoder: nothing else tells them apart."""
    made = world(tmp_path, "a", "b", "c", "d")
    for name, named in {"a": "b", "b": "a", "c": "c", "d": "of the scanner"}.items():
        path = write_trident(tmp_path / f"{named}.h5", features_of(5, 8, seed=ord(name)))
        path.rename(made.files / f"{name}.h5")
    taken = made.take(**SAID)
    for name, named in ("ab", "ba"):
        assert f"is of the slide '{named}', which is another one of the cohort" in taken.reason(
            name
        )
    assert [taken.entries[name].status for name in "cd"] == ["ok", "ok"]
    assert "d: says that it is of the slide 'of the scanner'" in caplog.text


def test_the_store_and_the_card_say_that_nothing_was_computed_here(tmp_path: Path) -> None:
    made = world(tmp_path, "a")
    write_trident(made.files / "a.h5", features_of(5, 8))
    taken = made.take(**SAID)
    attributes = taken.store("a").attributes
    assert attributes["given"]["computed"] == "elsewhere"
    assert attributes["given"]["identity"] == IDENTITY
    assert attributes["precision"] == "not recorded"
    card = read_card(tmp_path / "encoders/uni")
    assert not card.computed_here
    assert (card.source, card.architecture, card.mean) == ("features", IDENTITY, None)
    assert (card.size, card.mpp, card.dimension) == (256, 0.5, 8)
    assert card.provenance["computed"] == "elsewhere"
    assert "/somewhere" not in str(card) + str(attributes)


def test_training_reads_the_stores_as_those_of_one_encoder(tmp_path: Path) -> None:
    made = world(tmp_path, "a", "b")
    for name in "ab":
        write_trident(made.files / f"{name}.h5", features_of(5, 8, seed=ord(name)))
    taken = made.take(**SAID)
    bags = [Bag(n, n, taken.entries[n].key or "", taken.store(n), 0) for n in "ab"]
    assert check_dimensions(bags) == 8
    assert all(None not in bag.read[:1] for bag in bags)


class TestPlaces:
    def test_trident_tells_size_and_place_and_the_config_the_scale(self, tmp_path: Path) -> None:
        made = world(tmp_path, "a")
        write_trident(made.files / "a.h5", features_of(70, 8))
        taken = made.take(**SAID)
        slide, facts = taken.store("a").attributes["slide"], taken.tiles["a"].facts
        assert slide["mpp"] == [0.25, 0.25]  # 256 px of 0.5 um are 512 px
        assert slide["level0_tile"] == [TILE, TILE]
        assert slide["size_px"] == list(SIZE)
        assert facts is not None
        assert (facts.mpp, facts.mpp_source, facts.size_px) == ((0.25, 0.25), "features", SIZE)
        assert (facts.tissue_mm2, facts.vendor) == (None, None)  # nobody told
        key = taken.tiles["a"].key
        assert key is not None
        table = read_table(taken.cache.path("tiles", key), key)
        np.testing.assert_array_equal(table.coords, corners(70))
        assert np.isnan(table.tissue).all()

    def test_um_become_px_by_the_um_px_of_the_manifest(self, tmp_path: Path) -> None:
        made = World(tmp_path, (row("a", mpp=0.5),))
        um = np.array([[0.0, 0], [256, 0], [512.2, 256]])
        write_stamp(made.files / "a.h5", features_of(3, 8, "float16"), um)
        taken = made.take()
        assert read_coords(taken.store("a").path).tolist() == [[0, 0], [512, 0], [1024, 512]]
        assert taken.store("a").attributes["slide"]["level0_tile"] == [512, 512]
        assert taken.store("a").attributes["target"] == {"mpp": 256 / 224, "px": 224}

    def test_um_without_a_scale_are_left_out_and_not_taken_for_px(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        made = world(tmp_path, "a")
        write_stamp(made.files / "a.h5", features_of(30, 8, "float16"))
        taken = made.take()
        assert taken.entries["a"].status == "ok"
        assert not read_coords(taken.store("a").path).any()
        assert taken.store("a").attributes["slide"]["level0_tile"] is None
        assert "enter it in the manifest's column 'mpp'" in caplog.text

    def test_without_any_coordinates_the_features_are_still_used(self, tmp_path: Path) -> None:
        made = world(tmp_path, "a")
        write_torch(made.files / "a.pt", features_of(30, 8))
        taken = made.take(**SAID)
        assert (taken.entries["a"].status, taken.tiles["a"].key) == ("ok", None)
        assert taken.store("a").attributes["given"]["positions"] is False

    @pytest.mark.parametrize(
        ("said", "words"),
        [
            ({"mpp": 0.5, "size": 224}, "256 px per side, not the encoder's `size` 224"),
            ({"mpp": 1.0, "size": 256}, "features of another slide or magnification"),
        ],
    )
    def test_what_contradicts_the_file_or_the_slide_is_refused(
        self, said: dict[str, float], words: str, tmp_path: Path
    ) -> None:
        made = World(tmp_path, (row("a", mpp=0.25),))
        write_trident(made.files / "a.h5", features_of(30, 8))
        assert words in made.take(**said).reason("a")

    def test_a_nominal_magnification_is_a_caution_and_the_slide_counts(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        made = World(tmp_path, (row("a", mpp=0.22),))
        write_trident(made.files / "a.h5", features_of(30, 8))
        taken = made.take(**SAID)
        assert taken.store("a").attributes["slide"]["mpp"] == [0.22, 0.22]
        assert "have 0.44 um/px by the slide's um/px (0.22), and 0.5" in caplog.text

    def test_um_px_of_stamp_must_be_those_of_the_config(self, tmp_path: Path) -> None:
        made = world(tmp_path, "a")
        write_stamp(made.files / "a.h5", features_of(30, 8, "float16"))
        assert "so 1.143 um/px, not the encoder's `mpp` 0.5" in made.take(mpp=0.5).reason("a")


class TestSlidesThatAreThere:
    def slide(self, tmp_path: Path) -> World:
        put_slide(tmp_path / "a.svs", 1)  # 1,024 px at 0.25 um/px
        return World(tmp_path, (row("a", "a.svs"),))

    def test_facts_come_from_the_slide(self, tmp_path: Path) -> None:
        made = self.slide(tmp_path)
        write_clam_h5(made.files / "a.h5", features_of(2, 8), corners(2))
        taken = made.take(**SAID)
        facts = taken.tiles["a"].facts
        assert facts is not None
        assert (facts.vendor, facts.size_px, facts.mpp_source) == (
            "aperio", (1024, 1024), "metadata",
        )  # fmt: skip
        assert taken.store("a").attributes["slide"]["level0_tile"] == [512, 512]
        assert places_known(taken.store("a").attributes)

    def test_coordinates_outside_of_it_exclude_the_file(self, tmp_path: Path) -> None:
        made = self.slide(tmp_path)
        write_clam_h5(made.files / "a.h5", features_of(3, 8), corners(3))
        assert "outside the slide of 1,024 x 1,024 px" in made.take(**SAID).reason("a")

    def test_another_slide_s_size_excludes_the_file(self, tmp_path: Path) -> None:
        made = self.slide(tmp_path)
        write_trident(made.files / "a.h5", features_of(2, 8))
        assert "belongs to another slide" in made.take(**SAID).reason("a")

    def test_one_that_cannot_be_opened_is_said_with_the_way_out(self, tmp_path: Path) -> None:
        made = World(tmp_path, (row("a", "a.svs"),))
        (tmp_path / "a.svs").write_bytes(b"not a slide")
        write_clam_h5(made.files / "a.h5", features_of(2, 8), corners(2))
        reason = made.take(**SAID).reason("a")
        assert reason.startswith("failed: ")
        assert "empty the column 'path' to use its features without it" in reason


def test_bad_files_and_unmatched_slides_are_left_out_and_stop_no_others(tmp_path: Path) -> None:
    made = world(tmp_path, "damaged", "few", "good", "infinite", "lost", "other", "twice", "wide")
    for name, columns in (("good", 8), ("infinite", 8), ("other", 8), ("wide", 16), ("few", 8)):
        rows = features_of(2 if name == "few" else 30, columns, seed=columns)
        rows[:, 0] = np.inf if name == "infinite" else len(name)
        write_trident(made.files / f"{name}.h5", rows)
    (made.files / "damaged.h5").write_bytes(b"no file of HDF5")
    for folder in ("one", "two"):
        (made.files / folder).mkdir()
        write_trident(made.files / folder / "twice.h5", features_of(30, 8))
    taken = made.take(min_tiles=3, **SAID)
    good = {name for name, entry in taken.entries.items() if entry.status == "ok"}
    assert good == {"good", "other"}
    for name, words in {
        "damaged": "failed: damaged.h5: ",
        "few": "excluded: 2 tile(s), fewer than tiling.min_tiles 3",
        "infinite": "failed: infinite.h5: row 0 of 30 has values that are not finite",
        "lost": "excluded: no feature file has its id",
        "twice": "excluded: 2 feature files have its slide id",
        "wide": "excluded: it has 16 features per row, the encoder's other files have 8",
    }.items():
        assert words in taken.reason(name)


def test_files_of_tiles_and_of_slides_do_not_mix(tmp_path: Path) -> None:
    made = world(tmp_path, "a", "b", "c")
    for name in "ab":
        write_trident(made.files / f"{name}.h5", features_of(30, 8))
    write_npy(made.files / "c.npy", features_of(1, 8))
    assert "features of a slide, those of the encoder are of a tile" in made.take().reason("c")


def test_a_folder_of_several_encoders_is_refused_with_its_files(tmp_path: Path) -> None:
    made = world(tmp_path, "a", "b")
    for name, columns in (("a", 8), ("b", 16)):
        write_trident(made.files / f"{name}.h5", features_of(30, columns))
    with pytest.raises(UserError, match="of several encoders; name one folder") as error:
        made.describe()
    assert "16 values per tile" in str(error.value)


def test_a_folder_without_a_usable_file_is_refused_with_the_reasons(tmp_path: Path) -> None:
    made = world(tmp_path, "a")
    (made.files / "a.h5").write_bytes(b"no file of HDF5")
    with pytest.raises(UserError, match="none of its feature files can be used") as error:
        made.describe()
    assert "a: a.h5: " in str(error.value)


class TestKeys:
    def keys(self, taken: object) -> dict[str, str | None]:
        return {name: entry.key for name, entry in taken.entries.items()}  # type: ignore[attr-defined]

    def filled(self, tmp_path: Path) -> World:
        made = world(tmp_path, "a", "b")
        for name in "ab":
            write_trident(made.files / f"{name}.h5", features_of(30, 8, seed=ord(name)))
        return made

    def test_a_file_of_other_content_changes_its_slide_only(self, tmp_path: Path) -> None:
        made = self.filled(tmp_path)
        before = self.keys(made.take(**SAID))
        write_trident(made.files / "a.h5", features_of(30, 8, seed=5))
        after = self.keys(made.take(**SAID))
        assert (before["a"] != after["a"], before["b"] == after["b"]) == (True, True)

    def test_another_identity_changes_every_slide(self, tmp_path: Path) -> None:
        made = self.filled(tmp_path)
        before = self.keys(made.take(**SAID))
        after = self.keys(made.take(identity="UNI, TRIDENT 0.4.0", **SAID))
        assert not set(before.values()) & set(after.values())

    def test_a_renamed_file_or_slide_changes_nothing(self, tmp_path: Path) -> None:
        made = self.filled(tmp_path)
        before = self.keys(made.take(**SAID))
        (made.files / "elsewhere").mkdir()
        (made.files / "a.h5").rename(made.files / "elsewhere/c.h5")
        renamed = World(tmp_path, (row("b"), row("c")))
        after = self.keys(renamed.take(**SAID))
        assert (after["c"], after["b"]) == (before["a"], before["b"])

    def test_the_second_time_everything_comes_from_the_cache(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        made = self.filled(tmp_path)
        made.take(**SAID)
        caplog.set_level(logging.INFO)
        made.take(again=True, **SAID)
        assert caplog.text.count("features from the cache") == 2

    def test_an_edited_store_is_made_again(self, tmp_path: Path) -> None:
        made = self.filled(tmp_path)
        taken = made.take(**SAID)
        key = taken.entries["a"].key or ""
        path = taken.cache.path("features", key)
        content = bytearray(path.read_bytes())
        at = content.index(features_of(30, 8, seed=ord("a")).tobytes())
        content[at] ^= 1
        path.chmod(0o644)
        path.write_bytes(content)
        again = made.take(again=True, **SAID)
        np.testing.assert_array_equal(again.store("a").features, features_of(30, 8, seed=ord("a")))
        assert broken_products(taken.cache)[1] == []


def test_links_of_a_slide_that_fails_now_go_away(tmp_path: Path) -> None:
    made = world(tmp_path, "a", "b")
    for name in "ab":
        write_trident(made.files / f"{name}.h5", features_of(30, 8))
    made.take(**SAID)
    links = [tmp_path / "tiles/a.parquet", tmp_path / "features/a.zarr.zip"]
    assert all(link.exists() for link in links)
    (made.files / "a.h5").unlink()
    made.take(**SAID)
    assert not any(link.exists() for link in links)
