"""After stage 2: apply trained folds to the feature stores of another cohort (`her2 predict`)."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from her2.config.names import REFIT
from her2.core.errors import UserError, problem_list
from her2.core.files import atomic_path
from her2.core.tables import write_csv
from her2.core.types import Floats
from her2.encoders.device import pick_device
from her2.mil.bags import Bag
from her2.mil.fold import SavedModel, load_model
from her2.mil.model import predict
from her2.mil.priors import read_priors, with_shares
from her2.mil.room import check_room
from her2.storage.entries import FeatureEntry, FoldEntry, read_entries
from her2.storage.features import (
    FeatureStore,
    allow_open_files,
    is_sealed,
    open_store,
    seal_holds,
)
from her2.storage.fold_files import CARD_NAME

log = logging.getLogger(__name__)

SUFFIX = ".zarr.zip"

TRAINING_SET, AS_TRAINED = "training set", "as trained"
"""Values of the column `prior`: how frequent the classes are that probabilities are given for."""


def predict_slides(
    models: Sequence[Path],
    features: Path,
    output: Path,
    *,
    threads: int,
    priors: Path | None = None,
) -> pl.DataFrame:
    """Predict every slide of a folder of features with one or more models of a task.

    A training that balances the classes learns probabilities for classes that are equally
    frequent. They are corrected to the shares of the training set (`her2.mil.priors`), which the
    table `priors` of `her2 evaluate` has. Without it they stay as the models give them, and the
    column `prior` says so.

    Args:
        models: folders of trained folds, e.g. `results/models/score/uni2/abmil/r0f0`, or the folder
            of a head, which stands for all of its folds and training seeds.
        features: folder of `{slide_id}.zarr.zip`; entries files beside them tell which slides have
            no features, and why.
        output: a `.csv` or `.parquet` file.
        threads: number of CPU threads for torch.
        priors: the table `priors` of these models; default: the one in the results folder that the
            models are in.

    Returns:
        One row per slide: `slide_id, status, reason, predicted, prob_<class>` (the mean over the
        models), `prior` (`training set` or `as trained`), `tiles, models`. A slide without features
        has a reason and no probabilities.

    Raises:
        UserError: a store comes from another encoder, dimension or um/px than the models, the
            models cannot be combined or are not in `priors`, or there is nothing to predict.
    """
    if output.suffix not in (".csv", ".parquet"):
        raise UserError(f"--out {output}: the file must be a .csv or .parquet.")
    device = pick_device(threads)
    saved = [load_model(folder, device) for folder in fold_folders(models)]
    classes = _check_models(saved)
    shares = _shares(saved, priors)
    paths = {path.name.removesuffix(SUFFIX): path for path in sorted(features.glob(f"*{SUFFIX}"))}
    lost = _without_features(features, paths)
    if not paths and not lost:
        raise UserError(f"{features}: holds no feature store (*{SUFFIX}); see `her2 embed`.")
    problems = []
    for name, path in paths.items():
        store = open_store(path)
        problems += [f"{name}: {p}" for p in mismatches(store, saved[0])]
        if is_sealed(store) and not seal_holds(store):
            problems.append(f"{name}: {path} was edited after it was made")
    if problems:
        raise problem_list(
            f"{features}: these features do not fit the model {saved[0].folder}; embed the slides "
            "with its encoder",
            problems,
        )
    allow_open_files(len(paths))
    bags = [Bag(name, "", "", open_store(path), None) for name, path in paths.items()]
    for head in {item.card["head"]["head"]: item.head for item in saved}.values():
        check_room(bags, head, device)
    records: list[dict[str, Any]] = []
    for bag in bags:
        name = bag.slide_id
        given = [predict(item.model, bag).probabilities[None].astype(np.float64) for item in saved]
        if shares:
            given = [with_shares(one, *own) for one, own in zip(given, shares, strict=True)]
        mean = np.mean(given, axis=0)[0]
        records.append(
            {
                "slide_id": name,
                "status": "ok",
                "predicted": classes[int(mean.argmax())],
                **{f"prob_{c}": float(p) for c, p in zip(classes, mean, strict=True)},
                "prior": TRAINING_SET if shares else AS_TRAINED,
                "tiles": len(bag),
                "models": len(saved),
            }
        )
        log.info("%s: predicted %s", name, records[-1]["predicted"])
    records += [{"slide_id": n, "status": e.status, "reason": e.reason} for n, e in lost.items()]
    schema = {"slide_id": pl.String, "status": pl.String, "reason": pl.String,
              "predicted": pl.String, **{f"prob_{c}": pl.Float64 for c in classes},
              "prior": pl.String, "tiles": pl.Int64, "models": pl.Int64}  # fmt: skip
    table = pl.DataFrame(records, schema=schema).sort("slide_id")
    if output.suffix == ".csv":
        write_csv(table, output)
    else:
        with atomic_path(output) as temporary:
            table.write_parquet(temporary)
    return table


def mismatches(store: FeatureStore, saved: SavedModel) -> list[str]:
    """Return the reasons why a model cannot predict a store; empty if it can."""
    card, found = saved.card, store.attributes
    problems = []
    encoder = found.get("encoder")
    digest = encoder.get("digest") if isinstance(encoder, dict) else None
    if not isinstance(digest, str):
        return ["names no encoder, so it was not made by `her2 embed`"]
    if digest != card["encoder_digest"]:
        problems.append(
            f"comes from encoder {digest[:12]}, the model from {card['encoder_digest'][:12]}"
        )
    if store.dimension != card["dimension"]:
        problems.append(
            f"has {store.dimension} features per tile, the model expects {card['dimension']}"
        )
    tiles, wanted = found.get("target"), card["tiles"]
    if tiles is not None and wanted is not None and tiles != wanted:
        problems.append(
            f"has tiles of {tiles['px']} px at {tiles['mpp']:g} um/px, the model expects "
            f"{wanted['px']} px at {wanted['mpp']:g}"
        )
    if len(store) == 0:
        problems.append("contains no tiles")
    return problems


def fold_folders(models: Sequence[Path]) -> list[Path]:
    """Return the folders of single folds; a head's folder is replaced by those of its folds.

    A pattern of the shell such as `abmil/r0f*` also matches the entries files of the chunks
    (`r0f0-r0f4.json`), which lie beside the folds that they list. These are left out.

    Raises:
        UserError: something else is a file, or folds come with the model of all patients.
    """
    found: list[Path] = []
    entries: list[Path] = []
    for path in models:
        if path.is_file():
            entries.append(path)
            continue
        folds = [card.parent for card in sorted(path.glob(f"*/{CARD_NAME}"))]
        folds = [fold for fold in folds if fold.name != REFIT]
        found += [path] if (path / CARD_NAME).exists() or not folds else folds
    if wrong := [path for path in entries if not _lists_folds_of(path, found)]:
        raise problem_list(
            "her2 predict takes folders of trained folds, or a head's folder for all of its folds",
            [f"{path}: is a file; give a folder, such as {path.parent}" for path in wrong],
        )
    if entries:
        log.info("left out, as they list folds and are none: %s", ", ".join(map(str, entries)))
    found = list(dict.fromkeys(found))
    if len(found) > 1 and (whole := [path for path in found if path.name == REFIT]):
        raise UserError(
            f"{whole[0]}: is the model of all patients, which is not averaged with those of folds; "
            "give either it alone, or folds."
        )
    return found


def _lists_folds_of(path: Path, folds: Sequence[Path]) -> bool:
    """Tell whether a file is the entries file of a chunk, or of the refit, of models given too."""
    if path.suffix != ".json" or path.parent not in {fold.parent for fold in folds}:
        return False
    if path.stem == REFIT:
        return True
    try:
        return bool(read_entries(path, FoldEntry))
    except UserError:
        return False


def _check_models(saved: Sequence[SavedModel]) -> tuple[str, ...]:
    """Return the classes, after checking that all models agree."""
    first = saved[0]
    for other in saved[1:]:
        differ = [
            key
            for key in ("task", "encoder_digest", "dimension", "tiles")
            if other.card[key] != first.card[key]
        ]
        if differ:
            raise UserError(
                f"{other.folder} and {first.folder} cannot be averaged: they differ in "
                f"{', '.join(differ)}."
            )
    return first.task.class_names


def _shares(saved: Sequence[SavedModel], priors: Path | None) -> list[tuple[Floats, Floats]]:
    """Return each model's `share` and `seen`; empty where they are not known for all models."""
    tables = {item.folder: priors or _evaluated(item.folder) for item in saved}
    known: dict[Path, dict[str, tuple[Floats, Floats]]] = {
        path: read_priors(path) for path in set(tables.values()) if path is not None
    }
    found: list[tuple[Floats, Floats]] = []
    for item in saved:
        path = tables[item.folder]
        own = known[path].get(item.card["key"]) if path else None
        if own is not None:
            found.append(own)
        elif priors is not None:
            raise UserError(
                f"--priors {priors}: does not have the model {item.folder} (key "
                f"{item.card['key'][:12]}); give the table of the evaluation of this model."
            )
        else:
            log.warning(
                "%s: the probabilities are for classes as its training weighed them "
                "(training.balance: %s), not as frequent as in its training set; to correct them, "
                "run her2 evaluate or give its table with --priors",
                item.folder,
                item.card["training"]["balance"],
            )
            return []
    return found


def _evaluated(folder: Path) -> Path | None:
    """Return the table `priors` beside a fold in `results/models/{task}/{encoder}/{head}`."""
    head = folder.absolute().parent
    if head.parts[-4:-3] != ("models",):
        return None
    path = Path(*head.parts[:-4], "evaluation", *head.parts[-3:], "priors.parquet")
    return path if path.exists() else None


def _without_features(features: Path, paths: dict[str, Path]) -> dict[str, FeatureEntry]:
    """Return the slides that are in the folder's entries files but have no store."""
    found: dict[str, FeatureEntry] = {}
    for path in sorted(features.glob("*-of-*.json")):
        found |= read_entries(path, FeatureEntry)
    missing = {name: entry for name, entry in found.items() if name not in paths}
    ready = [name for name, entry in missing.items() if entry.status == "ok"]
    if ready:
        raise UserError(
            f"{features}: the feature stores of some slides are missing ({', '.join(ready[:5])}); "
            "run snakemake again."
        )
    return missing
