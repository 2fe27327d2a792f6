"""`her2 view`: the tiles of all cohorts that an encoder finds most similar to one tile.

Similarity is the cosine of the angle between the embeddings of two tiles: 1 for the same direction.
Encoders are trained and compared by the direction of their embeddings, whose length mostly varies
with stain and contrast, and the robustness index and the search for slides of the same tissue use
the cosine too. The search is exact: every tile that is searched is compared, and nothing is indexed
or approximated.

What is searched, a sample in memory or all stores, is in `her2.viewer.similar.searches`.
"""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2.core.errors import UserError, first_line
from her2.storage.features import FeatureStore
from her2.viewer.similar.stores import EmbeddedSlide

MOST = 24
"""Tiles in a list of hits."""
PER_PATIENT = 3
"""Most tiles of one patient among the hits; one slide with much of a look would fill the list."""
SPARE = 2
BLOCK_BYTES = 1 << 20
"""Of a store that are compared at once: with their float32, what a core keeps near."""


@dataclass(frozen=True, slots=True)
class Query:
    """The tile that others are compared with: its slide's number, its index, its embedding (d,)."""

    slide: int
    tile: int
    features: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Hit:
    """A tile that was found: its slide's number, its row in the store, and the cosine."""

    slide: int
    tile: int
    similarity: float


Groups = tuple[tuple[Hit, ...], tuple[Hit, ...], tuple[Hit, ...]]
"""Hits of other patients, of the patient's other slides, and of the same slide."""


@dataclass(slots=True)
class Searched:
    """What was searched: numbers of slides, patients and tiles, and whether these are all tiles.

    `undefined` counts tiles without a similarity: their embedding is zero or not finite. `skipped`
    says which slides could not be searched, and why.
    """

    slides: int = 0
    patients: int = 0
    tiles: int = 0
    whole: bool = True
    undefined: int = 0
    skipped: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """The most similar tiles, best first: of other patients, of the patient's other slides, and of
    the same slide.

    Of other patients, there are at most `PER_PATIENT` of each.
    """

    others: tuple[Hit, ...]
    same_patient: tuple[Hit, ...]
    same_slide: tuple[Hit, ...]
    searched: Searched


def read_query(slides: Sequence[EmbeddedSlide], slide: int, tile: int) -> Query:
    """Read the tile that others are compared with.

    Raises:
        IndexError: the slide has no such tile.
        UserError: its store cannot be read, or its embedding has no direction.
    """
    store = slides[slide].open()
    if not 0 <= tile < len(store):
        raise IndexError(f"tile {tile}; it has {len(store):,}")
    row = store.gather(np.array([tile]))
    if np.isnan(cosines(row, np.ones(store.dimension, np.float32))[0]):
        raise UserError(
            f"{slides[slide].slide_id}: the embedding of tile {tile} is zero or not finite, so it "
            "is similar to nothing; choose another tile."
        )
    return Query(slide, tile, scaled(row)[0])


def cosines(
    rows: NDArray[Any], query: NDArray[np.float32], *, precise: bool = False
) -> NDArray[Any]:
    """Return the cosine of each row (n, d) with a query (d,); NaN for rows without a direction.

    In float32, or float64 if `precise`.
    """
    values, asked = scaled(rows), scaled(query[None])[0]
    if precise:
        values, asked = values.astype(np.float64), asked.astype(np.float64)
    with np.errstate(all="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", values, values) * np.dot(asked, asked))
        found = np.where(lengths > 0, values @ asked / lengths, np.nan)
    return np.clip(np.where(np.isfinite(found), found, np.nan), -1, 1)


def scaled(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Return rows (n, d) in float32, each scaled so that its square cannot overflow."""
    if rows.dtype == np.float16:  # its largest value squared is no number that float32 lacks
        return rows.astype(np.float32)
    with np.errstate(all="ignore"):
        most = np.abs(rows).max(axis=1, keepdims=True)
        return (rows / np.where(most > 0, most, 1)).astype(np.float32)


def best_of(
    store: FeatureStore, query: NDArray[np.float32], most: int, cancelled: threading.Event
) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
    """Return the most similar rows of a store, best first, their cosines, and how many have none.

    A block of rows is in memory at a time.
    """
    rows, values = np.empty(0, np.int64), np.empty(0, np.float32)
    begin = undefined = 0
    step = max(1, BLOCK_BYTES // (store.dimension * store.chunks[0].itemsize))
    for chunk in store.chunks:
        for start in range(0, len(chunk), step):
            if cancelled.is_set():
                return rows, values, undefined
            found = cosines(chunk[start : start + step], query)
            good = np.flatnonzero(~np.isnan(found))
            undefined += len(found) - len(good)
            rows = np.concatenate([rows, begin + start + good])
            values = np.concatenate([values, found[good]])
            order = np.lexsort((rows, -values))[:most]
            rows, values = rows[order], values[order]
        begin += len(chunk)
    return rows, values, undefined


def open_checked(slide: EmbeddedSlide, dimension: int) -> FeatureStore:
    """Open a slide's store, whose features must be as many as those they are compared with.

    Raises:
        UserError: it cannot be read, or has others.
    """
    store = slide.open()
    if store.dimension != dimension:
        raise UserError(
            f"{slide.slide_id}: has {store.dimension:,} features per tile and not {dimension:,}; "
            "embed the cohort again with one encoder."
        )
    return store


def choose(
    slides: Sequence[EmbeddedSlide],
    query: Query,
    slide: NDArray[np.int32],
    tile: NDArray[np.int32],
    similarity: NDArray[Any],
) -> Groups:
    """Return the best tiles of others, of the patient's other slides and of the slide itself.

    They are `SPARE` times as many as are shown, since rounding may swap near ties: see `settle`.

    Args:
        slides: all slides.
        query: the tile that is compared.
        slide, tile, similarity: the tiles to choose from (n,).
    """
    patients, numbers = np.unique([one.patient_id for one in slides], return_inverse=True)
    own = np.searchsorted(patients, slides[query.slide].patient_id)
    patient = numbers[slide]
    order = np.lexsort((tile, slide, -similarity))
    order = order[~((slide[order] == query.slide) & (tile[order] == query.tile))]
    mine = patient[order] == own
    here = slide[order] == query.slide

    def hits(rows: NDArray[np.int64]) -> tuple[Hit, ...]:
        best = rows[: SPARE * MOST]
        return tuple(Hit(int(slide[i]), int(tile[i]), float(similarity[i])) for i in best)

    others = _at_most(order[~mine], patient, SPARE * PER_PATIENT)
    return hits(others), hits(order[mine & ~here]), hits(order[here])


def _at_most(order: NDArray[np.int64], patient: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return the rows in their order without those after the first `most` of each patient."""
    by_patient = np.argsort(patient[order], kind="stable")
    owners = patient[order][by_patient]
    begins = np.searchsorted(owners, owners)  # of each row's patient
    rank = np.empty(len(order), np.int64)
    rank[by_patient] = np.arange(len(order)) - begins
    return order[rank < most]


def settle(
    slides: Sequence[EmbeddedSlide], query: Query, rough: Groups, searched: Searched
) -> Found:
    """Return the best of what `choose` returned, by the features as stored and in float64.

    Slides that cannot be read any more are added to those that were skipped.
    """
    others, *own = (_exact(slides, query, hits, searched) for hits in rough)
    seen: Counter[str] = Counter()
    kept = []
    for hit in others:
        patient = slides[hit.slide].patient_id
        seen[patient] += 1
        if seen[patient] <= PER_PATIENT:
            kept.append(hit)
    same_patient, same_slide = (tuple(hits[:MOST]) for hits in own)
    return Found(tuple(kept[:MOST]), same_patient, same_slide, searched)


def _exact(
    slides: Sequence[EmbeddedSlide], query: Query, hits: Sequence[Hit], searched: Searched
) -> list[Hit]:
    found = []
    for number in sorted({hit.slide for hit in hits}):
        tiles = np.array([hit.tile for hit in hits if hit.slide == number])
        try:
            store = open_checked(slides[number], len(query.features))
            values = cosines(store.gather(tiles), query.features, precise=True)
        except (OSError, UserError, IndexError) as error:  # replaced since it was searched
            searched.skipped[number] = first_line(error)
            continue
        found += [
            Hit(number, int(tile), float(value))
            for tile, value in zip(tiles, values, strict=True)
            if not np.isnan(value)  # another store by now
        ]
    return sorted(found, key=lambda hit: (-hit.similarity, hit.slide, hit.tile))
