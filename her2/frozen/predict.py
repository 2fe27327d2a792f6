"""After stage 2: predict features with folders of trained folds (`her2 predict --features`)."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from her2.core.errors import UserError, problem_list
from her2.core.files import atomic_path
from her2.core.tables import write_csv
from her2.frozen.folders import read_folders
from her2.frozen.model import FrozenModel
from her2.frozen.stage import check_rooms, predict_bag
from her2.mil.apply import mismatches
from her2.mil.bags import Bag
from her2.storage.entries import FeatureEntry, read_entries
from her2.storage.features import (
    FeatureStore,
    allow_open_files,
    is_sealed,
    open_store,
    seal_holds,
)

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

    The models are one frozen model (`her2.frozen.folders`): each one's probabilities are corrected
    to the class frequencies of its training set and scaled by its temperature, as far as the
    evaluation of these models is found, and then averaged.

    Args:
        models: folders of trained folds, e.g. `results/models/score/uni2/abmil/r0f0`, or the folder
            of a head, which stands for all of its folds and training seeds.
        features: folder of `{slide_id}.zarr.zip`; entries files beside them tell which slides have
            no features, and why.
        output: a `.csv` or `.parquet` file.
        threads: number of CPU threads for torch.
        priors: the table `priors` of these models; default: the one in the results folder that the
            models are in. Temperatures are read from the table `temperatures` beside it.

    Returns:
        One row per slide: `slide_id, status, reason, predicted, prob_<class>` (the mean over the
        models), `prior` (`training set` or `as trained`), `calibrated` (whether every model has a
        temperature), `tiles, models`. A slide without features has a reason and no probabilities.

    Raises:
        UserError: a store comes from another encoder, dimension or um/px than the models, the
            models cannot be combined or are not in `priors`, or there is nothing to predict.
    """
    if output.suffix not in (".csv", ".parquet"):
        raise UserError(f"--out {output}: the file must be a .csv or .parquet.")
    given = read_folders(models, threads=threads, priors=priors)
    model, classes = given.model, given.model.task.class_names
    paths = {path.name.removesuffix(SUFFIX): path for path in sorted(features.glob(f"*{SUFFIX}"))}
    lost = _without_features(features, paths)
    if not paths and not lost:
        raise UserError(f"{features}: holds no feature store (*{SUFFIX}); see `her2 embed`.")
    allow_open_files(len(paths))
    stores = {name: open_store(path) for name, path in paths.items()}
    _check_stores(model, stores, features)
    bags = [Bag(name, "", "", store, None) for name, store in stores.items()]
    check_rooms(model, bags)
    records: list[dict[str, Any]] = []
    for bag in bags:
        found = predict_bag(model, bag).probabilities
        records.append(
            {
                "slide_id": bag.slide_id,
                "status": "ok",
                "predicted": classes[int(found.argmax())],
                **{f"prob_{c}": float(p) for c, p in zip(classes, found, strict=True)},
                "prior": TRAINING_SET if given.corrected else AS_TRAINED,
                "calibrated": given.calibrated,
                "tiles": len(bag),
                "models": len(model.folds),
            }
        )
        log.info("%s: predicted %s", bag.slide_id, records[-1]["predicted"])
    records += [{"slide_id": n, "status": e.status, "reason": e.reason} for n, e in lost.items()]
    schema = {"slide_id": pl.String, "status": pl.String, "reason": pl.String,
              "predicted": pl.String, **{f"prob_{c}": pl.Float64 for c in classes},
              "prior": pl.String, "calibrated": pl.Boolean, "tiles": pl.Int64,
              "models": pl.Int64}  # fmt: skip
    table = pl.DataFrame(records, schema=schema).sort("slide_id")
    if output.suffix == ".csv":
        write_csv(table, output)
    else:
        with atomic_path(output) as temporary:
            table.write_parquet(temporary)
    return table


def _check_stores(model: FrozenModel, stores: Mapping[str, FeatureStore], features: Path) -> None:
    """Check that the features are those of the model's encoder, and as they were made."""
    problems = []
    for name, store in stores.items():
        problems += [f"{name}: {problem}" for problem in mismatches(store, model.first)]
        if is_sealed(store) and not seal_holds(store):
            problems.append(f"{name}: {store.path} was edited after it was made")
    if problems:
        raise problem_list(
            f"{features}: these features do not fit the model {model.first.folder}; embed the "
            "slides with its encoder",
            problems,
        )


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
