import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from her2.core.errors import UserError
from her2.storage.cache import SUFFIXES, Cache, remove

KEY = hashlib.sha256(b"a").hexdigest()
OTHER = hashlib.sha256(b"b").hexdigest()
KINDS = list(SUFFIXES)


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


def fill(path: Path, text: str) -> None:
    """Write a product: a folder for a model, else a file."""
    (path / "part" if path.is_dir() else path).write_text(text)


def content(path: Path) -> str:
    return (path / "part" if path.is_dir() else path).read_text()


def put(cache: Cache, kind, key: str, text: str = "x") -> Path:
    with cache.publish(kind, key) as path:
        fill(path, text)
    return cache.path(kind, key)


def files(cache: Cache) -> list[str]:
    return sorted(
        str(path.relative_to(cache.root)) for path in cache.root.rglob("*") if path.is_file()
    )


def test_a_product_lies_where_its_key_says(cache):
    assert cache.path("features", KEY) == cache.root / f"features/{KEY[:2]}/{KEY}.zarr.zip"
    assert cache.path("models", KEY) == cache.root / f"models/{KEY[:2]}/{KEY}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_found_once_it_is_published(cache, kind):
    assert cache.find(kind, KEY) is None
    with cache.publish(kind, KEY) as path:
        fill(path, "whole")
        assert cache.find(kind, KEY) is None
    assert content(cache.find(kind, KEY)) == "whole"
    assert cache.find(kind, OTHER) is None


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_publishes_nothing_and_leaves_nothing(cache, kind):
    def fail(path: Path) -> None:
        fill(path, "half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), cache.publish(kind, KEY) as path:
        fail(path)
    assert cache.find(kind, KEY) is None
    assert files(cache) == []
    assert list(cache.products()) == []
    assert cache.leftovers(older_than_seconds=-60) == []


@pytest.mark.parametrize("kind", KINDS)
def test_two_publishers_of_one_key_both_end_well(cache, kind):
    with cache.publish(kind, KEY) as slow:
        fill(slow, "same")
        with cache.publish(kind, KEY) as fast:
            assert fast != slow
            fill(fast, "same")
    assert content(cache.find(kind, KEY)) == "same"
    assert len(files(cache)) == 1


@pytest.mark.parametrize("kind", ["tiles", "models"])
def test_many_publishers_of_one_key_all_end_well(cache, kind):
    barrier = threading.Barrier(8)

    def publish(_: int) -> str:
        barrier.wait()
        return content(put(cache, kind, KEY, "same"))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(publish, range(8))) == ["same"] * 8
    assert len(files(cache)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_below_a_file_is_an_error_that_names_the_product(tmp_path, kind):
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file" / "cache")
    with pytest.raises(UserError, match="cannot be written") as error, cache.publish(kind, KEY):
        pytest.fail("there is no such folder")
    assert str(cache.path(kind, KEY)) in str(error.value)


def test_products_are_listed_with_kind_key_and_size(cache):
    put(cache, "tiles", KEY, "123")
    put(cache, "tiles", OTHER, "12345")
    put(cache, "models", KEY, "1234")
    found = [(p.kind, p.key, p.size_bytes, p.path) for p in cache.products()]
    assert found == [
        *(
            ("tiles", key, size, cache.path("tiles", key))
            for key, size in sorted([(KEY, 3), (OTHER, 5)])
        ),
        ("models", KEY, 4, cache.path("models", KEY)),
    ]


def test_what_is_no_product_is_not_listed(cache):
    path = put(cache, "tiles", KEY)
    (path.parent / "notes.parquet").touch()
    (path.parent / f".{KEY}.tmp.parquet").touch()
    put(cache, "models", KEY).with_name(".0a1b2c.tmp.x").mkdir()
    (cache.root / "README").touch()
    assert [product.kind for product in cache.products()] == ["tiles", "models"]


def test_an_absent_cache_is_empty(cache):
    assert list(cache.products()) == []
    assert cache.leftovers() == []


@pytest.mark.parametrize("kind", KINDS)
def test_only_leftovers_older_than_a_week_are_nobody_s(cache, kind):
    """A killed job cannot clean up, while a running one may take days."""
    day = 24 * 3600
    killed = cache.publish(kind, KEY)
    old = killed.__enter__()
    running = cache.publish(kind, OTHER)
    young = running.__enter__()
    for path, days in ((old, 8), (young, 6)):
        fill(path, "half")
        os.utime(path, (time.time() - days * day,) * 2)
    assert cache.leftovers() == [old]
    remove(old)
    assert not old.exists()
    assert young.exists()
    put(cache, kind, OTHER)
    assert cache.leftovers() == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_removed_product_is_gone_and_leaves_nothing(cache, kind):
    path = put(cache, kind, KEY)
    remove(path)
    assert cache.find(kind, KEY) is None
    assert files(cache) == []
    assert list(path.parent.iterdir()) == []
