"""Raw slides to scores: the predictor that a bundle holds."""

from collections.abc import Mapping
from pathlib import Path

from her2.config import EvaluationSection
from her2.evaluation.groupings import groupings_of
from her2.frozen.bundle.read import read_bundle
from her2.prediction.development import judge_of
from her2.prediction.predictor import Predictor
from her2.storage.cache import Cache

ENCODERS = "bundled-encoders"
"""Folder in the cache for encoders of bundles."""
SEGMENTERS = "bundled-segmenters"
"""Folder in the cache for segmenters of bundles."""


def open_predictor(
    bundle: Path,
    encoder: Path | None,
    cache: Cache,
    *,
    threads: int,
    segmenters: Mapping[str, Path] | None = None,
) -> Predictor:
    """Read a bundle, and put its encoder and segmenters, if any, in folders of the cache.

    Args:
        bundle: a folder or .zip.
        encoder: the encoder's folder or weights file, where the bundle does not have its weights.
        cache: where the encoder's folder is made.
        threads: number of CPU threads for torch.
        segmenters: key of `tiling:` -> folder or weights file of that segmenter; those that are
            not there are fetched.

    Raises:
        UserError: it is no bundle, was changed, or its encoder or a segmenter cannot be had.
    """
    found = read_bundle(bundle, threads=threads)
    section = EvaluationSection(groupings=found.schema.groupings)
    return Predictor(
        model=found.model,
        groupings=groupings_of(found.model.task, section),
        mpp=found.mpp,
        size=found.size,
        tiling=found.tiling,
        seed=found.tile_seed,
        max_failed_tiles=found.max_failed_tiles,
        encoder=found.encoder_folder(cache.root / ENCODERS, given=encoder),
        segmenters=found.segmenter_folders(cache.root / SEGMENTERS, given=segmenters),
        judge=judge_of(found.schema),
        trained_on=found.trained_on,
        ran_in=found.schema.encoder.ran_in,
        synthetic=found.schema.synthetic,
        made_of={"bundle": found.schema.digest, "made_by_her2": found.schema.software.her2},
    )
