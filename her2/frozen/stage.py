"""Stage 2, apply: predict the slides of an external cohort by a frozen model.

No label of that cohort is read here, and nothing is fitted: the models, their temperatures and the
reference of the distances are those of development.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import polars as pl

from her2.config.external_jobs import ApplySpec
from her2.core.errors import UserError, blamed_on, problem_list
from her2.core.tables import read_result, write_parquet
from her2.frozen.distance import EmbeddingReference, embedding_reference, mean_embeddings
from her2.frozen.model import FrozenModel, FrozenPrediction
from her2.frozen.results import read_frozen
from her2.frozen.stores import bucket_names, development_slides, stores_of
from her2.mil.apply import mismatches
from her2.mil.bags import Bag
from her2.mil.stage import repeatable
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, check_excluded, read_all_entries
from her2.storage.features import FeatureStore

log = logging.getLogger(__name__)


def apply_models(
    spec: ApplySpec,
    cache: Cache,
    *,
    evaluation: Path,
    models: Path,
    folds: Path,
    features: Path,
    development: Path,
    output: Path,
    threads: int = 1,
) -> pl.DataFrame:
    """Predict every slide of an external cohort that has features.

    Writes `each.parquet` (`slide_id, run, prob_<class>` of each fold), `attention.parquet`
    (`slide_id, attention`) and, last, `predictions.parquet`.

    Args:
        spec: the job's spec.
        cache: holds the models and the feature stores of both cohorts.
        evaluation: `evaluation/{task}/{encoder}/{head}` of the development.
        models: `models/{task}/{encoder}/{head}` of the development.
        folds: the task's folds table, which says what the slides of development are.
        features: the external cohort's folder of feature entries.
        development: the development's folder of feature entries.
        output: folder of the tables.
        threads: number of CPU threads for torch.

    Returns:
        `slide_id, tiles, models, prob_<class>` (mean of the calibrated probabilities),
        `raw_<class>` (mean before the temperature), `spread_<class>` (standard deviation over the
        models), `distance, distance_percentile` (`her2.frozen.distance`; null where development has
        too few patients for it). The tables have no rows if no slide has features and
        `cohort.max_excluded` is 1.

    Raises:
        UserError: too many slides have no features, the features are those of another encoder or
            grid, or the models do not go with their evaluation.
    """
    entries = read_all_entries(features, spec.buckets, FeatureEntry)
    _check_usable(spec, entries, features)
    task_name, encoder, head = models.parts[-3:]
    model = read_frozen(
        evaluation, models, task_name=task_name, encoder=encoder, head=head, chunks=spec.chunks,
        final=spec.final, cache=cache, threads=threads,
    )  # fmt: skip
    if model.task.class_names != spec.task.class_names:
        raise UserError(
            f"{model.name}: its models know the classes {', '.join(model.task.class_names)}, the "
            f"config has {', '.join(spec.task.class_names)}. Run snakemake again."
        )
    stores = stores_of(sorted(entries), entries, features, cache)
    check_fits(model, stores, where=f"features of validation.{spec.cohort}")
    bags = [Bag(name, "", "", store, None) for name, store in stores.items()]
    check_rooms(model, bags)
    repeatable(model.first.model.mean.device)
    reference = _reference(spec, cache, folds=folds, development=development)
    if reference is None:
        log.warning(
            "%s: development has too few patients, or features that do not vary, to tell how far "
            "other slides are from it",
            model.name,
        )
    predictions = {bag.slide_id: predict_bag(model, bag) for bag in bags}
    log.info(
        "%s: predicted %d slides of %s by %d models; %d have no features",
        *(model.name, len(bags), spec.cohort, len(model.folds), len(entries) - len(bags)),
    )
    tables = prediction_tables(model, predictions, stores, reference)
    for name, table in tables.items():
        write_parquet(table, output / f"{name}.parquet")
    return tables["predictions"]


def check_fits(model: FrozenModel, stores: Mapping[str, FeatureStore], *, where: str) -> None:
    """Check that a model can predict some feature stores.

    Raises:
        UserError: they come from another encoder or grid; the message names the slides.
    """
    problems = [
        f"{name}: {problem}"
        for name, store in stores.items()
        for problem in mismatches(store, model.first)
    ]
    if problems:
        raise problem_list(
            f"{where} do not fit the models of {model.name}; embed the slides on the same grid "
            "with the same encoder",
            problems,
        )


def check_rooms(model: FrozenModel, bags: Sequence[Bag]) -> None:
    """Check that each slide can be predicted as one bag by the heads of all folds.

    Raises:
        UserError: slides do not fit into memory.
    """
    model.check_rooms(bags)


def predict_bag(model: FrozenModel, bag: Bag) -> FrozenPrediction:
    """Predict a slide.

    Raises:
        UserError: a probability is not finite.
    """
    with blamed_on(bag.slide_id):
        return model.predict(bag)


def prediction_tables(
    model: FrozenModel,
    predictions: Mapping[str, FrozenPrediction],
    stores: Mapping[str, FeatureStore],
    reference: EmbeddingReference | None,
) -> dict[str, pl.DataFrame]:
    """Return the tables `each`, `attention` and `predictions` of predicted slides.

    Args:
        model: the frozen model.
        predictions: slide -> its prediction.
        stores: slide -> its features.
        reference: of the development's embeddings.
    """
    names, classes = list(predictions), model.task.class_names
    distances, percentiles = _distances([stores[name] for name in names], reference)
    records = [
        (
            name,
            len(stores[name]),
            len(model.folds),
            *found.probabilities.tolist(),
            *found.uncalibrated.tolist(),
            *found.spread.tolist(),
            distance,
            percentile,
        )
        for (name, found), distance, percentile in zip(
            predictions.items(), distances, percentiles, strict=True
        )
    ]
    each = [
        (name, fold.run, *own.tolist())
        for name, found in predictions.items()
        for fold, own in zip(model.folds, found.each, strict=True)
    ]
    probabilities = _of_classes("prob", classes)
    columns: dict[str, type[pl.DataType]] = {
        "slide_id": pl.String,
        "tiles": pl.Int64,
        "models": pl.Int64,
        **probabilities,
        **_of_classes("raw", classes),
        **_of_classes("spread", classes),
        "distance": pl.Float64,
        "distance_percentile": pl.Float64,
    }
    return {
        "each": pl.DataFrame(
            each,
            schema={"slide_id": pl.String, "run": pl.String, **probabilities},
            orient="row",
        ),
        "attention": pl.DataFrame(  # of arrays: numbers of Python take ten times the memory
            [
                pl.Series("slide_id", names, pl.String),
                pl.Series(
                    "attention",
                    [pl.Series(found.attention) for found in predictions.values()],
                    pl.List(pl.Float32),
                ),
            ]
        ),
        "predictions": pl.DataFrame(records, schema=columns, orient="row"),
    }


def _check_usable(spec: ApplySpec, entries: Mapping[str, FeatureEntry], features: Path) -> None:
    """Stop if too many slides have no features; all may lack them where the config says so."""
    lost = {name: one.reason or "" for name, one in entries.items() if one.status != "ok"}
    if lost and len(lost) == len(entries) and spec.max_excluded >= 1:
        log.warning(
            "%s: no slide has features, so none is predicted; the first, %s: %s",
            *(f"validation.{spec.cohort}", *next(iter(sorted(lost.items())))),
        )
        return
    check_excluded(
        lost,
        total=len(entries),
        limit=spec.max_excluded,
        where=f"validation.{spec.cohort}, features in {features}",
    )


def _reference(
    spec: ApplySpec, cache: Cache, *, folds: Path, development: Path
) -> EmbeddingReference | None:
    slides = development_slides(read_result(folds))
    buckets = spec.development_buckets or bucket_names(development)
    entries = read_all_entries(development, buckets, FeatureEntry)
    stores = stores_of(slides["slide_id"], entries, development, cache)
    return embedding_reference(stores, dict(slides.select("slide_id", "patient_id").iter_rows()))


def _distances(
    stores: list[FeatureStore], reference: EmbeddingReference | None
) -> tuple[list[float | None], list[float | None]]:
    """Return the distance of each slide, and its percentile in development; None if not known."""
    if reference is None or not stores:
        return [None] * len(stores), [None] * len(stores)
    found = reference.distance(mean_embeddings(stores)).tolist()
    return found, [reference.distances.percentile(distance) for distance in found]


def _of_classes(kind: str, classes: Iterable[str]) -> dict[str, type[pl.DataType]]:
    return {f"{kind}_{name}": pl.Float64 for name in classes}
