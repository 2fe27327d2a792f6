"""Raw slides to scores: tiles and features of slides, by the stages of the workflow.

The keys in the cache are those of a run with the same options, so nothing is made twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from her2.cohort.manifest import Cohort, SlideRow, bucket_of
from her2.config.jobs import EmbedSpec, TileSpec
from her2.core.hardware import allowed_cpus
from her2.embedding.stage import embed_bucket
from her2.prediction.predictor import Predictor
from her2.prediction.progress import Progress
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, TileEntry
from her2.tiling.stage import tile_bucket


@dataclass(frozen=True, slots=True)
class Prepared:
    """A slide with what tiling and embedding say of it."""

    row: SlideRow
    tiled: TileEntry
    embedded: FeatureEntry


def prepare_slides(
    predictor: Predictor,
    cohort: Cohort,
    cache: Cache,
    folder: Path,
    progress: Progress,
    *,
    threads: int,
    scratch: str | None = None,
    batch_size: int = 64,
) -> list[Prepared]:
    """Tile and embed the slides that the cache does not hold yet.

    Args:
        predictor: the grid, the tiling and the encoder.
        cohort: the slides.
        cache: receives their products.
        folder: for the stages' other outputs, on the disk of the cache.
        progress: says how far it is.
        threads: number of CPU threads.
        scratch: folder on a local disk to which slides are copied before they are embedded.
        batch_size: largest number of tiles per batch.

    Returns:
        Every slide, in the order of the cohort; those that cannot be used have the reason.

    Raises:
        UserError: the cache cannot be written, or features are not finite.
    """
    bucket = bucket_of("", 1)
    tile = TileSpec(
        bucket=bucket,
        rows="",
        mpp=predictor.mpp,
        size=predictor.size,
        tiling=predictor.tiling,
        seed=predictor.seed,
    )
    entries = folder / "tiles" / f"{bucket}.json"
    with progress.stage("tiling", len(cohort.rows)):
        tiled = tile_bucket(tile, cohort, cache, entries, threads=threads, **predictor.segmenters)
    usable = [entry for entry in tiled.values() if entry.status == "ok"]
    tiles = sum(entry.tiles for entry in usable)
    progress.say(f"slides with tissue: {len(usable):,} of {len(tiled):,}; tiles: {tiles:,}")
    name = "embedding"
    if predictor.device.type == "cpu":
        name += f" on the CPU with {min(threads, allowed_cpus())} threads, without a GPU"
    with progress.stage(name, len(tiled), tiles):
        embedded: Mapping[str, FeatureEntry] = embed_bucket(
            EmbedSpec(bucket=bucket, rows="", max_failed_tiles=predictor.max_failed_tiles),
            cohort,
            cache,
            tiles=entries,
            encoder=predictor.encoder,
            output=folder / "features" / f"{bucket}.json",
            batch_size=batch_size,
            threads=threads,
            scratch=scratch,
        )
    return [Prepared(row, tiled[row.slide_id], embedded[row.slide_id]) for row in cohort.rows]
