"""Stage 2, train: train a chunk of folds of one encoder, head and task, through the cache."""

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import torch

from her2.cohort.folds import check_disjoint
from her2.config import HeadSection
from her2.config.jobs import TrainSpec
from her2.config.names import Run
from her2.core.compiler import compiler_deferred
from her2.core.errors import UserError, blamed_on, problem_list
from her2.core.events import write_event
from her2.core.files import digest, link
from her2.core.tables import read_result
from her2.encoders.device import pick_device
from her2.mil.bags import Bag, check_dimensions, views_read
from her2.mil.fold import Fold, read_entry, write_fold
from her2.mil.room import check_room
from her2.mil.search import search
from her2.mil.train import Trained, parts_problem, train_fold
from her2.storage.cache import Cache
from her2.storage.entries import (
    FeatureEntry,
    FoldEntry,
    check_excluded,
    read_all_entries,
    write_entries,
)
from her2.storage.features import FeatureStore, allow_open_files, open_store
from her2.storage.fold_files import ReadRows, rows_read, same_rows
from her2.storage.products import find_product, trusted
from her2.storage.views import same_tiles, view_path

log = logging.getLogger(__name__)


def train_folds(
    spec: TrainSpec, cache: Cache, *, folds: Path, features: Path, output: Path, threads: int = 1
) -> dict[str, FoldEntry]:
    """Train the folds of a chunk that the cache does not hold yet.

    Args:
        spec: the job's spec.
        cache: holds the feature stores, and receives the folds.
        folds: the task's folds table.
        features: the encoder's folder of entries files.
        output: the entries file to write; each fold's files are linked into a folder beside it.
        threads: number of CPU threads for torch.

    Raises:
        UserError: too many slides have no features, or no fold of any chunk can be trained. A fold
            that lost a class with its slides gets an entry without a model.
    """
    table = read_result(folds)
    if spec.protocol == "sound":
        check_disjoint(table)
    entries = read_all_entries(features, spec.buckets, FeatureEntry)
    check_excluded(
        {name: entry.reason or "" for name, entry in entries.items() if entry.status != "ok"},
        total=len(entries),
        limit=spec.max_excluded,
        where=f"features in {features}",
    )
    bags = open_bags(table, entries, cache, features, views=draws_views(spec.head, entries))
    check_dimensions(list(bags.values()))  # with the held-out slides, which training would not read
    device = pick_device(threads)
    check_room(list(bags.values()), spec.head, device)
    repeatable(device)
    problems = _problems(spec, table, bags)
    found: dict[str, FoldEntry] = {}
    for run in spec.runs:
        parts = _parts(_rows(table, run), bags, grouped=spec.protocol == "sound")
        name = run.name
        if reason := problems[run.repeat, run.fold]:
            log.warning("%s: has no model: %s", name, reason)
            write_event("trained", name)
            found[name] = _without_model(parts, reason)
            shutil.rmtree(output.parent / name, ignore_errors=True)  # links of another training
            continue
        identity, made = look_up(cache, fold_identity(spec, parts, run), rows_of(parts), name)
        key = digest(identity)
        if made is None:
            with blamed_on(name):
                trained = _train(spec, cache, identity, parts, run, device)
            share = trained.waited_seconds / trained.seconds if trained.seconds else 0.0
            log.info(
                "%s: trained %d epochs in %.1f s, of which %.1f %% waiting for data",
                *(name, len(trained.history), trained.seconds, 100 * share),
            )
            write_event("trained", name)
        else:
            log.info("%s: from the cache", name)
            write_event("trained", name, cached=True)
        found[name] = read_entry(cache.path("models", key))
        link_all(cache.path("models", key), output.parent / name)
    write_entries(output, found)
    return found


def _problems(
    spec: TrainSpec, table: pl.DataFrame, bags: dict[str, Bag]
) -> dict[tuple[int, int], str]:
    """Return (repeat, fold) -> why it cannot be trained, "" if it can, for the folds of all chunks.

    Raises:
        UserError: none can.
    """
    found = {}
    for repeat, fold in table.select("repeat", "fold").unique().sort("repeat", "fold").iter_rows():
        run = Run(repeat, fold)
        parts = _parts(_rows(table, run), bags, grouped=spec.protocol == "sound")
        found[repeat, fold] = parts_problem(
            parts["train"],
            parts["tune"],
            spec.task.class_names,
            spec.training,
            keep_last=spec.protocol == "published",
        )
    if all(found.values()):
        raise problem_list(
            "no fold can be trained",
            [f"{Run(*where).name}: {reason}" for where, reason in found.items()],
        )
    return found


def _without_model(parts: dict[str, list[Bag]], reason: str) -> FoldEntry:
    """Return the entry of a fold that cannot be trained."""
    train, tune, test = (len(parts[role]) for role in ("train", "tune", "test"))
    return FoldEntry("", train, tune, test, 0, 0, None, reason=reason)


@compiler_deferred()
def _train(
    spec: TrainSpec,
    cache: Cache,
    identity: dict[str, Any],
    parts: dict[str, list[Bag]],
    run: Run,
    device: torch.device,
) -> Trained:
    """Train a fold (each trial of its search), publish it and delete its checkpoints."""
    key = digest(identity)
    seed = training_seed(spec.seed, run)

    def train(head: HeadSection, trial: int) -> Trained:
        return train_fold(
            parts["train"],
            parts["tune"],
            head=head,
            training=spec.training,
            class_names=spec.task.class_names,
            seed=seed,
            device=device,
            keep_last=spec.protocol == "published",
            checkpoint=checkpoint_path(cache, key, trial),
        )

    trained, trials = search(spec.head, seed=seed, select=spec.training.select, train=train)
    with cache.publish("models", key) as folder:
        write_fold(folder, spec, Fold(identity, rows_of(parts), parts, trained, trials, seed))
    for trial in trials:
        checkpoint_path(cache, key, trial.trial).unlink(missing_ok=True)
    return trained


def training_seed(seed: int, run: Run) -> int:
    """Return the seed of a run's weights, draws, dropout and search, from that of the config."""
    return int(digest([seed, *run.identity])[:8], 16)


def link_all(product: Path, folder: Path) -> None:
    """Link a fold's files into its folder, and remove those of a fold that had this name before."""
    items = {item.name: item for item in product.iterdir()}
    for old in folder.iterdir() if folder.is_dir() else ():
        if old.name not in items:
            old.unlink()
    for name, item in sorted(items.items()):
        link(item, folder / name)


def checkpoint_path(cache: Cache, key: str, trial: int = 0) -> Path:
    """Return the path of a fold's checkpoint; its name lets `her2 cache prune` recognise it."""
    product = cache.path("models", key)
    return product.with_name(f".checkpoint.tmp.{key}-{trial}.safetensors")


def repeatable(device: torch.device) -> None:
    """Make sums on a GPU run in a fixed order, as they always do on a CPU."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def fold_identity(spec: TrainSpec, parts: dict[str, list[Bag]], run: Run) -> dict[str, Any]:
    """Return everything that determines a fold; the digest of it is the fold's key.

    It does not depend on the labels of the test set, which cannot change the model.
    """
    return {
        "stage": "train",
        "version": spec.version,
        "head": spec.head.model_dump(),
        "training": spec.training.model_dump(),
        "protocol": spec.protocol,
        "classes": spec.task.class_names,
        "seed": [spec.seed, *run.identity],
        "learn": {
            role: [(bag.slide_id, bag.key, bag.label) for bag in parts[role]]
            for role in ("train", "tune")
        },
        **views_read(parts["train"]),
        "predict": [(bag.slide_id, bag.key) for bag in parts["test"] + parts["predict"]],
    }


def rows_of(parts: dict[str, list[Bag]]) -> ReadRows:
    """Return what a fold reads of each slide."""
    return {bag.slide_id: bag.read for bags in parts.values() for bag in bags}


def look_up(
    cache: Cache, identity: dict[str, Any], read: ReadRows, name: str
) -> tuple[dict[str, Any], Path | None]:
    """Return the identity of a fold, and its product if the cache has it.

    The identity has what the fold reads if that tells it from the cached one.

    The key of a store does not tell which of its tiles could be read. After a retry, the cache may
    hold a fold of fewer tiles under the same key, which stays valid for what it read.
    """
    path = trusted(cache, "models", digest(identity))
    before = rows_read(path) if path else None
    if before is None or same_rows(before, read):
        return identity, path
    log.info("%s: the cache has it from other tiles of its slides", name)
    identity = {**identity, "read": read}
    return identity, trusted(cache, "models", digest(identity))


def open_bags(
    table: pl.DataFrame,
    entries: dict[str, FeatureEntry],
    cache: Cache,
    features: Path,
    *,
    views: bool = False,
) -> dict[str, Bag]:
    """Return the bags of the slides that have features, by slide id; with `views` also these.

    Raises:
        UserError: a slide has no entry, or a store is in no place, damaged, or of other tiles.
    """
    bags = {}
    slides = table.select("slide_id", "patient_id", "label").unique().sort("slide_id")
    most = max((len(entry.views) for entry in entries.values()), default=0) if views else 0
    allow_open_files((2 + most) * len(slides))
    for slide_id, patient_id, label in slides.iter_rows():
        entry = entries.get(slide_id)
        if entry is None:
            raise UserError(
                f"{slide_id}: is in the folds table but in no entries file of {features}; run "
                "snakemake again, so that both are made from the same manifest."
            )
        if entry.status != "ok" or entry.key is None:
            continue
        path = find_product(cache, "features", entry.key, features / f"{slide_id}.zarr.zip")
        store = open_store(path, entry.key)
        drawn = open_views(slide_id, entry, store, cache, features) if views else ()
        bags[slide_id] = Bag(slide_id, patient_id, entry.key, store, label, drawn)
    return bags


def open_views(
    slide_id: str, entry: FeatureEntry, plain: FeatureStore, cache: Cache, features: Path
) -> tuple[FeatureStore, ...]:
    """Return the augmented views of a slide.

    Raises:
        UserError: a view is in neither place, damaged, or has other tiles than the plain store.
    """
    found = []
    for view, key in enumerate(entry.views, 1):
        path = find_product(cache, "features", key, view_path(features, slide_id, view))
        store = open_store(path, key)
        if not same_tiles((path, store.attributes), (plain.path, plain.attributes)):
            raise UserError(
                f"{slide_id}: its augmented view {view} has other tiles than its features. Delete "
                f"the entries files (.json) in {features} and run snakemake again."
            )
        found.append(store)
    return tuple(found)


def draws_views(head: HeadSection, entries: Mapping[str, FeatureEntry]) -> bool:
    """Tell whether a head is trained on augmented views, and say so where it leaves them out."""
    there = any(entry.views for entry in entries.values())
    if there and not head.trained_by_gradient:
        log.info(
            "%s: is fitted to mean features of each slide, without the augmented views", head.head
        )
    return there and head.trained_by_gradient


def _rows(table: pl.DataFrame, run: Run) -> pl.DataFrame:
    return table.filter((pl.col("repeat") == run.repeat) & (pl.col("fold") == run.fold))


def _parts(rows: pl.DataFrame, bags: dict[str, Bag], *, grouped: bool) -> dict[str, list[Bag]]:
    """Return the bags of each role, sorted by slide id, without slides that have no features."""
    parts: dict[str, list[Bag]] = {role: [] for role in ("train", "tune", "test", "predict")}
    for slide_id, role in rows.sort("slide_id").select("slide_id", "role").iter_rows():
        if slide_id in bags:
            parts[role].append(bags[slide_id])
    patients = [{bag.patient_id for bag in parts[role]} for role in ("train", "tune", "test")]
    if grouped and any(patients[i] & patients[j] for i, j in ((0, 1), (0, 2), (1, 2))):
        raise UserError("a patient has two roles in a fold; make the folds again.")
    return parts
