import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from her2.core.errors import UserError
from her2.core.files import digest, file_digest
from her2.storage.cache import Cache, Kind, Product
from her2.storage.entries import FeatureEntry, FoldEntry, TileEntry, read_entries, write_entries
from her2.storage.features import open_store
from her2.storage.products import find_product
from her2.storage.tiles import TileTable, coords_digest, read_table, write_table
from her2.storage.upkeep import forget, unused_products
from her2.storage.verify import broken_products, product_problem
from tests.unit.products import write_store
from tests.unit.tile_makers import slide_facts, tile_grid


@pytest.fixture
def cache(tmp_path) -> Cache:
    """Return an intact cache with a product of each kind, under the key digest(kind)."""
    cache = Cache(tmp_path / "cache")
    coords = np.arange(40, dtype=np.int32).reshape(20, 2)
    with cache.publish("tiles", digest("tiles")) as path:
        table = TileTable(coords, np.ones(20, np.float32), slide_facts(), tile_grid(16))
        write_table(path, table, digest("tiles"))
    with cache.publish("qc", digest("qc")) as path:
        path.write_bytes(cv2.imencode(".jpg", np.zeros((9, 9, 3), np.uint8))[1].tobytes())
    features = np.random.default_rng(0).random((20, 8)).astype(np.float16)
    with cache.publish("features", digest("features")) as path:
        write_store(path, features, coords, {"key": digest("features")})
    with cache.publish("models", digest("models")) as folder:
        (folder / "model.safetensors").write_bytes(b"weights")
        card = {
            "key": digest("models"),
            "files": {"model.safetensors": file_digest(folder / "model.safetensors")},
        }
        (folder / "card.json").write_text(json.dumps(card))
    return cache


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def first_value(path: Path) -> int:
    """Where in the file the first chunk of features begins."""
    chunk = open_store(path).chunks[0]
    assert isinstance(chunk, np.memmap)
    return chunk.offset


def the_broken(cache: Cache, kind) -> str:
    count, broken = broken_products(cache)
    assert count == 4
    assert [(product.kind, product.key) for product, _ in broken] == [(kind, digest(kind))]
    return broken[0][1]


def test_sound_products_are_sound(cache):
    assert broken_products(cache) == (4, [])


def test_a_flipped_bit_in_a_feature_is_found(cache):
    path = cache.path("features", digest("features"))
    flip(path, first_value(path) + 31)
    assert "has a wrong checksum in features/c/0/0" in the_broken(cache, "features")


def test_a_truncated_store_is_found(cache):
    path = cache.path("features", digest("features"))
    path.write_bytes(path.read_bytes()[:-30])
    assert "cannot be read" in the_broken(cache, "features")


def test_a_store_of_another_key_is_found(cache):
    path = cache.path("features", digest("features"))
    path.unlink()
    write_store(path, np.ones((2, 3), np.float16), np.zeros((2, 2), np.int32), {"key": "other"})
    assert "another key" in the_broken(cache, "features")


def test_no_flipped_bit_stops_the_search(cache):
    """A wrong bit in a header reads as encryption or another version, not as a wrong checksum."""
    path = cache.path("features", digest("features"))
    whole = path.read_bytes()
    data = first_value(path)
    found = 0
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        path.write_bytes(changed)
        count, broken = broken_products(cache)
        assert count == 4
        found += bool(broken)
        if data <= place < data + 20 * 8 * 2:
            assert broken, f"byte {place} of the features"
    assert found > len(range(0, len(whole), 7)) * 0.8


def test_changed_weights_are_found(cache):
    flip(cache.path("models", digest("models")) / "model.safetensors", 3)
    assert the_broken(cache, "models") == "has a changed file model.safetensors"


def test_a_lost_file_of_a_model_is_found(cache):
    (cache.path("models", digest("models")) / "model.safetensors").unlink()
    assert "is not a trained fold" in the_broken(cache, "models")


@pytest.mark.parametrize(
    ("card", "problem"),
    [
        ("", "not a trained fold"),
        ("[]", "not a trained fold"),
        ('{"key": 1}', "another key"),
        (json.dumps({"key": digest("models"), "files": []}), "not a trained fold"),
    ],
)
def test_a_card_that_is_none_is_found(cache, card, problem):
    (cache.path("models", digest("models")) / "card.json").write_text(card)
    assert problem in the_broken(cache, "models")


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_tile_table_is_found(cache, kept):
    path = cache.path("tiles", digest("tiles"))
    path.write_bytes(path.read_bytes()[:kept])
    assert "is not a tile table" in the_broken(cache, "tiles")


@pytest.mark.parametrize("column", [0, 1, 2], ids=["x", "y", "tissue"])
def test_a_flipped_bit_in_a_tile_table_is_found_or_changes_nothing(cache, column):
    path = cache.path("tiles", digest("tiles"))
    chunk = pa.parquet.read_metadata(path).row_group(0).column(column)
    first = chunk.dictionary_page_offset or chunk.data_page_offset
    whole, table = path.read_bytes(), read_table(path)
    found = 0
    for place in range(first, first + chunk.total_compressed_size):
        path.write_bytes(whole)
        flip(path, place)
        (product,) = (product for product in cache.products() if product.kind == "tiles")
        if product_problem(product):
            found += 1
        else:
            np.testing.assert_array_equal(read_table(path).coords, table.coords)
            np.testing.assert_array_equal(read_table(path).tissue, table.tissue)
    assert found > chunk.total_compressed_size * 0.5


def test_a_parquet_file_of_something_else_is_found(cache):
    pa.parquet.write_table(pa.table({"x": [1]}), cache.path("tiles", digest("tiles")))
    assert "is not a tile table" in the_broken(cache, "tiles")


def test_a_truncated_picture_is_found(cache):
    path = cache.path("qc", digest("qc"))
    path.write_bytes(path.read_bytes()[:-5])
    assert the_broken(cache, "qc") == "is not a complete JPEG"


def test_several_broken_products_are_all_named(cache):
    for product in list(cache.products()):
        (product.path / "card.json" if product.path.is_dir() else product.path).write_bytes(b"?")
    count, broken = broken_products(cache)
    assert (count, len(broken)) == (4, 4)


def test_many_readers_find_what_one_finds(cache):
    path = cache.path("features", digest("features"))
    flip(path, first_value(path) + 31)
    assert broken_products(cache, threads=4) == broken_products(cache)


# The identity of a store against its content


def identified(
    cache: Cache, *, identity: dict[str, object] | None = None, **changes: object
) -> Product:
    """Write a store that matches its identity, except for some changes to it or the attributes."""
    coords = np.arange(40, dtype=np.int32).reshape(20, 2)
    identity = {
        "version": 2, "fingerprint": "f", "tiles": coords_digest(coords, (16, 16)), "encoder": "e",
        "precision": "bfloat16", "storage": "float16",
    } | (identity or {})  # fmt: skip
    attributes = {
        "key": digest(identity), "identity": identity, "tiles": 20, "failed_tiles": 0,
        "slide": {"fingerprint": "f", "level0_tile": [16, 16]}, "encoder": {"digest": "e"},
        "precision": "bfloat16", **changes,
    }  # fmt: skip
    if attributes.pop("backwards", False):
        coords = coords[::-1]
    with cache.publish("features", digest(identity)) as path:
        write_store(path, np.ones((len(coords), 8), np.float16), coords, attributes)
    return next(p for p in cache.products() if p.key == digest(identity))


def test_a_store_that_is_what_its_key_says_is_sound(cache):
    assert product_problem(identified(cache)) is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"slide": {"fingerprint": "g", "level0_tile": [16, 16]}}, "fingerprint"),
        ({"slide": {"fingerprint": "f", "level0_tile": [32, 32]}}, "coordinates"),
        ({"encoder": {"digest": "d"}}, "encoder"),
        ({"precision": "float32"}, "precision"),
        ({"tiles": 19}, "number of rows"),
        ({"backwards": True}, "coordinates"),
        ({"identity": {"storage": "float32"}}, "type"),
        ({"identity": {"tiles": "00"}}, "coordinates"),
        ({"encoder": None}, "an incomplete identity"),
    ],
)
def test_a_store_of_other_content_than_its_key_says_is_found(cache, changes, problem):
    assert problem in product_problem(identified(cache, **changes))


def test_an_identity_of_another_key_is_found(cache):
    product = identified(cache)
    other = {"key": product.key, "identity": {"fingerprint": "g"}}
    product.path.unlink()
    write_store(product.path, np.ones((2, 3), np.float16), np.zeros((2, 2), np.int32), other)
    assert product_problem(product) is not None


# Quarantine


def test_a_product_in_quarantine_is_no_product_and_its_key_is_free(cache):
    product = next(p for p in cache.products() if p.kind == "features")
    target = cache.quarantine(product)
    assert target.read_bytes()
    assert cache.find("features", product.key) is None
    assert "features" not in {p.kind for p in cache.products()}
    assert cache.quarantined() == [target]
    write_store(product.path, np.ones((2, 3), np.float16), np.zeros((2, 2), np.int32), {})
    cache.quarantine(product)  # broken once more: the newer one stays
    assert cache.quarantined() == [target]


def test_only_the_jobs_that_a_broken_product_came_from_run_again(cache, tmp_path):
    folder = results(tmp_path / "results", "tiles", digest("tiles"))
    results(folder, "features", digest("features"))
    gone = forget([digest("features")], [folder, tmp_path / "absent"])
    assert gone == [folder / "features" / "name" / "0000-of-0001.json"]
    assert not gone[0].exists()
    assert (folder / "tiles" / "name" / "0000-of-0001.json").exists()


# Prune


def results(folder: Path, stage: str, key: str | None) -> Path:
    entry = {
        "tiles": TileEntry(status="ok", key=key),
        "features": FeatureEntry(status="ok" if key else "failed", key=key),
        "models": FoldEntry(key or "", 1, 1, 1, 1, 1, 0.0),
    }[stage]
    write_entries(folder / stage / "name" / "0000-of-0001.json", {"s": entry})
    return folder


@pytest.mark.parametrize("kind", ["tiles", "features", "models"])
def test_what_a_manifest_names_is_used(cache, tmp_path, kind):
    unused = unused_products(cache, [results(tmp_path / "results", kind, digest(kind))])
    kinds = {"tiles", "qc", "features", "models"}
    assert {product.kind for product in unused} == kinds - {kind}


def test_a_picture_is_used_with_its_tiles(cache, tmp_path):
    folder = results(tmp_path / "results", "tiles", digest("qc"))
    assert "qc" not in {product.kind for product in unused_products(cache, [folder])}


def test_what_any_of_several_results_names_is_used(cache, tmp_path):
    folders = [
        results(tmp_path / kind, kind, digest(kind)) for kind in ("tiles", "features", "models")
    ]
    assert [product.kind for product in unused_products(cache, folders)] == ["qc"]


def test_a_model_s_card_beside_the_manifest_does_not_confuse(cache, tmp_path):
    folder = results(tmp_path / "results", "models", digest("models"))
    card = cache.path("models", digest("models")) / "card.json"
    (folder / "models" / "name" / "r0f0").mkdir()
    (folder / "models" / "name" / "r0f0" / "card.json").write_bytes(card.read_bytes())
    assert "models" not in {product.kind for product in unused_products(cache, [folder])}


def test_a_folder_without_manifests_is_refused(cache, tmp_path):
    """Otherwise one wrong path would delete the whole cache."""
    keep = results(tmp_path / "results", "tiles", digest("tiles"))
    (tmp_path / "wrong").mkdir()
    with pytest.raises(UserError, match="has no entries files. Name the results folder"):
        unused_products(cache, [keep, tmp_path / "wrong"])


@pytest.mark.parametrize("content", ["", "[]", '{"s": '])
def test_a_manifest_that_cannot_be_read_is_refused(cache, tmp_path, content):
    keep = results(tmp_path / "results", "tiles", digest("tiles"))
    (keep / "features").mkdir()
    (keep / "features" / "broken.json").write_text(content)
    with pytest.raises(UserError, match=r"broken\.json: is not a readable entries file"):
        unused_products(cache, [keep])


def test_an_absent_entries_file_is_told_from_a_broken_one(tmp_path):
    path = tmp_path / "0000-of-0001.json"
    with pytest.raises(UserError, match=f"does not exist. Make it again .*snakemake .*{path.name}"):
        read_entries(path, FeatureEntry)


NAMES = {"tiles": "s1.parquet", "features": "s1.zarr.zip", "models": "r0f0"}


def lose(cache: Cache, kind: Kind, results: Path) -> Path:
    """Keep a product only under its name in the results, and return that path."""
    product, name = cache.path(kind, digest(kind)), results / NAMES[kind]
    results.mkdir()
    product.rename(name)
    return name


@pytest.mark.parametrize("kind", NAMES)
def test_what_the_cache_lost_is_taken_back_from_its_name(cache, kind, tmp_path):
    name = lose(cache, kind, tmp_path / "results")
    path = find_product(cache, kind, digest(kind), name)
    assert path == cache.path(kind, digest(kind))
    assert product_problem(next(p for p in cache.products() if p.kind == kind)) is None
    assert name.exists()


@pytest.mark.parametrize("kind", NAMES)
def test_what_is_broken_or_of_another_key_is_not_taken_back(cache, kind, tmp_path):
    name = lose(cache, kind, tmp_path / "results")
    with pytest.raises(UserError, match=r"another key.*Delete the entries files"):
        find_product(cache, kind, digest("another"), name)
    content = next(iter(sorted(name.glob("model*")))) if name.is_dir() else name
    content.write_bytes(content.read_bytes()[:-20])
    with pytest.raises(UserError, match="Delete the entries files"):
        find_product(cache, kind, digest(kind), name)
    assert cache.find(kind, digest(kind)) is None


@pytest.mark.parametrize("kind", NAMES)
def test_what_is_nowhere_says_what_to_delete(cache, kind, tmp_path):
    with pytest.raises(UserError, match=r"does not exist. Delete the entries files \(.json\) in"):
        find_product(cache, kind, digest("another"), tmp_path / NAMES[kind])
