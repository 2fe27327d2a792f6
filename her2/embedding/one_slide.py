"""Stage 1, embed: the features of one open slide, for scripts and notebooks."""

from pathlib import Path

from her2.config import EmbeddingSection
from her2.config.jobs import EmbedSpec
from her2.core.errors import SlideError, UserError, check_kind
from her2.core.hardware import allowed_cpus
from her2.embedding.encoder import FrozenEncoder
from her2.embedding.stage import embed_tables
from her2.slides.slide import Slide
from her2.storage.cache import Cache
from her2.storage.features import FeatureStore, open_store
from her2.tiling.one_slide import Tiles, tile


def embed(
    given: Slide | Tiles,
    encoder: FrozenEncoder,
    *,
    cache: Cache | Path | str | None = None,
    batch_size: int = 64,
    threads: int | None = None,
    scratch: str | None = None,
) -> FeatureStore:
    """Embed every tile of a slide, or take its features from the cache.

    The store is that of a run with the same slide, tiles and encoder, under the same key.

    Args:
        given: an open slide, which is then tiled for the encoder with the default tiling, or its
            tiles, see `tile`.
        encoder: the encoder, see `load_encoder`.
        cache: the folder that receives the store; default: that of HER2_CACHE, else `her2-cache`
            in the working folder. The `cache` of a run may be named.
        batch_size: largest number of patches per batch.
        threads: CPU threads; default: all that there are.
        scratch: folder on a local disk to which the slide is copied before it is read.

    Raises:
        UserError: the tiles are not those of the encoder, the cache cannot be written, or features
            are not finite.
        SlideError: the slide has no tile, or cannot be read.

    >>> import her2
    >>> encoder = her2.load_encoder("results/encoders/tiny")
    >>> with her2.open_slide("slides/demo-004-a.svs") as slide:
    ...     tiles = her2.tile(slide, encoder.mpp, encoder.size, tiling={"min_tissue": 0.3})
    ...     store = her2.embed(tiles, encoder)
    >>> store.features.shape
    (18, 512)
    """
    check_kind("slide", given, Slide, Tiles, fix="open it with open_slide(path)")
    check_kind("encoder", encoder, FrozenEncoder, fix="load it with load_encoder(...)")
    if encoder.card.source == "features":
        raise UserError(
            f"{encoder.folder}: its features were computed by another program, so that there are "
            "no weights to embed a slide with."
        )
    where = Cache.given(cache)
    if isinstance(given, Slide):
        given = tile(given, encoder.mpp, encoder.size, cache=where)
    if (given.mpp, given.size) != (encoder.mpp, encoder.size):
        raise UserError(
            f"{given.slide}: its tiles have {given.size} px at {given.mpp:g} um/px, the encoder "
            f"takes {encoder.size} px at {encoder.mpp:g}. Tile the slide with "
            f"tile(slide, mpp={encoder.mpp:g}, size={encoder.size})."
        )
    if not len(given):
        raise SlideError(f"{given.slide}: no tile has enough tissue; see `tile` and its picture.")
    name = given.slide.stem
    entry = embed_tables(
        EmbedSpec(bucket="", rows="", max_failed_tiles=EmbeddingSection().max_failed_tiles),
        where,
        {name: (given.slide, given.table)},
        encoder=encoder.folder,
        batch_size=batch_size,
        threads=threads or allowed_cpus(),
        scratch=scratch,
    )[name]
    if entry.status != "ok" or entry.key is None:
        raise SlideError(f"{given.slide}: {entry.reason}")
    return open_store(where.path("features", entry.key), entry.key)
