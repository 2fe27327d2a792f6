"""Stage 2, refit: one more model of an encoder and head, trained on all development patients.

There is nobody left to choose anything on, so what the folds chose is used:

- the number of epochs is the median of those of the folds' kept models, rounded up. The learning
  rate follows the same schedule as theirs, and is cut off with it;
- the estimator of a head that scikit-learn fits, and the options of a head that is searched, are
  those that most folds chose; of several such, those with the lowest mean loss on the tuning sets.

In a cross-validation it learns from every labelled patient. Under a fixed split, whose test part is
read once, it learns from the others. No one is tested with it, so it is no run, and its name is
`refit`.
"""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, TypeVar

import numpy as np
import polars as pl
import torch
from pydantic import TypeAdapter

from her2.config import HeadSection, TrainingSection
from her2.config.external_jobs import RefitSpec
from her2.config.jobs import ClassBalance
from her2.config.names import REFIT
from her2.core.compiler import compiler_deferred
from her2.core.errors import UserError, blamed_on
from her2.core.events import write_event
from her2.core.files import digest
from her2.core.reading import read_json
from her2.core.tables import read_result
from her2.core.types import Floats
from her2.encoders.device import pick_device
from her2.heads import Fitted, Projected
from her2.mil.bags import Bag, check_dimensions, views_read
from her2.mil.fold import Fold, read_entry, write_fold
from her2.mil.priors import seen_shares
from her2.mil.room import check_room
from her2.mil.stage import (
    checkpoint_path,
    draws_views,
    link_all,
    look_up,
    open_bags,
    repeatable,
    rows_of,
)
from her2.mil.train import parts_problem, train_fold
from her2.storage.cache import Cache
from her2.storage.entries import (
    FeatureEntry,
    FoldEntry,
    read_all_entries,
    read_folds,
    write_entries,
)
from her2.storage.fold_files import IDENTITY_NAME, check_fold

log = logging.getLogger(__name__)

C = TypeVar("C", int, str)
_HEAD: TypeAdapter[HeadSection] = TypeAdapter(HeadSection)


@dataclass(frozen=True, slots=True)
class Choice:
    """What the folds chose: the head, without a search, and the epoch (from 0) that is the last.

    Of a head that scikit-learn fits, `kept` is the number of the estimator. `options` (JSON) are
    those that a search chose, "" without one.
    """

    head: HeadSection
    kept: int
    options: str = ""


def refit_model(
    spec: RefitSpec,
    cache: Cache,
    *,
    folds: Path,
    models: Path,
    features: Path,
    output: Path,
    threads: int = 1,
) -> FoldEntry:
    """Train the model on all patients of the development cohort that the cache does not hold yet.

    Args:
        spec: the job's spec.
        cache: holds the feature stores, and receives the model.
        folds: the task's folds table.
        models: folder of the chunks' entries files, for what the folds chose.
        features: the encoder's folder of entries files.
        output: the entries file to write, with the entry `refit`; the model's files are linked into
            a folder of this name beside it.
        threads: number of CPU threads for torch.

    Returns:
        The entry. `best_epoch` is the last epoch, or the estimator, and `options` are those that
        most folds chose.

    Raises:
        UserError: no fold has a model, or a class has no slide with features.
    """
    table = read_result(folds)
    choice = chosen(spec.head, read_folds(models, spec.chunks))
    entries = read_all_entries(features, spec.buckets, FeatureEntry)
    views = draws_views(choice.head, entries)
    learn = list(open_bags(to_learn(table), entries, cache, features, views=views).values())
    if problem := parts_problem(learn, [], spec.task.class_names, spec.training, keep_last=True):
        raise UserError(f"{REFIT}: {problem}.")
    check_dimensions(learn)
    device = pick_device(threads)
    check_room(learn, choice.head, device)
    repeatable(device)
    parts = {"train": learn, "tune": [], "test": [], "predict": []}
    identity, made = look_up(cache, refit_identity(spec, choice, learn), rows_of(parts), REFIT)
    key = digest(identity)
    if made is None:
        with blamed_on(REFIT):
            _train(spec, cache, identity, parts, choice, device)
        log.info(
            "%s: trained on %d slides of %d patients",
            *(REFIT, len(learn), len({bag.patient_id for bag in learn})),
        )
        write_event("trained", REFIT)
    else:
        log.info("%s: from the cache", REFIT)
        write_event("trained", REFIT, cached=True)
    entry = replace(read_entry(cache.path("models", key)), options=choice.options)
    link_all(cache.path("models", key), output.parent / REFIT)
    write_entries(output, {REFIT: entry})
    return entry


def to_learn(folds: pl.DataFrame) -> pl.DataFrame:
    """Return the slides of a folds table that a model may learn from, one row each.

    That are all labelled ones, except for the test part of a fixed split.
    """
    labelled = folds.filter(pl.col("label").is_not_null())
    if len(folds.select("repeat", "fold").unique()) == 1:
        labelled = labelled.filter(pl.col("role") != "test")
    return labelled


def chosen(head: HeadSection, folds: Mapping[str, FoldEntry]) -> Choice:
    """Return what the trained folds chose, by the rules of this module.

    Args:
        head: the head's section, with or without a search.
        folds: run -> entry, of the folds that have a model.
    """
    if isinstance(head, Fitted):
        return Choice(
            head, _most_chosen({run: one.best_epoch for run, one in folds.items()}, folds)
        )
    kept = math.ceil(median(entry.best_epoch + 1 for entry in folds.values())) - 1
    if not isinstance(head, Projected) or head.search is None:
        return Choice(head, kept)
    options = _most_chosen({run: entry.options for run, entry in folds.items()}, folds)
    return Choice(head.with_options(json.loads(options)), kept, options)


def refit_identity(spec: RefitSpec, choice: Choice, learn: list[Bag]) -> dict[str, Any]:
    """Return everything that determines the model; the digest of it is its key.

    Patients are part of it, since `refit_shares` counts them.
    """
    return {
        "stage": "refit",
        "version": spec.version,
        "head": choice.head.model_dump(),
        "training": spec.training.model_dump(),
        "kept": choice.kept,
        "classes": spec.task.class_names,
        "seed": [spec.seed, REFIT],
        "learn": [(bag.slide_id, bag.patient_id, bag.key, bag.label) for bag in learn],
        **views_read(learn),
    }


def refit_shares(folder: Path) -> tuple[Floats, Floats]:
    """Return `share` and `seen` (c,) of a refitted model, as `her2.mil.priors` has them of folds.

    Args:
        folder: the model's folder.

    Raises:
        UserError: its files were changed.
    """
    check_fold(folder, [IDENTITY_NAME])
    identity = read_json(folder / IDENTITY_NAME)["identity"]
    training = TrainingSection.model_validate(identity["training"])
    count = len(identity["classes"])
    slides = np.bincount([label for *_, label in identity["learn"]], minlength=count)
    patients = {(patient, label) for _, patient, _, label in identity["learn"]}
    share = np.bincount([label for _, label in patients], minlength=count) / len(patients)
    balance = ClassBalance(
        balance=training.balance,
        label_smoothing=training.label_smoothing,
        bags_per_batch=training.bags_per_batch,
        fitted=isinstance(_HEAD.validate_python(identity["head"]), Fitted),
    )
    return share, seen_shares(slides, balance)


@compiler_deferred()
def _train(
    spec: RefitSpec,
    cache: Cache,
    identity: dict[str, Any],
    parts: dict[str, list[Bag]],
    choice: Choice,
    device: torch.device,
) -> None:
    """Train the model, publish it and delete its checkpoint."""
    key = digest(identity)
    seed = int(digest(identity["seed"])[:8], 16)
    trained = train_fold(
        parts["train"],
        [],
        head=choice.head,
        training=spec.training,
        class_names=spec.task.class_names,
        seed=seed,
        device=device,
        keep_last=True,
        kept=choice.kept,
        checkpoint=checkpoint_path(cache, key),
    )
    with cache.publish("models", key) as folder:
        write_fold(folder, spec, Fold(identity, rows_of(parts), parts, trained, (), seed))
    checkpoint_path(cache, key).unlink(missing_ok=True)


def _most_chosen(choices: Mapping[str, C], folds: Mapping[str, FoldEntry]) -> C:
    """Return what most folds chose; of several, that of the lowest mean loss, then the smallest."""
    losses: dict[C, list[float]] = defaultdict(list)
    for run, choice in choices.items():
        loss = folds[run].tune_loss
        losses[choice].append(math.inf if loss is None else loss)
    return min(losses, key=lambda choice: (-len(losses[choice]), fmean(losses[choice]), choice))
