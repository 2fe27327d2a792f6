import errno
import hashlib
import json
import os
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2.core.errors import UserError
from her2.core.files import (
    atomic_folder,
    atomic_path,
    canonical_json,
    digest,
    file_digest,
    link,
    write_json,
    write_text,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=15,
)  # fmt: skip


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def fail(path: Path) -> None:
    """Write half of the text, then raise an error."""
    (path / "part" if path.is_dir() else path).write_text("half")
    raise RuntimeError("killed")


def reordered(value: object, generator: random.Random) -> object:
    if isinstance(value, dict):
        items = [(key, reordered(item, generator)) for key, item in value.items()]
        generator.shuffle(items)
        return dict(items)
    if isinstance(value, list):
        return [reordered(item, generator) for item in value]
    return value


@given(JSON, st.randoms(use_true_random=False))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value, generator):
    assert canonical_json(reordered(value, generator)) == canonical_json(value)


@given(JSON)
def test_canonical_json_says_the_value_again(value):
    assert json.loads(canonical_json(value)) == value


def test_canonical_json_is_spelled_in_one_way():
    assert canonical_json({"b": [1, 2.5, None], "a": "µm"}) == '{"a":"µm","b":[1,2.5,null]}'


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_does_not_have_is_refused(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"mpp": value})


def test_a_digest_is_the_sha256_of_the_canonical_json():
    assert digest({"b": 1, "a": 2}) == hashlib.sha256(b'{"a":2,"b":1}').hexdigest()


def test_a_file_digest_is_the_sha256_of_its_bytes(tmp_path):
    path = tmp_path / "empty"
    path.write_bytes(b"")
    # FIPS 180-4: the digest of nothing.
    assert file_digest(path) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_file_appears_only_when_the_block_ends(tmp_path):
    target = tmp_path / "a" / "b" / "out.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
        assert temporary.suffix == ".txt"
    assert target.read_text() == "whole"
    assert names(target.parent) == ["out.txt"]


@pytest.mark.parametrize("write", [atomic_path, atomic_folder])
def test_an_exception_leaves_neither_product_nor_leftover(tmp_path, write):
    with pytest.raises(RuntimeError, match="killed"), write(tmp_path / "out") as temporary:
        fail(temporary)
    assert names(tmp_path) == []


def test_what_has_its_name_is_on_the_disk_also_after_a_power_cut(tmp_path, monkeypatch):
    """Other tests do not sync (tests/conftest.py): so this one asks what would be, and when."""
    happened: list[tuple[str, str]] = []

    def synced(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        happened.append(("sync", re.sub(r"^\.[0-9a-f]+\.tmp\.", "new ", path.name)))
        assert path.is_dir() or path.read_text() == "whole"

    def renamed(how: Callable[[Path, Path], object]) -> Callable[[Path, Path], object]:
        def rename(path: Path, target: Path) -> object:
            happened.append(("name", target.name))
            return how(path, target)

        return rename

    monkeypatch.setattr(os, "fsync", synced)
    for name in ("rename", "replace"):
        monkeypatch.setattr(Path, name, renamed(getattr(Path, name)))
    place = tmp_path / "in"
    with atomic_path(place / "a") as path:
        path.write_text("whole")
    assert happened == [("sync", "new a"), ("name", "a"), ("sync", "in")]
    happened.clear()
    with atomic_folder(place / "b") as path:
        (path / "part").write_text("whole")
    assert happened == [("sync", "part"), ("sync", "new b"), ("name", "b"), ("sync", "in")]
    happened.clear()
    with atomic_path(place / "c", sync=False) as path:
        path.write_text("whole")
    assert happened == [("name", "c")]


@pytest.mark.parametrize("write", [atomic_path, atomic_folder])
def test_a_disk_that_is_full_only_when_it_is_asked_to_keep_leaves_nothing(
    tmp_path, monkeypatch, write
):
    """Network drives say so at the sync."""

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused = r"product: cannot be written \(No space left on device\)"
    with pytest.raises(UserError, match=refused), write(tmp_path / "product") as path:
        (path / "part" if path.is_dir() else path).write_text("whole")
    assert names(tmp_path) == []


def test_an_exception_keeps_the_old_file(tmp_path):
    target = tmp_path / "out.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError, match="killed"), atomic_path(target) as temporary:
        fail(temporary)
    assert target.read_text() == "old"


def test_a_new_file_replaces_the_old_one(tmp_path):
    write_text(tmp_path / "out.txt", "old")
    write_text(tmp_path / "out.txt", "new")
    assert (tmp_path / "out.txt").read_text() == "new"


@pytest.mark.parametrize("write", [atomic_path, atomic_folder])
@pytest.mark.parametrize("below", ["out", "a/b/out"])
def test_a_target_below_a_file_is_an_error_that_names_it(tmp_path, write, below):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(UserError) as error, write(blocker / below):
        pytest.fail("there is no such folder")
    assert str(blocker / below) in str(error.value)
    assert "df -h" in str(error.value)


@pytest.mark.parametrize("write", [atomic_path, atomic_folder])
def test_a_target_below_a_broken_link_is_an_error_that_names_it(tmp_path, write):
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere" / "folder")
    target = tmp_path / "gone" / "cache" / "ab" / "out"
    with pytest.raises(UserError, match="cannot be written") as error, write(target):
        pytest.fail("there is no such folder")
    assert str(target) in str(error.value)


@pytest.fixture
def read_only_folder():
    """Return a read-only folder, and act as another user than root during the test."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o555)
        was_root = os.geteuid() == 0
        if was_root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if was_root:
                os.seteuid(0)
            folder.chmod(0o755)


@pytest.mark.parametrize("write", [atomic_path, atomic_folder])
@pytest.mark.parametrize("below", ["out", "cache/tiles/ab/out"])
def test_a_read_only_folder_is_an_error_that_names_the_target(read_only_folder, write, below):
    with pytest.raises(UserError) as error, write(read_only_folder / below) as temporary:
        temporary.write_text("")
    assert "(Permission denied)" in str(error.value)
    assert str(read_only_folder / below) in str(error.value)


@pytest.mark.parametrize("write", [atomic_path, atomic_folder])
def test_an_error_about_another_file_is_not_blamed_on_the_target(tmp_path, write):
    with pytest.raises(FileNotFoundError, match="elsewhere"), write(tmp_path / "out"):
        (tmp_path / "elsewhere").read_text()


def test_the_second_of_two_folders_is_dropped(tmp_path):
    target = tmp_path / "model"
    with atomic_folder(target) as slow:
        (slow / "who").write_text("slow")
        with atomic_folder(target) as fast:
            (fast / "who").write_text("fast")
    assert (target / "who").read_text() == "fast"
    assert names(tmp_path) == ["model"]


def test_equal_values_give_equal_bytes(tmp_path):
    write_json(tmp_path / "one.json", {"b": 1, "a": {"d": "µ", "c": None}})
    write_json(tmp_path / "two.json", {"a": {"c": None, "d": "µ"}, "b": 1})
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_a_link_shares_the_file(tmp_path):
    source, name = tmp_path / "key", tmp_path / "results" / "slide"
    source.write_text("x")
    link(source, name)
    link(source, name)
    assert name.samefile(source)
    assert names(name.parent) == ["slide"]


def test_a_link_replaces_what_had_the_name(tmp_path):
    source, name = tmp_path / "key", tmp_path / "slide"
    source.write_text("new")
    name.write_text("old")
    link(source, name)
    assert name.read_text() == "new"


def test_across_filesystems_a_link_is_a_copy(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    source, name = tmp_path / "key", tmp_path / "slide"
    source.write_text("x")
    link(source, name)
    assert name.read_text() == "x"
    assert not name.samefile(source)
    assert sorted(names(tmp_path)) == ["key", "slide"]
