"""Stage 2, train: some folds of one encoder, head and task, through the cache.

A trained fold is a folder: `model.safetensors`, `card.json`, `history.parquet`,
`predictions.parquet` and `attention.parquet` of the slides that the fold held out.
"""

import json
import logging
import resource
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import safetensors.torch

from her2.audit import check_excluded
from her2.cache import Cache
from her2.config import KEEP_ORDER
from her2.device import pick_device
from her2.errors import UserError
from her2.files import canonical_json, digest, file_digest, link
from her2.folds import check_disjoint
from her2.manifest import FeatureEntry, FoldEntry, read_manifests, write_manifest
from her2.mil.bags import Bag, check_dimensions
from her2.mil.train import Trained, predict, predict_bags, train_fold
from her2.plan import run_name
from her2.specs import TrainSpec
from her2.store import open_store

log = logging.getLogger(__name__)

CARD_NAME = "card.json"
PUBLISHED_BAGS = 1600
"""Random test bags of a fold under the published protocol."""


def train_folds(
    spec: TrainSpec, cache: Cache, *, folds: Path, features: Path, output: Path, threads: int
) -> dict[str, FoldEntry]:
    """Train the folds of a chunk that the cache does not hold yet.

    Args:
        spec: the job.
        cache: holds the stores, gets the folds.
        folds: the task's folds table.
        features: the encoder's folder of feature manifests.
        output: the manifest to write; links go to a folder for each fold beside it.
        threads: of the CPU as a device.

    Raises:
        UserError: too many slides without features, or a fold that cannot be trained.
    """
    table = pl.read_parquet(folds)
    if spec.protocol == "sound":
        check_disjoint(table)
    entries = read_manifests(features, spec.buckets, FeatureEntry)
    check_excluded(
        {name: entry.reason or "" for name, entry in entries.items() if entry.status != "ok"},
        total=len(entries),
        limit=spec.max_excluded,
        where=f"features in {features}",
    )
    bags = _open_bags(table, entries, cache)
    check_dimensions(list(bags.values()))  # the held-out slides too: their shape may agree
    device = pick_device(threads)
    found: dict[str, FoldEntry] = {}
    for repeat, fold in spec.runs:
        rows = table.filter((pl.col("repeat") == repeat) & (pl.col("fold") == fold))
        parts = _parts(rows, bags, grouped=spec.protocol == "sound")
        key = fold_key(spec, parts, repeat, fold)
        name = run_name(repeat, fold)
        if cache.find("models", key) is None:
            seed = int(digest([spec.seed, repeat, fold])[:8], 16)
            trained = train_fold(
                parts["train"],
                parts["tune"],
                head=spec.head,
                training=spec.training,
                class_names=spec.task.class_names,
                seed=seed,
                device=device,
                keep_last=spec.protocol == "published",
            )
            with cache.publish("models", key) as folder:
                _write_fold(folder, key, spec, parts, trained, seed, device)
            log.info("%s: trained %d epochs", name, len(trained.history))
        else:
            log.info("%s: from the cache", name)
        found[name] = _entry(cache.path("models", key))
        for item in sorted(cache.path("models", key).iterdir()):
            link(item, output.parent / name / item.name)
    write_manifest(output, found)
    return found


def fold_key(spec: TrainSpec, parts: dict[str, list[Bag]], repeat: int, fold: int) -> str:
    """Identity of a trained fold.

    The labels of the test part are not in it: they cannot change the model.
    """
    return digest(
        {
            "stage": "train",
            "version": spec.version,
            "head": spec.head.model_dump(),
            "training": spec.training.model_dump(),
            "protocol": spec.protocol,
            "classes": spec.task.class_names,
            "seed": [spec.seed, repeat, fold],
            "learn": {
                role: [(bag.slide_id, bag.key, bag.label) for bag in parts[role]]
                for role in ("train", "tune")
            },
            "predict": [(bag.slide_id, bag.key) for bag in parts["test"] + parts["predict"]],
        }
    )


def _open_bags(
    table: pl.DataFrame, entries: dict[str, FeatureEntry], cache: Cache
) -> dict[str, Bag]:
    """Slide -> bag, for the slides that have features."""
    bags = {}
    slides = table.select("slide_id", "patient_id", "label").unique().sort("slide_id")
    _allow_open_files(2 * len(slides))
    for slide_id, patient_id, label in slides.iter_rows():
        entry = entries.get(slide_id)
        if entry is None:
            raise UserError(
                f"{slide_id}: is in the folds table and in no feature manifest; run snakemake "
                "again so that both are of one manifest."
            )
        if entry.status != "ok" or entry.key is None:
            continue
        path = cache.find("features", entry.key)
        if path is None:
            raise UserError(
                f"{slide_id}: its features ({entry.key[:12]}) are no longer in the cache "
                f"{cache.root}; delete the feature manifests and run snakemake again."
            )
        bags[slide_id] = Bag(slide_id, patient_id, entry.key, open_store(path), label)
    return bags


def _allow_open_files(count: int) -> None:
    """A mapped store keeps its file open, and many systems allow 1,024 unless asked for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _parts(rows: pl.DataFrame, bags: dict[str, Bag], *, grouped: bool) -> dict[str, list[Bag]]:
    """Role -> bags in the order of their ids; slides without features are absent."""
    parts: dict[str, list[Bag]] = {role: [] for role in ("train", "tune", "test", "predict")}
    for slide_id, role in rows.sort("slide_id").select("slide_id", "role").iter_rows():
        if slide_id in bags:
            parts[role].append(bags[slide_id])
    patients = [{bag.patient_id for bag in parts[role]} for role in ("train", "tune", "test")]
    if grouped and any(patients[i] & patients[j] for i, j in ((0, 1), (0, 2), (1, 2))):
        raise UserError("a patient is in two parts of a fold; make the folds again.")
    return parts


def _write_fold(
    folder: Path,
    key: str,
    spec: TrainSpec,
    parts: dict[str, list[Bag]],
    trained: Trained,
    seed: int,
    device: Any,
) -> None:
    held_out = sorted(parts["test"] + parts["predict"], key=lambda bag: bag.slide_id)
    classes = spec.task.class_names
    predictions, attention = [], []
    for bag in held_out:
        probabilities, weights = predict(trained.model, bag, device)
        predictions.append((bag.slide_id, bag.patient_id, *map(float, probabilities)))
        attention.append((bag.slide_id, weights.tolist()))
    # Types are stated, because a test part can be left without a usable slide.
    columns: dict[str, Any] = {"slide_id": pl.String, "patient_id": pl.String}
    columns |= {f"prob_{name}": pl.Float64 for name in classes}
    frame = pl.DataFrame(predictions, schema=columns, orient="row")
    frame.write_parquet(folder / "predictions.parquet")
    if spec.protocol == "published":
        _write_random_bags(folder, spec, parts["test"], trained, seed, device)
    weights_type = pl.List(pl.Float32)
    pl.DataFrame(
        attention, schema={"slide_id": pl.String, "attention": weights_type}, orient="row"
    ).write_parquet(folder / "attention.parquet")
    pl.DataFrame([asdict(epoch) for epoch in trained.history]).write_parquet(
        folder / "history.parquet"
    )
    state = {n: t.cpu().contiguous() for n, t in trained.model.state_dict().items()}
    safetensors.torch.save_file(state, folder / "model.safetensors")
    card = {
        "key": key,
        "head": spec.head.model_dump(),
        "task": spec.task.model_dump(mode="json", context=KEEP_ORDER),
        "dimension": parts["train"][0].store.dimension,
        "encoder_digest": parts["train"][0].store.attributes["encoder"]["digest"],
        "seed": seed,
        "slides": {role: len(bags) for role, bags in parts.items()},
        "best_epoch": trained.best_epoch,
        "epochs": len(trained.history),
        "tune_loss": trained.best.tune_loss if parts["tune"] else None,
        "files": {item.name: file_digest(item) for item in sorted(folder.iterdir())},
    }
    (folder / CARD_NAME).write_text(canonical_json(card) + "\n", encoding="utf-8")


def _write_random_bags(
    folder: Path, spec: TrainSpec, test: list[Bag], trained: Trained, seed: int, device: Any
) -> None:
    """`bags.parquet`: the random bags whose AUC arXiv 2411.05028 reports."""
    if not test:
        return
    drawn, probabilities = predict_bags(
        trained.model,
        test,
        count=PUBLISHED_BAGS,
        bag_size=spec.training.bag_size,
        seed=seed,
        device=device,
    )
    columns = {f"prob_{name}": probabilities[:, i] for i, name in enumerate(spec.task.class_names)}
    pl.DataFrame({"slide_id": [test[i].slide_id for i in drawn], **columns}).write_parquet(
        folder / "bags.parquet"
    )


def _entry(folder: Path) -> FoldEntry:
    card = json.loads((folder / CARD_NAME).read_text(encoding="utf-8"))
    return FoldEntry(
        key=card["key"],
        train_slides=card["slides"]["train"],
        tune_slides=card["slides"]["tune"],
        test_slides=card["slides"]["test"],
        best_epoch=card["best_epoch"],
        epochs=card["epochs"],
        tune_loss=None if card["tune_loss"] is None else round(card["tune_loss"], 6),
    )
