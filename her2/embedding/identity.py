"""Stage 1, embed: what determines a slide's features, and the store that the cache has of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from her2.config.jobs import EmbedSpec
from her2.core.errors import SlideError
from her2.core.files import digest
from her2.encoders.card import EncoderCard
from her2.slides.fingerprint import checksum
from her2.storage.cache import Cache
from her2.storage.features import read_attributes
from her2.storage.products import LookUp, trusted
from her2.storage.tiles import TileTable

JSON = dict[str, Any]


def identity(spec: EmbedSpec, table: TileTable, card: EncoderCard, precision: str) -> JSON:
    """Return everything that determines the bits of a slide's features, and nothing else.

    Batch size, threads, device, compilation and processor change only the last digits of sums. That
    is the noise of the precision and not part of the identity (docs/embedding.md).
    """
    other = (table.identity or {}).get("checksum")  # see `her2.tiling.stage.find_tiles`
    return {
        "stage": "embed",
        "version": spec.version,
        "fingerprint": table.facts.fingerprint,
        **({"checksum": other} if other else {}),
        "tiles": table.coords_digest,
        "encoder": card.digest,
        "precision": precision,
        "storage": card.storage,
    }


def feature_key(spec: EmbedSpec, table: TileTable, card: EncoderCard, precision: str) -> str:
    """Return the cache key of a feature store, which is the digest of its identity."""
    return digest(identity(spec, table, card, precision))


def find_features(
    spec: EmbedSpec,
    cache: Cache,
    table: TileTable,
    card: EncoderCard,
    precision: str,
    look_up: LookUp = trusted,
) -> tuple[TileTable, JSON | None]:
    """Return the attributes of a slide's store in the cache, or None, and the table to ask with.

    If the store under the key of the table comes from other bytes with the same samples, the
    slide's checksum becomes part of the table's identity, and so of the key.
    """
    attributes = _cached(cache, feature_key(spec, table, card, precision), look_up)
    stated, own = (attributes or {}).get("slide", {}).get("checksum"), table.facts.checksum
    if None in (stated, own) or stated == own:
        return table, attributes
    table = replace(table, identity={**(table.identity or {}), "checksum": own})
    return table, _cached(cache, feature_key(spec, table, card, precision), look_up)


def _cached(cache: Cache, key: str, look_up: LookUp) -> JSON | None:
    path = look_up(cache, "features", key)
    return None if path is None else read_attributes(path, key)


def changed_since_tiling(slide: Path, table: TileTable, cache: Cache) -> str | None:
    """Return why a slide cannot be embedded if it is not the one that was tiled."""
    if table.facts.checksum is None:
        return None
    try:
        if checksum(slide, cache.checksums) == table.facts.checksum:
            return None
    except SlideError:  # whoever reads the tiles says why
        return None
    return "its file changed after it was tiled; run snakemake again"
