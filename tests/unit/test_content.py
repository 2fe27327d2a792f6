"""What is read says what it is: each kind of product, swapped, edited, and written to in place."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2.config import EncoderSection
from her2.core import checksums
from her2.core.errors import SlideError, UserError
from her2.core.files import canonical_json, digest, file_digest, link
from her2.encoders.card import IDENTITY_NAME, read_card, write_card
from her2.slides import fingerprint as module
from her2.slides.fingerprint import checksum, fingerprint
from her2.storage import products
from her2.storage.cache import SUFFIXES, Cache, Kind, Product
from her2.storage.features import FeatureStore, seal_holds
from her2.storage.fold_files import CARD_NAME, check_fold, write_fold_card, write_identity
from her2.storage.pictures import sealed_picture
from her2.storage.products import find_product, intact, note_intact, trusted
from her2.storage.tiles import TileTable, coords_digest, write_table
from her2.storage.verify import broken_products, product_problem
from tests.unit.products import materialise, write_store
from tests.unit.tile_makers import slide_facts, tile_grid

KINDS: tuple[Kind, ...] = tuple(SUFFIXES)
COORDS = np.arange(40, dtype=np.int32).reshape(20, 2)


# Products of a kind; `name` tells their contents and keys apart


def put_tiles(cache: Cache, name: str) -> str:
    identity = {"stage": "tile", "fingerprint": name}
    facts = slide_facts(fingerprint=name, checksum=digest(name))
    shares = np.full(20, 0.5 + len(name) / 100, np.float32)
    table = TileTable(COORDS, shares, facts, tile_grid(16), identity=identity)
    with cache.publish("tiles", digest(identity)) as path:
        write_table(path, table, digest(identity))
    return digest(identity)


def put_picture(cache: Cache, name: str) -> str:
    key = digest(["picture", name])
    picture = np.full((40, 40, 3), 10 * len(name), np.uint8)
    with cache.publish("qc", key) as path:
        path.write_bytes(sealed_picture(cv2.imencode(".jpg", picture)[1].tobytes(), key))
    return key


def put_store(cache: Cache, name: str) -> str:
    identity = {
        "stage": "embed", "fingerprint": name, "tiles": coords_digest(COORDS, (16, 16)),
        "encoder": "e", "precision": "float32", "storage": "float16",
    }  # fmt: skip
    attributes = {
        "key": digest(identity), "identity": identity, "tiles": 20, "failed_tiles": 0,
        "slide": {"fingerprint": name, "level0_tile": [16, 16], "checksum": digest(name)},
        "encoder": {"digest": "e"}, "precision": "float32",
    }  # fmt: skip
    with cache.publish("features", digest(identity)) as path:
        write_store(path, np.full((20, 8), len(name), np.float16), COORDS, attributes)
    return digest(identity)


def put_fold(cache: Cache, name: str) -> str:
    identity = {"stage": "train", "seed": name}
    with cache.publish("models", digest(identity)) as folder:
        (folder / "model.safetensors").write_text(name)
        pl.DataFrame({"slide_id": [name], "prob_a": [0.5]}).write_parquet(
            folder / "predictions.parquet"
        )
        write_identity(folder, identity, {name: ["rows", None]})
        write_fold_card(folder, {"key": digest(identity)})
    return digest(identity)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    section = EncoderSection(source="random", model="timm/test_vit", mpp=0.5, size=64)
    materialise(section, 1, folder)
    return folder


@pytest.fixture
def put(weights: Path) -> dict[str, Callable[[Cache, str], str]]:
    def put_encoder(cache: Cache, name: str) -> str:
        card = read_card(weights)
        identity = {
            "stage": "pretrain", "data": name, "target": [card.mpp, card.size],
            "model": [card.library, card.architecture, card.feature],
            "card": [card.precision, card.storage],
        }  # fmt: skip
        with cache.publish("encoders", digest(identity)) as folder:
            shutil.copyfile(weights / "weights.safetensors", folder / "weights.safetensors")
            (folder / IDENTITY_NAME).write_text(canonical_json(identity))
            write_card(folder, replace(card, provenance={"key": digest(identity)}))
        return digest(identity)

    return {
        "tiles": put_tiles, "qc": put_picture, "features": put_store, "models": put_fold,
        "encoders": put_encoder,
    }  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


# Edits of a kind, after which every checksum of the file format is right


def edit_tiles(path: Path) -> None:
    table = pa.parquet.read_table(path)
    tissue = pa.array(np.ones(len(table), np.float32))
    changed = table.set_column(table.column_names.index("tissue"), "tissue", tissue)
    overwrite(path, lambda to: pa.parquet.write_table(changed, to, write_page_checksum=True))


def edit_picture(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(bytes(content))


def edit_store(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {item: archive.read(item) for item in archive.namelist()}
    name = next(item for item in members if item.startswith("features/c/"))
    members[name] = np.flip(np.frombuffer(members[name], "u1") ^ 1).tobytes()

    def write(to: Path) -> None:
        with zipfile.ZipFile(to, "w", zipfile.ZIP_STORED) as archive:
            for item, content in members.items():
                archive.writestr(item, content)

    overwrite(path, write)


def edit_fold(folder: Path) -> None:
    table = pl.read_parquet(folder / "predictions.parquet").with_columns(prob_a=pl.lit(0.9))
    overwrite(folder / "predictions.parquet", table.write_parquet)
    card = json.loads((folder / CARD_NAME).read_text())
    changed = file_digest(folder / "predictions.parquet")
    card["files"]["predictions.parquet"] = changed
    (folder / CARD_NAME).write_text(canonical_json(card))


def edit_encoder(folder: Path) -> None:
    write_card(folder, replace(read_card(folder), mpp=0.25))


EDITS: dict[str, Callable[[Path], None]] = {
    "tiles": edit_tiles, "qc": edit_picture, "features": edit_store, "models": edit_fold,
    "encoders": edit_encoder,
}  # fmt: skip


def overwrite(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file anew, but into its inode, so that all hard links to it change."""
    other = path.with_name("other" + path.name)
    write(other)
    path.write_bytes(other.read_bytes())
    other.unlink()


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_believed_as_it_was_made(cache, put, kind):
    key = put[kind](cache, "a")
    assert trusted(cache, kind, key) == intact(cache, kind, key) == cache.path(kind, key)
    assert broken_products(cache) == (1, [])


@pytest.mark.parametrize("kind", KINDS)
def test_swapped_products_are_moved_aside_and_found_by_verification(cache, put, kind):
    keys = [put[kind](cache, name) for name in ("a", "bb")]
    swap(*(cache.path(kind, key) for key in keys))
    assert {product.key for product, _ in broken_products(cache)[1]} == set(keys)
    assert [intact(cache, kind, key) for key in keys] == [None, None]
    assert all(cache.find(kind, key) for key in keys)
    assert [trusted(cache, kind, key) for key in keys] == [None, None]
    assert not any(cache.find(kind, key) for key in keys)
    assert len(cache.quarantined()) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_an_edited_product_is_moved_aside_though_the_checksums_of_its_format_are_right(
    cache, put, kind
):
    key = put[kind](cache, "a")
    EDITS[kind](cache.path(kind, key))
    ((product, _),) = broken_products(cache)[1]
    assert product.key == key
    assert trusted(cache, kind, key) is None
    assert len(cache.quarantined()) == 1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "encoders"])
def test_writing_in_place_to_a_link_in_the_results_is_noticed(cache, put, kind, tmp_path):
    key = put[kind](cache, "a")
    if kind == "features":
        note_intact(cache, key)
    assert trusted(cache, kind, key)
    product, name = cache.path(kind, key), tmp_path / "name"
    for item in sorted(product.iterdir()) if product.is_dir() else [product]:
        link(item, name / item.name if product.is_dir() else name)
    assert trusted(cache, kind, key), "a link is no change"
    EDITS[kind](name)
    assert trusted(cache, kind, key) is None


@pytest.mark.parametrize("kind", ["tiles", "features", "models"])
def test_what_was_edited_in_the_results_is_not_taken_back(cache, put, kind, tmp_path):
    key = put[kind](cache, "a")
    name = tmp_path / "name"
    cache.path(kind, key).rename(name)
    EDITS[kind](name)
    with pytest.raises(UserError, match="is not in the cache"):
        find_product(cache, kind, key, name)
    assert cache.find(kind, key) is None


@pytest.mark.parametrize("kind", ["tiles", "features", "models"])
def test_a_wrong_product_is_replaced_by_the_right_one_of_the_results(cache, put, kind, tmp_path):
    keys = [put[kind](cache, name) for name in ("a", "bb")]
    names = [tmp_path / key for key in keys]
    for key, name in zip(keys, names, strict=True):
        product = cache.path(kind, key)
        (shutil.copytree if product.is_dir() else shutil.copyfile)(product, name)
    swap(*(cache.path(kind, key) for key in keys))
    for key, name in zip(keys, names, strict=True):
        assert find_product(cache, kind, key, name) == cache.path(kind, key)
    assert broken_products(cache) == (2, [])


def test_an_intact_store_is_read_completely_only_once(cache, put, monkeypatch):
    key = put["features"](cache, "a")
    reads: list[Path] = []

    def counting(store: FeatureStore) -> bool:
        reads.append(store.path)
        return seal_holds(store)

    monkeypatch.setattr(products, "seal_holds", counting)
    for _ in range(3):
        assert trusted(cache, "features", key)
    assert len(reads) == 1
    key = put["features"](cache, "bb")
    note_intact(cache, key)
    assert trusted(cache, "features", key)
    assert len(reads) == 1
    os.utime(cache.path("features", key))
    assert trusted(cache, "features", key)
    assert len(reads) == 2


def test_products_of_older_versions_have_no_seal_and_are_believed(cache, put):
    tiles, picture, fold = (put[kind](cache, "a") for kind in ("tiles", "qc", "models"))
    path = cache.path("tiles", tiles)
    table = pa.parquet.read_table(path)
    old = {k: v for k, v in table.schema.metadata.items() if k in (b"her2", b"her2.key")}
    pa.parquet.write_table(table.replace_schema_metadata(old), path)
    path = cache.path("qc", picture)
    cv2.imwrite(str(path), cv2.imread(str(path)))
    folder = cache.path("models", fold)
    (folder / "identity.json").unlink()
    card = json.loads((folder / CARD_NAME).read_text())
    del card["seal"], card["files"]["identity.json"]
    (folder / CARD_NAME).write_text(json.dumps(card))
    for kind, key in (("tiles", tiles), ("qc", picture), ("models", fold)):
        assert trusted(cache, kind, key), kind


def test_a_table_that_lost_its_seal_but_not_its_identity_was_edited(cache, put):
    path = cache.path("tiles", put["tiles"](cache, "a"))
    table = pa.parquet.read_table(path)
    kept = {k: v for k, v in table.schema.metadata.items() if k != b"her2.seal"}
    pa.parquet.write_table(table.replace_schema_metadata(kept), path)
    assert "was edited" in product_problem(Product("tiles", path.stem, path, 0))


@pytest.mark.parametrize("name", ["predictions.parquet", "model.safetensors", CARD_NAME])
def test_a_file_of_a_fold_is_compared_with_its_card_before_it_is_read(cache, put, name):
    folder = cache.path("models", put["models"](cache, "a"))
    check_fold(folder, ["predictions.parquet", "model.safetensors"])
    path = folder / name
    path.write_bytes(path.read_bytes().replace(b"a", b"b"))
    with pytest.raises(UserError, match=r"(changed file|edited).*--quarantine"):
        check_fold(folder, ["predictions.parquet", "model.safetensors"])


def test_a_file_that_the_card_does_not_name_is_none_of_the_fold_s(cache, put):
    folder = cache.path("models", put["models"](cache, "a"))
    check_fold(folder, ["maps.safetensors"])
    (folder / "maps.safetensors").touch()
    with pytest.raises(UserError, match=r"maps\.safetensors that its card does not name"):
        check_fold(folder, ["maps.safetensors"])


# The checksum of a slide


@pytest.fixture
def small_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the fingerprint sample a file of 20 kB as it does one of 20 MB."""
    monkeypatch.setattr(module, "_HEAD_BYTES", 1000)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 64)


def test_damage_between_the_samples_changes_the_checksum_and_not_the_fingerprint(
    tmp_path, small_samples
):
    slide = tmp_path / "slide.svs"
    slide.write_bytes(np.random.default_rng(0).bytes(20_000))
    before = fingerprint(slide), checksum(slide, tmp_path / "index")
    content = bytearray(slide.read_bytes())
    content[1100:1160] = bytes(60)
    slide.write_bytes(content)
    assert fingerprint(slide) == before[0]
    assert checksum(slide, tmp_path / "index") != before[1]


@given(st.binary(min_size=1, max_size=300), st.data())
def test_any_changed_byte_changes_the_checksum(tmp_path_factory, content, data):
    folder = tmp_path_factory.mktemp("slide")
    (folder / "a.svs").write_bytes(content)
    before = checksum(folder / "a.svs", folder / "index")
    place = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[place] ^= data.draw(st.integers(1, 255))
    (folder / "a.svs").write_bytes(changed)
    assert checksum(folder / "a.svs", folder / "index") != before


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the digests that are computed from now on."""
    computed: list[int] = []

    def counting(index: Path, path: Path, state: checksums.State, compute: Callable[[], str]):
        def counted_compute() -> str:
            computed.append(1)
            return compute()

        return checksums.digest_of(index, path, state, counted_compute)

    monkeypatch.setattr(module, "digest_of", counting)
    return computed


def test_the_checksum_is_computed_once_for_each_state_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "SETTLED_SECONDS", 0)
    computed = counted(monkeypatch)
    slide, index = tmp_path / "slide.svs", tmp_path / "index"
    slide.write_bytes(b"good")
    found = [checksum(slide, index) for _ in range(3)]
    assert (len(set(found)), len(computed)) == (1, 1)
    shutil.rmtree(index)
    assert checksum(slide, index) == found[0]
    assert len(computed) == 2


def test_a_copy_over_the_file_that_keeps_size_time_and_inode_is_another_state(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(checksums, "SETTLED_SECONDS", 0)
    slide, index = tmp_path / "slide.svs", tmp_path / "index"
    slide.write_bytes(b"baad")
    before, state = checksum(slide, index), slide.stat()
    slide.write_bytes(b"good")
    os.utime(slide, ns=(state.st_atime_ns, state.st_mtime_ns))
    after = slide.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        state.st_size, state.st_mtime_ns, state.st_ino,
    )  # fmt: skip
    assert checksum(slide, index) != before


def test_a_file_that_was_just_written_is_not_remembered(tmp_path, monkeypatch):
    computed = counted(monkeypatch)
    slide = tmp_path / "slide.svs"
    slide.write_bytes(b"good")
    for _ in range(2):
        checksum(slide, tmp_path / "index")
    assert len(computed) == 2


def test_a_file_that_grows_while_it_is_read_is_the_slide_s_failure(tmp_path, monkeypatch):
    slide = tmp_path / "slide.svs"
    slide.write_bytes(b"half")
    states = iter([[[4, 1, 1, 1]], [[8, 2, 1, 2]]])
    monkeypatch.setattr(module, "state_of", lambda *_, **__: next(states))
    with pytest.raises(SlideError, match="changed while it was read; run again"):
        checksum(slide, tmp_path / "index")


def test_an_index_that_cannot_be_written_is_the_same_as_none(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "SETTLED_SECONDS", 0)
    (tmp_path / "file").touch()
    (tmp_path / "slide.svs").write_bytes(b"good")
    found = checksum(tmp_path / "slide.svs", tmp_path / "file" / "index")
    assert found == checksum(tmp_path / "slide.svs", tmp_path / "index")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"sha256": 1}', '{"state": [], "sha256": ""}'])
def test_an_index_that_is_damaged_is_the_same_as_none(tmp_path, monkeypatch, content):
    monkeypatch.setattr(checksums, "SETTLED_SECONDS", 0)
    slide, index = tmp_path / "slide.svs", tmp_path / "index"
    slide.write_bytes(b"good")
    before = checksum(slide, index)
    (path,) = index.rglob("*.json")
    path.write_text(content)
    assert checksum(slide, index) == before
