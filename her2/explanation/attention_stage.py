"""Stage 2, attention: measures of the reliability of attention on a model's held-out slides.

The stage reads folds, trained folds, feature stores and ground truths, and opens no slide. Each
slide is judged by the models that never saw its patient, of the first training seed. Attention is
that of the predicted class, as trained folds store it.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from her2.cohort.folds import check_disjoint
from her2.config.jobs import AttentionSpec
from her2.config.names import run_name
from her2.core.errors import SlideError, UserError, blamed_on
from her2.core.files import digest
from her2.core.tables import write_table
from her2.encoders.device import pick_device
from her2.explanation.agreement import agreement_table, rank_correlation
from her2.explanation.faithfulness import Followed, faithfulness_tables, follow
from her2.explanation.held_out_slides import HeldOutSlide, read_attention, spread, tested_slides
from her2.explanation.localisation import (
    LOCALISATION,
    LOCALISATION_SUMMARY,
    inside_tiles,
    is_uniform,
    locate,
    mask_shape,
    summarise,
)
from her2.explanation.truth import REGION_SUFFIXES, find_truth, truth_mask
from her2.mil.bags import Bag
from her2.mil.fold import SavedModel, load_model
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, FoldEntry, read_all_entries
from her2.storage.features import open_store, read_attributes, read_coords
from her2.storage.products import find_product

log = logging.getLogger(__name__)

Attention = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Sources:
    """The places of the products that the measures read."""

    cache: Cache
    features: Path
    entries: dict[str, FeatureEntry]
    models: dict[str, Path]

    def store(self, slide_id: str) -> Path:
        """Return the feature store of a slide that has one."""
        key = self.entries[slide_id].key
        if key is None:
            raise UserError(f"{slide_id}: has no features. Run snakemake again.")
        return find_product(self.cache, "features", key, self.features / f"{slide_id}.zarr.zip")


def measure_attention(
    spec: AttentionSpec,
    cache: Cache,
    *,
    folds: Path,
    models: Path,
    features: Path,
    masks: Path | None = None,
    output: Path,
    threads: int = 1,
) -> dict[str, pl.DataFrame]:
    """Write localisation, faithfulness and agreement of one encoder and head on a task.

    Args:
        spec: the job.
        cache: holds trained folds and features.
        folds: the task's folds table.
        models: the folder of the chunks' entries.
        features: the encoder's folder of feature entries.
        masks: folder of ground truths (docs/explanation.md), if any.
        output: folder of the tables; `agreement` is written last.
        threads: CPU threads, where no other device is used.

    Returns:
        Name -> table, as written.

    Raises:
        UserError: a product is missing, a fold's model is damaged, or a slide's attention is
            absent, not finite or does not match its tiles.
    """
    table = pl.read_parquet(folds)
    check_disjoint(table)
    entries = read_all_entries(features, spec.buckets, FeatureEntry)
    trained = {
        run: find_product(cache, "models", entry.key, models / run)
        for run, entry in read_all_entries(models, spec.chunks, FoldEntry).items()
    }
    sources = _Sources(cache, features, entries, trained)
    slides = tested_slides(table, entries, spec.task)
    attention = read_attention(slides, trained, entries)
    first = [slide for slide in slides if slide.repeat == 0]
    located = _localisation(spec, sources, first, attention, masks)
    chosen = spread(first, spec.faithfulness_slides, seed=spec.seed)
    curves, areas = faithfulness_tables(
        _followed(spec, sources, chosen, attention, threads), spec.confidence, asked=len(chosen)
    )
    tables = {
        "localisation": located,
        "localisation_summary": (
            _no_truth()
            if masks is None
            else summarise(located, spec.task.class_names, spec.confidence)
        ),
        "faithfulness": curves,
        "faithfulness_summary": areas,
        "agreement": _agreement(table, slides, attention, spec.confidence),
    }
    for name, found in tables.items():
        write_table(found, output / name)
    return tables


def _localisation(
    spec: AttentionSpec,
    sources: _Sources,
    slides: Sequence[HeldOutSlide],
    attention: dict[tuple[str, int], Attention],
    masks: Path | None,
) -> pl.DataFrame:
    """Return one row per slide with a ground truth, including ones that cannot be used."""
    if masks is None:
        return pl.DataFrame(schema=LOCALISATION)
    records = []
    for slide in slides:
        values = attention[slide.slide_id, 0]
        row = {
            "slide_id": slide.slide_id,
            "patient_id": slide.patient_id,
            "label": slide.label,
            "tiles": len(values),
        }
        with blamed_on(slide.slide_id):
            try:
                path = find_truth(masks, slide.slide_id)
                if path is None:
                    continue
                inside = _inside(spec, sources.store(slide.slide_id), path)
            except SlideError as error:
                log.warning("%s: not localised: %s", slide.slide_id, error)
                records.append(row | {"note": str(error)})
                continue
            records.append(row | asdict(locate(values, inside)))
    log.info("localisation: %d of %d slides have a ground truth", len(records), len(slides))
    return pl.DataFrame(records, schema=LOCALISATION)


def _inside(spec: AttentionSpec, store: Path, truth: Path) -> NDArray[np.bool_]:
    """Return a mask (n,) of the tiles that lie inside a slide's ground truth."""
    if spec.annotation_origin == "bounds" and truth.suffix.lower() in REGION_SUFFIXES:
        raise SlideError(
            f"its ground truth {truth.name} has coordinates relative to the scanned area "
            "(tiling.annotation_origin: bounds), whose position the features do not record; "
            "export it with level-0 coordinates or as a picture"
        )
    facts = read_attributes(store)["slide"]
    size_px, tile = tuple(facts["size_px"]), tuple(facts["level0_tile"])
    shape = mask_shape(size_px, tile)
    mask = truth_mask(truth, shape, size_px=size_px, classes=spec.mask_classes)
    return inside_tiles(mask, read_coords(store), tile, size_px)


def _no_truth() -> pl.DataFrame:
    """Return the summary of a cohort without ground truths, a single row with the reason."""
    row = {"class": "all", "patients": 0, "slides": 0, "note": "not defined: no cohort.masks"}
    return pl.DataFrame([row], schema=LOCALISATION_SUMMARY)


def _followed(
    spec: AttentionSpec,
    sources: _Sources,
    slides: Sequence[HeldOutSlide],
    attention: dict[tuple[str, int], Attention],
    threads: int,
) -> list[Followed]:
    """Return the curves of slides whose attention is not uniform."""
    varied = [slide for slide in slides if not is_uniform(attention[slide.slide_id, 0])]
    if not varied:
        return []
    device = pick_device(threads)
    models: dict[str, SavedModel] = {}
    found = []
    for slide in varied:
        run = run_name(slide.repeat, slide.fold)
        if run not in models:
            models[run] = load_model(sources.models[run], device)
        bag = Bag(
            slide.slide_id, slide.patient_id, "", open_store(sources.store(slide.slide_id)), None
        )
        seed = int(digest([spec.seed, slide.slide_id])[:8], 16)
        with blamed_on(slide.slide_id):
            curves = follow(models[run].model, bag, attention[slide.slide_id, 0], seed=seed)
        found.append(Followed(slide, curves))
        log.info("%s: curves of %d tiles", slide.slide_id, len(bag))
    return found


def _agreement(
    folds: pl.DataFrame,
    slides: Sequence[HeldOutSlide],
    attention: dict[tuple[str, int], Attention],
    confidence: float,
) -> pl.DataFrame:
    repeats = folds["repeat"].n_unique()
    first = [slide for slide in slides if slide.repeat == 0] if repeats > 1 else []
    correlations = [
        rank_correlation(
            [
                values
                for repeat in range(repeats)
                if (values := attention.get((slide.slide_id, repeat))) is not None
            ]
        )
        for slide in first
    ]
    return agreement_table(first, correlations, confidence, repeats=repeats)
