"""Stage 2, attention: measures of the reliability of attention on slides that models never saw.

The stage reads folds, trained folds, feature stores and ground truths, and opens no slide. Each
held-out slide is judged by the models that never saw its patient, of the first training seed.
Attention is that of the predicted class, as trained folds store it.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from her2.config.external_jobs import ExternalAttentionSpec
from her2.config.jobs import AttentionSpec
from her2.core.crashes import reading
from her2.core.errors import SlideError, blamed_on
from her2.core.files import digest
from her2.core.tables import write_table
from her2.encoders.device import pick_device
from her2.explanation.agreement import agreement_table, rank_correlation
from her2.explanation.faithfulness import (
    Followed,
    PredictSubsets,
    faithfulness_tables,
    follow,
    predict_subsets,
    why_not_followed,
)
from her2.explanation.held_out import HeldOut, HeldOutSlide, find_held_out
from her2.explanation.localisation import (
    LOCALISATION,
    LOCALISATION_SUMMARY,
    inside_tiles,
    is_uniform,
    locate,
    mask_shape,
    summarise,
)
from her2.explanation.sources import Source, spread
from her2.explanation.tiles import Explained
from her2.explanation.truth import REGION_SUFFIXES, find_truth, truth_mask
from her2.mil.bags import Bag
from her2.mil.fold import SavedModel, load_model
from her2.storage.cache import Cache
from her2.storage.features import (
    computed_here,
    open_store,
    places_known,
    read_attributes,
    read_coords,
)

log = logging.getLogger(__name__)


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
    held_out = find_held_out(
        spec, cache, folds=folds, models=models, features=features, repeat=None
    )
    first = [slide for slide in held_out.slides if slide.repeat == 0]
    chosen = spread(first, spec.faithfulness_slides, seed=spec.seed)
    followed = _followed(spec, held_out, chosen, threads)
    agreement = _agreement(held_out, first, spec.confidence)
    return write_measures(spec, held_out.source(), masks, followed, len(chosen), agreement, output)


def write_measures(
    spec: AttentionSpec | ExternalAttentionSpec,
    source: Source,
    masks: Path | None,
    followed: Sequence[Followed],
    asked: int,
    agreement: pl.DataFrame,
    output: Path,
) -> dict[str, pl.DataFrame]:
    """Measure a source's localisation and write all tables, `agreement` last.

    `followed` are the curves of those of the `asked` slides whose attention is not uniform.
    """
    nothing = "" if source.slides else f"not defined: no {source.kind} has features"
    why_none = nothing or why_not_followed(asked, source.kind)
    curves, areas = faithfulness_tables(followed, spec.confidence, why_none=why_none)
    located = _localisation(spec, source, masks)
    if masks is not None and source.slides:
        summary = summarise(located, source.class_names, spec.confidence, kind=source.kind)
    else:
        note = nothing or f"not defined: no {source.masks_key}"
        row = {"class": "all", "patients": 0, "slides": 0, "note": note}
        summary = pl.DataFrame([row], schema=LOCALISATION_SUMMARY)
    tables = {
        "localisation": located,
        "localisation_summary": summary,
        "faithfulness": curves,
        "faithfulness_summary": areas,
        "agreement": agreement,
    }
    for name, found in tables.items():
        write_table(found, output / name)
    return tables


def _localisation(
    spec: AttentionSpec | ExternalAttentionSpec, source: Source, masks: Path | None
) -> pl.DataFrame:
    """Return one row per slide with a ground truth, including ones that cannot be used."""
    if masks is None:
        return pl.DataFrame(schema=LOCALISATION)
    records: list[dict[str, object]] = []
    for slide in source.slides:
        values = source.attention[slide.slide_id]
        row: dict[str, object] = {
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
                with reading(slide.slide_id):
                    inside = _inside(spec, source.store(slide.slide_id), path)
            except SlideError as error:
                log.warning("%s: not localised: %s", slide.slide_id, error)
                records.append(row | {"note": str(error)})
                continue
            records.append(row | asdict(locate(values, inside)))
    log.info("localisation: %d of %d slides have a ground truth", len(records), len(source.slides))
    return pl.DataFrame(records, schema=LOCALISATION)


def _inside(
    spec: AttentionSpec | ExternalAttentionSpec, store: Path, truth: Path
) -> NDArray[np.bool_]:
    """Return a mask (n,) of the tiles that lie inside a slide's ground truth."""
    if spec.annotation_origin == "bounds" and truth.suffix.lower() in REGION_SUFFIXES:
        raise SlideError(
            f"its ground truth {truth.name} has coordinates relative to the scanned area "
            "(tiling.annotation_origin: bounds), whose position the features do not record; "
            "export it with level-0 coordinates or as a picture"
        )
    attributes = read_attributes(store)
    if not computed_here(attributes) and not places_known(attributes):
        raise SlideError("its features do not tell where on the slide they are")
    facts = attributes["slide"]
    size_px, tile = tuple(facts["size_px"]), tuple(facts["level0_tile"])
    shape = mask_shape(size_px, tile)
    mask = truth_mask(truth, shape, size_px=size_px, classes=spec.mask_classes)
    return inside_tiles(mask, read_coords(store), tile, size_px)


def follow_slide(
    spec: AttentionSpec | ExternalAttentionSpec,
    predict: PredictSubsets,
    bag: Bag,
    slide: Explained,
    attention: NDArray[np.float32],
) -> Followed:
    """Return the curves of a slide, whose random orders depend on the seed and its name."""
    seed = int(digest([spec.seed, slide.slide_id])[:8], 16)
    with blamed_on(slide.slide_id):
        curves = follow(predict, bag, attention, seed=seed)
    log.info("%s: curves of %d tiles", slide.slide_id, len(bag))
    return Followed(slide, curves)


def _followed(
    spec: AttentionSpec, held_out: HeldOut, slides: Sequence[HeldOutSlide], threads: int
) -> list[Followed]:
    """Return the curves of slides whose attention is not uniform."""
    varied = [one for one in slides if not is_uniform(held_out.attention[one.slide_id, 0])]
    if not varied:
        return []
    device = pick_device(threads)
    models: dict[str, SavedModel] = {}
    found = []
    for slide in varied:
        if slide.run not in models:
            models[slide.run] = load_model(held_out.models[slide.run][0], device)
        store = open_store(held_out.store(slide.slide_id))
        bag = Bag(slide.slide_id, slide.patient_id, "", store, None)
        predict = partial(predict_subsets, models[slide.run].model)
        attention = held_out.attention[slide.slide_id, 0]
        found.append(follow_slide(spec, predict, bag, slide, attention))
    return found


def _agreement(held_out: HeldOut, first: Sequence[HeldOutSlide], confidence: float) -> pl.DataFrame:
    repeats = range(held_out.repeats)
    compared = first if len(repeats) > 1 else []
    keys = [[(slide.slide_id, repeat) for repeat in repeats] for slide in compared]
    correlations = [
        rank_correlation([held_out.attention[key] for key in of if key in held_out.attention])
        for of in keys
    ]
    why_none = "not defined: no slide was tested in two repeats"
    if len(repeats) < 2:
        why_none = "not defined: one repeat (folds.repeats is 1, or the manifest's split is used)"
    return agreement_table(compared, correlations, confidence, maps=len(repeats), why_none=why_none)
