"""Products, tables and JSON that somebody damaged or made: read, or refused by name."""

import json
import os
import shutil
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from her2.core.compiler import compiler_deferred
from her2.core.errors import UserError
from her2.core.files import file_digest
from her2.core.reading import read_json
from her2.core.tables import read_result
from her2.encoders.card import read_card
from her2.mil.fold import MODEL_NAME, load_model, read_entry
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, read_entries
from her2.storage.features import open_store, read_attributes, read_coords
from her2.storage.fold_files import CARD_NAME
from her2.storage.tiles import read_key, read_table
from her2.storage.verify import broken_products, product_problem
from her2.training.checkpoint import Checkpoint
from her2.training.state import TrainingState
from tests.fuzz.faults import altered, campaign, damaged, read_or_refused


@dataclass(frozen=True)
class Row:
    loss: float


ARCHIVE = Path(__file__).parents[1] / "data/cache-0.1.0.tar.xz"


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    """Return an intact cache with products of all kinds."""
    folder = tmp_path_factory.mktemp("old")
    shutil.unpack_archive(ARCHIVE, folder)
    return Cache(folder / "cache")


def first(cache: Cache, kind: str):
    return next(product for product in cache.products() if product.kind == kind)


def read_store(path: Path) -> None:
    store = open_store(path)
    store.features.max()
    read_attributes(path)
    read_coords(path)


def read_tiles(path: Path) -> None:
    read_key(path)
    read_table(path)


@pytest.mark.parametrize("seeds", campaign(60, 4000))
def test_any_damaged_store_is_read_or_refused_by_name(tmp_path, cache, seeds):
    good = first(cache, "features").path.read_bytes()
    path = tmp_path / "one.zarr.zip"
    for seed in seeds:
        path.write_bytes(damaged(good, seed))
        read_or_refused(read_store, path, f"seed {seed}")


@pytest.mark.parametrize("seeds", campaign(80, 4000))
def test_any_foreign_zarr_is_read_or_refused_by_name(tmp_path, cache, seeds):
    with zipfile.ZipFile(first(cache, "features").path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    texts = [name for name in members if name.endswith(".json")]
    path = tmp_path / "one.zarr.zip"
    for seed in seeds:
        name = texts[seed % len(texts)]
        other = json.dumps(altered(json.loads(members[name]), seed)).encode()
        how = zipfile.ZIP_DEFLATED if seed % 7 == 0 else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", how) as archive:
            for member, content in members.items():
                archive.writestr(member, other if member == name else content)
        read_or_refused(read_store, path, f"seed {seed} ({name})")


@pytest.mark.parametrize("seeds", campaign(40, 2000))
def test_any_damaged_tile_table_is_read_or_refused_by_name(tmp_path, cache, seeds):
    good = first(cache, "tiles").path.read_bytes()
    path = tmp_path / "one.parquet"
    for seed in seeds:
        # Half of the faults are in the footer, which says where everything is.
        keep = len(good) - 3000 if seed % 2 else 0
        path.write_bytes(damaged(good, seed, keep=max(0, keep)))
        read_or_refused(read_tiles, path, f"seed {seed}")


@pytest.mark.parametrize("seeds", campaign(40, 2000))
def test_any_damaged_table_of_a_fold_is_read_or_refused_by_name(tmp_path, cache, seeds):
    tables = sorted(first(cache, "models").path.glob("*.parquet"))
    for seed in seeds:
        table = tables[seed % len(tables)]
        path = tmp_path / table.name
        path.write_bytes(damaged(table.read_bytes(), seed))
        read_or_refused(read_result, path, f"seed {seed} ({table.name})")


@pytest.mark.parametrize("seeds", campaign(40, 2000))
def test_any_damaged_fold_is_loaded_or_refused_by_name(tmp_path, cache, seeds):
    fold = tmp_path / "a-fold"
    shutil.copytree(first(cache, "models").path, fold)
    card, model = (fold / CARD_NAME).read_text(), (fold / MODEL_NAME).read_bytes()
    for seed in seeds:
        values, weights = json.loads(card), model
        match seed % 3:
            case 0:
                weights = damaged(model, seed)
            case 1:
                values = altered(values, seed)
        (fold / MODEL_NAME).write_bytes(weights)
        if isinstance(values.get("files"), dict):  # a forger makes the digests right
            values["files"][MODEL_NAME] = file_digest(fold / MODEL_NAME)
        text = json.dumps(values)
        content = damaged(text.encode(), seed) if seed % 3 == 2 else text.encode()
        (fold / CARD_NAME).write_bytes(content)
        for read in (read_entry, partial(load_model, device=torch.device("cpu"))):
            read_or_refused(read, fold, f"seed {seed}")


@pytest.mark.parametrize("seeds", campaign(40, 2000))
def test_verifying_any_damaged_product_says_what_is_wrong_and_goes_on(tmp_path, cache, seeds):
    own = Cache(tmp_path / "cache")
    shutil.copytree(cache.root, own.root)
    products = [product for product in own.products() if product.kind != "encoders"]
    for seed in seeds:
        product = products[seed % len(products)]
        files = sorted(product.path.iterdir()) if product.path.is_dir() else [product.path]
        path = files[seed % len(files)]
        good = path.read_bytes()
        path.write_bytes(damaged(good, seed))
        assert isinstance(product_problem(product), str | None), f"seed {seed}: {path.name}"
        path.write_bytes(good)


@pytest.mark.parametrize("kind", ["tiles", "qc", "features"])
@pytest.mark.parametrize("other", ["pipe", "folder", "text", "pointer", "array"])
def test_verifying_a_file_of_another_kind_ends_and_names_it(tmp_path, cache, kind, other):
    own = Cache(tmp_path / "cache")
    path = own.path(kind, first(cache, kind).key)
    path.parent.mkdir(parents=True)
    match other:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "text":
            path.write_text("hello")
        case "pointer":
            path.write_text("version https://git-lfs.github.com/spec/v1\n")
        case "array":
            import zarr

            store = zarr.storage.ZipStore(path, mode="w")
            zarr.create_array(store, data=np.arange(4))
            store.close()
    count, [(product, problem)] = broken_products(own)
    assert (count, product.path) == (1, path)
    assert problem.startswith(("is ", "cannot be "))


@pytest.mark.parametrize("content", ['{"a": ' * 100_000, "[" * 100_000, "{}", "[1]", "\xff", ""])
@pytest.mark.parametrize(
    "read", [read_json, read_entry, partial(read_entries, entry=FeatureEntry), read_card]
)
def test_any_json_is_read_or_refused_by_name(tmp_path, read, content):
    path = tmp_path / "card.json"
    path.write_text(content, encoding="latin-1")
    given = tmp_path if read in (read_entry, read_card) else path
    read_or_refused(lambda _: read(given), path, content[:10])


@pytest.mark.parametrize("seeds", campaign(30, 1500))
def test_training_starts_over_where_a_checkpoint_is_damaged(tmp_path, seeds):
    with compiler_deferred():
        net = torch.nn.Linear(2, 2)
        optimiser = torch.optim.AdamW(net.parameters())
    checkpoint = Checkpoint(tmp_path / "one.safetensors", Row, "of this training")
    state: TrainingState[Row] = TrainingState()
    state.add(Row(0.5), net, None)
    checkpoint.save(net, optimiser, state)
    good = checkpoint.path.read_bytes()
    assert checkpoint.load(net, optimiser).history == [Row(0.5)]
    for seed in seeds:
        checkpoint.path.write_bytes(damaged(good, seed, keep=8 if seed % 2 else 0))
        before = [value.clone() for value in net.state_dict().values()]
        found = checkpoint.load(net, optimiser).history
        assert found in ([], [Row(0.5)]), f"seed {seed}"
        for old, new in zip(before, net.state_dict().values(), strict=True):
            assert torch.equal(old, new), f"seed {seed}"


def test_a_pointer_of_git_lfs_is_called_one(tmp_path):
    for name, read in {
        "a.zarr.zip": open_store, "b.parquet": read_table, "c.parquet": read_result,
        "d.json": read_json,
    }.items():  # fmt: skip
        path = tmp_path / name
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        with pytest.raises(UserError, match=rf"{name}.*Git LFS pointer.*git lfs pull"):
            read(path)
