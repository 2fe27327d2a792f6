"""Two people of a group and a stranger on one cache: ana makes products, ben and cleo follow."""

import hashlib
import os
import pickle
import shutil
import signal
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
import typer.testing

from her2.cli.main import app
from her2.core.errors import UserError
from her2.core.files import atomic_path, copy, link, write_text
from her2.encoders.card import read_card
from her2.mil.fold import load_model
from her2.mil.priors import read_priors
from her2.storage.cache import Cache, Kind, remove
from her2.storage.entries import TileEntry, read_entries
from her2.storage.features import open_store
from her2.storage.tiles import read_table
from her2.storage.upkeep import unused_products
from her2.storage.verify import broken_products

LAB = 54200
KEY, OTHER = (hashlib.sha256(name).hexdigest() for name in (b"a", b"b"))
KINDS: list[Kind] = ["features", "models"]  # a file and a folder
UMASKS = [0o077, 0o022]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as several users")


@dataclass(frozen=True)
class User:
    """A person with an own group, and perhaps that of the lab."""

    number: int
    groups: tuple[int, ...] = ()
    umask: int = 0o022

    def run(self, function: Callable[[], Any]) -> Any:
        """Return what a function returns, or raise what it raises, in a process of this user."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # a lock that another thread held at the fork would never open
            os.setgroups(self.groups)
            os.setgid(self.number)
            os.setuid(self.number)
            os.umask(self.umask)
            try:
                found = (True, function())
            except BaseException as error:  # it has to leave this process
                found = (False, error)
            with os.fdopen(writer, "wb") as stream:
                pickle.dump(found, stream)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            succeeded, value = pickle.load(stream)
        os.waitpid(child, 0)
        if not succeeded:
            raise value
        return value


ANA, BEN, CLEO = User(54101, (LAB,)), User(54102, (LAB,)), User(54103)


@pytest.fixture
def lab() -> Iterator[Path]:
    """Return a folder that an administrator made: `chgrp lab; chmod 2770`; no one else enters."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        outer = Path(name)
        outer.chmod(0o755)
        folder = outer / "lab"
        folder.mkdir()
        os.chown(folder, 0, LAB)
        folder.chmod(0o2770)
        for user in (ANA, BEN, CLEO):
            home = outer / str(user.number)
            home.mkdir()
            os.chown(home, user.number, user.number)
        yield folder


def home(lab: Path, user: User) -> Path:
    return lab.parent / str(user.number)


def put(cache: Cache, kind: Kind, key: str = KEY, text: str = "x") -> Path:
    """Publish a product, which for a folder includes weights, as safetensors writes them."""
    with cache.publish(kind, key) as path:
        if path.is_dir():
            safetensors.numpy.save_file({"w": np.zeros(2)}, path / "model.safetensors")
            (path / "card.json").write_text(text)
        else:
            path.write_text(text)
    return cache.path(kind, key)


def read(path: Path) -> int:
    """Read all of a product; return its number of bytes."""
    items = sorted(path.iterdir()) if path.is_dir() else [path]
    return sum(len(item.read_bytes()) for item in items)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", UMASKS)
@pytest.mark.parametrize("kind", KINDS)
@needs_root
def test_what_one_of_a_group_makes_the_other_reads_moves_and_deletes(lab, kind, umask):
    cache, ana = Cache(lab / "cache"), User(ANA.number, ANA.groups, umask)
    path = ana.run(lambda: put(cache, kind))
    ana.run(lambda: put(cache, kind, OTHER))
    assert BEN.run(lambda: read(cache.find(kind, KEY))) > 0
    product, other = BEN.run(lambda: list(cache.products()))
    for item in [path, *path.parents[: path.parents.index(lab)]]:
        folder = item.is_dir()
        assert item.stat().st_gid == LAB
        assert mode(item) & 0o2070 == (0o2070 if folder else 0o040), item
    aside = BEN.run(lambda: cache.quarantine(product))
    assert BEN.run(lambda: read(aside)) > 0
    ana.run(lambda: remove(aside))
    BEN.run(lambda: remove(other.path))
    BEN.run(lambda: put(cache, kind))
    assert ana.run(lambda: read(cache.find(kind, KEY))) > 0


@pytest.mark.parametrize("umask", UMASKS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("folder_mode", [0o755, 0o1777])
@needs_root
def test_outside_a_shared_folder_the_umask_alone_decides(lab, kind, umask, folder_mode):
    own = lab.parent / "own"
    own.mkdir(mode=0o700)
    os.chown(own, ANA.number, ANA.number)
    own.chmod(folder_mode)
    path = User(ANA.number, ANA.groups, umask).run(lambda: put(Cache(own / "cache"), kind))
    for item in [path, *path.parents[: path.parents.index(own)]]:
        allowed = 0o777 if item.is_dir() else 0o444
        assert mode(item) == allowed & ~umask, item
    for item in path.iterdir() if path.is_dir() else ():
        assert mode(item) == 0o444 & ~umask, item


@pytest.mark.parametrize("kind", KINDS)
@needs_root
def test_a_stranger_is_told_who_may_read_the_cache(lab, kind):
    cache = Cache(lab / "cache")
    ANA.run(lambda: put(cache, kind))
    words = f"{lab} is drwxrws---, of user root and group {LAB}; this is user {CLEO.number}"
    for action in (
        lambda: cache.find(kind, KEY),
        lambda: put(cache, kind),
        lambda: list(cache.products()),
        cache.leftovers,
        cache.quarantined,
    ):
        with pytest.raises(UserError) as error:
            CLEO.run(action)
        assert words in str(error.value)


@needs_root
def test_the_folder_behind_a_link_is_the_one_that_is_named(lab):
    cache = Cache(home(lab, CLEO) / "cache")
    cache.root.symlink_to(lab / "cache")
    ANA.run(lambda: put(Cache(lab / "cache"), "tiles"))
    with pytest.raises(UserError, match=f"{lab} is drwxrws---"):
        CLEO.run(lambda: cache.find("tiles", KEY))


@pytest.mark.parametrize("kind", KINDS)
@needs_root
def test_a_product_that_its_owner_alone_may_read_is_not_a_missing_one(lab, kind):
    """As before: `*.safetensors` were 0600, and a reader was told that they are no model."""
    cache = Cache(lab / "cache")
    path = ANA.run(lambda: put(cache, kind))
    closed = path / "model.safetensors" if path.is_dir() else path
    closed.chmod(0o600)
    with pytest.raises(UserError, match="permission denied") as error:
        BEN.run(lambda: cache.find(kind, KEY))
    assert f"{closed} is -rw-------, of user {ANA.number}" in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
@needs_root
def test_a_sticky_folder_keeps_the_first_product_and_says_why_nobody_else_deletes_it(lab, kind):
    cache = Cache(lab / "cache")
    path = ANA.run(lambda: put(cache, kind, text="first"))
    path.parent.chmod(0o3770)
    BEN.run(lambda: put(cache, kind, text="second"))
    content = (path / "card.json" if path.is_dir() else path).read_text()
    assert content == "first"
    assert sorted(item.name for item in path.parent.iterdir()) == [path.name]
    (product,) = cache.products()
    for action in (lambda: remove(path), lambda: cache.quarantine(product)):
        with pytest.raises(UserError, match=r"only owners replace and delete \(chmod -t"):
            BEN.run(action)


@needs_root
def test_a_link_to_another_users_product_is_a_copy_that_can_be_deleted(lab):
    cache = Cache(lab / "cache")
    path = ANA.run(lambda: put(cache, "features", text="right"))
    name = home(lab, BEN) / "results" / "s1.zarr.zip"
    BEN.run(lambda: link(path, name))
    assert BEN.run(lambda: name.read_text()) == "right"
    BEN.run(lambda: name.write_text("wrong") if os.access(name, os.W_OK) else None)
    assert path.read_text() == "right"
    BEN.run(lambda: shutil.rmtree(name.parent))


@needs_root
def test_another_users_file_that_stays_writable_is_copied(lab):
    """As in a cache of before, where products were 0664 and so could be linked."""
    path = ANA.run(lambda: put(Cache(lab / "cache"), "features", text="right"))
    path.chmod(0o664)
    name = home(lab, BEN) / "s1.zarr.zip"
    BEN.run(lambda: link(path, name))
    assert not name.samefile(path)
    BEN.run(lambda: name.write_text("wrong"))
    assert path.read_text() == "right"


@pytest.mark.parametrize("umask", UMASKS)
@needs_root
def test_a_product_restored_from_results_is_the_groups(lab, umask):
    cache, name = Cache(lab / "cache"), home(lab, ANA) / "s1.zarr.zip"
    ana = User(ANA.number, ANA.groups, umask)
    ana.run(lambda: link(put(Cache(home(lab, ANA) / "cache"), "features"), name))

    def restore() -> None:
        with cache.publish("features", KEY) as temporary:
            link(name, temporary)

    ana.run(restore)
    path = cache.path("features", KEY)
    assert (path.stat().st_gid, mode(path) & 0o070) == (LAB, 0o040)
    assert BEN.run(lambda: read(path)) == 1


@needs_root
def test_two_who_start_beside_each_other_are_both_let_into_new_folders(lab):
    """Another user's folder of the same name may appear, empty or not, while ours is made."""
    for number in range(6):
        folder = lab / f"cache-{number}"
        children = []
        for user in (ANA, BEN):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    user.run(lambda: put(Cache(folder), "tiles", KEY))  # noqa: B023 runs at once
                    code = 0
                finally:
                    os._exit(code)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        assert [item.name for item in folder.iterdir()] == ["tiles"]


@needs_root
def test_pruning_keeps_what_others_made_unless_it_is_asked_for(lab):
    cache, results = Cache(lab / "cache"), home(lab, BEN) / "results"
    theirs = ANA.run(lambda: put(cache, "tiles"))
    mine = BEN.run(lambda: put(cache, "tiles", OTHER))
    BEN.run(lambda: write_text(results / "tiles" / "b.json", '{"s1": {"key": "kept"}}'))
    command = ["cache", "prune", "--cache", str(cache.root), "--keep", str(results), "--yes"]

    def prune(*more: str) -> tuple[int, str]:
        result = typer.testing.CliRunner().invoke(app, [*command, *more])
        return result.exit_code, result.output

    code, text = BEN.run(prune)
    assert code == 0, text
    assert "1 made by other users are kept" in text
    assert (theirs.exists(), mine.exists()) == (True, False)
    assert BEN.run(lambda: prune("--others"))[0] == 0
    assert not theirs.exists()


@needs_root
def test_pruning_does_not_take_a_closed_results_folder_for_an_empty_one(lab):
    cache, results = Cache(lab / "cache"), lab / "results"
    ANA.run(lambda: put(cache, "tiles"))
    ANA.run(lambda: write_text(results / "tiles" / "a.json", '{"s1": {"key": "other"}}'))
    ANA.run(lambda: write_text(results / "models" / "a.json", f'{{"r0f0": {{"key": "{KEY}"}}}}'))
    (results / "models").chmod(0o700)
    with pytest.raises(UserError, match=f"{results}/models is drwx------"):
        BEN.run(lambda: unused_products(cache, [results]))


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_writes_in_a_product_by_its_name_in_the_results(tmp_path, kind):
    path = put(Cache(tmp_path / "cache"), kind)
    for item in sorted(path.iterdir()) if path.is_dir() else [path]:
        name = tmp_path / "results" / item.name
        link(item, name)
        assert name.samefile(item)
        assert mode(name) & 0o222 == 0
    shutil.rmtree(tmp_path / "results")
    remove(path)
    assert not path.exists()


def test_a_writable_product_of_before_becomes_read_only_when_it_is_linked(tmp_path):
    path = tmp_path / "product"
    path.write_text("x")
    path.chmod(0o644)
    link(path, tmp_path / "results" / "s1")
    assert mode(path) == 0o444


def test_what_users_open_in_the_results_can_be_written(tmp_path):
    path = put(Cache(tmp_path / "cache"), "qc")
    with atomic_path(tmp_path / "table.csv") as temporary:
        safetensors.numpy.save_file({"w": np.zeros(2)}, temporary)
    copy(path, tmp_path / "weights.safetensors")  # Snakemake refuses read-only outputs of rules
    umask = os.umask(0)
    os.umask(umask)
    for name in ("table.csv", "weights.safetensors"):
        assert mode(tmp_path / name) == 0o666 & ~umask


READERS = {
    "model.safetensors": lambda path: load_model(path.parent, torch.device("cpu")),
    "card.json": lambda path: read_card(path.parent),
    "s1.zarr.zip": open_store,
    "s1.parquet": read_table,
    "b.json": lambda path: read_entries(path, TileEntry),
    "priors.parquet": read_priors,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("closed", ["file", "folder"])
@needs_root
def test_a_reader_does_not_take_a_file_of_somebody_else_for_a_damaged_or_absent_one(
    lab, name, closed
):
    path = home(lab, ANA) / name
    ANA.run(lambda: write_text(path, "{}"))
    (path if closed == "file" else path.parent).chmod(0)
    with pytest.raises(UserError) as error:
        BEN.run(lambda: READERS[name](path))
    assert "permission denied" in str(error.value)
    assert f"of user {ANA.number}" in str(error.value)
    assert "Delete" not in str(error.value)


@needs_root
def test_verifying_does_not_take_a_closed_product_for_a_broken_one(lab):
    cache = Cache(lab / "cache")
    path = ANA.run(lambda: put(cache, "models"))
    (path / "model.safetensors").chmod(0o600)
    with pytest.raises(UserError, match="1 of 1 products .* may not be read"):
        BEN.run(lambda: broken_products(cache))


def allow(folder: Path, user: int) -> None:
    """Let a user into a folder of somebody else, like `setfacl -m u:USER:rwx,d:u:USER:rwx`."""
    entries = [(1, 7, -1), (2, 7, user), (4, 0, -1), (16, 7, -1), (32, 0, -1)]
    packed = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, rights, who & 0xFFFFFFFF) for tag, rights, who in entries
    )
    for name in ("access", "default"):
        os.setxattr(folder, f"system.posix_acl_{name}", packed)


@pytest.mark.parametrize("umask", UMASKS)
@pytest.mark.parametrize("kind", KINDS)
@needs_root
def test_an_access_list_lets_another_user_in_where_no_group_does(lab, kind, umask):
    cache = Cache(home(lab, ANA) / "cache")
    try:
        allow(home(lab, ANA), BEN.number)
    except OSError as error:
        pytest.skip(f"no access lists in /tmp ({error})")
    path = User(ANA.number, (), umask).run(lambda: put(cache, kind))
    assert BEN.run(lambda: read(cache.find(kind, KEY))) > 0
    assert not BEN.run(lambda: os.access(path / "card.json" if path.is_dir() else path, os.W_OK))
    with pytest.raises(UserError, match="permission denied"):
        CLEO.run(lambda: cache.find(kind, KEY))
    BEN.run(lambda: remove(path))
