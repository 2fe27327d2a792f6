"""Stage 2, attention to external slides: measures of the reliability of the frozen model's.

What is measured and written is the same as for held-out slides. Only the model differs: it is the
mean of all trained models, so that tiles are removed for all of them.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from her2.config.external_jobs import ExternalAttentionSpec, Truth
from her2.core.errors import UserError, blamed_on
from her2.core.types import Floats
from her2.evaluation.external.truth import summed
from her2.explanation.agreement import agreement_table, rank_correlation
from her2.explanation.attention_stage import follow_slide, write_measures
from her2.explanation.external_slides import External, ExternalSlide, find_external
from her2.explanation.faithfulness import Followed, predict_subsets, why_not_followed
from her2.explanation.localisation import is_uniform
from her2.explanation.sources import spread
from her2.frozen.model import FrozenModel
from her2.frozen.results import read_frozen
from her2.mil.bags import Bag
from her2.mil.model import predict
from her2.storage.cache import Cache
from her2.storage.features import open_store


def measure_external(
    spec: ExternalAttentionSpec,
    cache: Cache,
    *,
    predictions: Path,
    table: Path,
    evaluation: Path,
    models: Path,
    features: Path,
    masks: Path | None = None,
    output: Path,
    threads: int = 1,
) -> dict[str, pl.DataFrame]:
    """Write localisation, faithfulness and agreement of the attention to an external cohort.

    Agreement is that of the models of all folds, on the slides whose faithfulness is measured.

    Args:
        spec: the job.
        cache: holds trained folds and features.
        predictions: the folder that `her2 apply` wrote.
        table: the cohort's table of slides, with their labels.
        evaluation: the folder of the development's evaluation.
        models: the folder of the development's trained folds.
        features: the encoder's folder of feature entries of the cohort.
        masks: folder of ground truths (docs/explanation.md), if any.
        output: folder of the tables; `agreement` is written last.
        threads: CPU threads, where no other device is used.

    Returns:
        Name -> table, as written.

    Raises:
        UserError: predictions, features and models do not go together, or a product is missing.
    """
    external = find_external(spec, cache, predictions=predictions, table=table, features=features)
    chosen = spread(external.slides, spec.faithfulness_slides, seed=spec.seed)
    varied = [one for one in chosen if not is_uniform(external.attention[one.slide_id])]
    followed: list[Followed] = []
    correlations: dict[str, float | None] = {}
    if varied:
        frozen = read_frozen(
            evaluation,
            models,
            task_name=spec.truth.of,
            encoder=evaluation.parent.name,
            head=evaluation.name,
            chunks=spec.chunks,
            threads=threads,
            final=spec.final,
            cache=cache,
        )
        _check_count(frozen, varied, predictions)
        for slide in varied:
            store = open_store(external.store(slide.slide_id))
            bag = Bag(slide.slide_id, slide.patient_id, "", store, None)
            subsets = partial(frozen_subsets, frozen, spec.truth)
            attention = external.attention[slide.slide_id]
            followed.append(follow_slide(spec, subsets, bag, slide, attention))
            with blamed_on(slide.slide_id):
                correlations[slide.slide_id] = _agreement_of(frozen, bag)
    agreement = _agreement(spec, external, chosen, correlations)
    source = external.source()
    return write_measures(spec, source, masks, followed, len(chosen), agreement, output)


def frozen_subsets(
    frozen: FrozenModel, truth: Truth, bag: Bag, subsets: Sequence[NDArray[np.int64]]
) -> Floats:
    """Return a frozen model's probabilities (s, t) for bags of some of a slide's tiles.

    They are calibrated, averaged over the models, and summed to the classes of the truth.
    """
    mean = np.zeros((len(subsets), len(truth.task.classes)))
    for fold in frozen.folds:  # one at a time: each holds all encoded tiles of the slide
        found = predict_subsets(fold.saved.model, bag, subsets)
        mean += fold.corrected(found)[1] / len(frozen.folds)
    return summed(mean, truth)


def _agreement_of(frozen: FrozenModel, bag: Bag) -> float | None:
    """Return the rank correlation of a slide's attention between the models."""
    if len(frozen.folds) < 2:
        return None
    return rank_correlation([predict(one.saved.model, bag).attention for one in frozen.folds])


def _agreement(
    spec: ExternalAttentionSpec,
    external: External,
    chosen: Sequence[ExternalSlide],
    correlations: dict[str, float | None],
) -> pl.DataFrame:
    count = max((slide.count for slide in external.slides), default=0)
    if not external.slides:
        why_none = "not defined: no external slide has features"
    elif count < 2:
        why_none = "not defined: one model predicted the cohort"
    else:
        why_none = why_not_followed(0, "external slide")
    compared = chosen if count > 1 else []
    return agreement_table(
        compared,
        [correlations.get(slide.slide_id) for slide in compared],
        spec.confidence,
        maps=count,
        why_none=why_none,
    )


def _check_count(frozen: FrozenModel, slides: Sequence[ExternalSlide], predictions: Path) -> None:
    """Raise a UserError if the slides were predicted by another number of models."""
    counts = {slide.count for slide in slides} - {len(frozen.folds)}
    if counts:
        raise UserError(
            f"{predictions}: was predicted by {counts.pop()} models, but {frozen.name} has "
            f"{len(frozen.folds)} now; run snakemake again."
        )
