"""Stage 1, embed: which augmented views a slide needs, and what each of them is.

The pixels are changed in `her2.embedding.augment`, which imports torch.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2.config.jobs import EmbedSpec
from her2.core.files import digest
from her2.embedding.identity import JSON, identity
from her2.encoders.card import EncoderCard
from her2.storage.cache import Cache
from her2.storage.features import read_attributes, read_coords
from her2.storage.products import LookUp, trusted
from her2.storage.tiles import TileTable
from her2.storage.views import same_tiles

AUGMENTATION = "paper-2"
"""Name of the augmentation, part of the identity of views; another one needs another name."""


def view_identity(
    spec: EmbedSpec, table: TileTable, card: EncoderCard, precision: str, view: int
) -> JSON:
    """Return everything that determines the bits of a view (from 1); 0 is the plain store."""
    plain = identity(spec, table, card, precision)
    if view == 0:
        return plain
    return {
        **plain,
        "view": view,
        "views_of": digest(plain),
        "seed": spec.seed,
        "augmentation": AUGMENTATION,
    }


def view_keys(
    spec: EmbedSpec, table: TileTable, card: EncoderCard, precision: str
) -> dict[int, str]:
    """Return view -> key of each view that the job's spec asks for."""
    return {
        view: digest(view_identity(spec, table, card, precision, view))
        for view in range(1, spec.views + 1)
    }


def lacking_views(
    cache: Cache, keys: dict[int, str], key: str, attributes: JSON, look_up: LookUp = trusted
) -> list[int]:
    """Return the views that the cache lacks of a slide whose plain store it has.

    A view of other tiles than the plain store has (which was made again after a failed tile) is
    lacking too.

    Args:
        cache: where the views are looked for.
        keys: view -> key.
        key, attributes: those of the plain store.
        look_up: see `her2.storage.products`.
    """
    plain = cache.path("features", key)
    found = []
    for view, own in keys.items():
        path = look_up(cache, "features", own)
        rows = None if path is None else (path, read_attributes(path, own))
        if rows is None or not same_tiles(rows, (plain, attributes)):
            found.append(view)
    return found


def rows_before(cache: Cache, table: TileTable, key: str, attributes: JSON) -> NDArray[np.bool_]:
    """Return which tiles of a table (n,) the plain store of a key has."""
    if not attributes["failed_tiles"]:
        return np.ones(len(table), bool)
    kept = {tuple(place) for place in read_coords(cache.path("features", key)).tolist()}
    places: list[Any] = table.coords.tolist()
    return np.array([tuple(place) in kept for place in places], bool)
