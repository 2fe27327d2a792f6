"""Stage 2, before training: slides of different patients that show the same tissue.

The cohort's audit finds the same file under two names. A copy that was saved again (with another
compression or format) has different bytes, so each encoder's features are searched for it:

1. Each slide has a mean embedding, with each feature standardised over the cohort's tiles. For
   every slide, the `NEIGHBOURS` nearest slides of other patients by cosine are candidates.
2. For a candidate pair, up to `PROBES` tiles of the smaller slide are matched to their nearest tile
   of the other slide by cosine. If the tissue is the same, the nearest tile is at the same place,
   so the shifts from probe to match agree; otherwise they scatter. With a the largest share of
   probes whose shifts agree within a tile, and c the share of all pairs (probe, tile) with such a
   shift,

    shared = max(0, (a - c) / (1 - c))          1: the same tissue, about 0: chance

This needs no threshold on features, which would differ between encoders. A pair above
`folds.max_shared_tiles` stops the run. Rotated or mirrored copies are not found. Copies whose grid
is shifted by part of a tile are found only with encoders that are nearly invariant to a shift. On
the demo's slides, pairs of different patients share at most 0.17 (all 1,770 of them). A slide and
its copy share 0.75 to 1.0 at JPEG quality 90 to 50, and 0.1 to 0.2 with a grid shifted by a quarter
of a tile.

An external cohort is searched for slides of the development cohort likewise: the candidates for
each of its slides are the nearest ones of development, whatever their patients are called.

The vote over shifts is that of geometric verification in image retrieval: Lowe, Distinctive image
features from scale-invariant keypoints, IJCV 60, 2004, section 7.3.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from her2.config.external_jobs import ApartSpec
from her2.config.jobs import SimilarSpec
from her2.core.errors import UserError, problem_list
from her2.core.tables import read_result, write_parquet
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, read_all_entries
from her2.storage.features import FeatureStore, allow_open_files, open_store, read_coords
from her2.storage.products import find_product

log = logging.getLogger(__name__)

SAMPLE = 256
"""Number of evenly spaced tiles that a slide's mean embedding is computed from."""
NEIGHBOURS = 5
PROBES = 64
LEAST_PROBES = 36
"""Slides with fewer tiles are too small for the shifts to be informative: of random slides of 16
tiles, one pair in a hundred shares half of them by chance; of 36 tiles, none of 435 pairs shares
more than 0.3."""
SUSPICIOUS = 0.5
"""`shared` above which the report warns of a pair, whatever the config allows."""
SHOWN = 20
"""Number of pairs in the table, the most similar first."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tissue:
    """A slide's features, and the positions of its tiles (n, 2) in tile sides, None if unknown."""

    slide_id: str
    patient_id: str
    store: FeatureStore
    places: Floats | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two slides of different patients: `cosine` of mean embeddings, `shared` in [0, 1].

    `shared` is None if a slide is too small to tell; or if one does not tell where its tiles are,
    and their features are not the same.
    """

    slide_a: str
    slide_b: str
    patient_a: str
    patient_b: str
    cosine: float
    shared: float | None


def find_similar(
    spec: SimilarSpec, cohort: Path, cache: Cache, *, features: Path, output: Path
) -> list[Pair]:
    """Write the most similar pairs of slides of different patients, as Parquet.

    Args:
        spec: the job.
        cohort: the audit's table, one row per slide, for the patients.
        cache: the cache with the feature stores.
        features: the encoder's folder of feature entries.
        output: the table.

    Raises:
        UserError: pairs share more tiles than `folds.max_shared_tiles`; the message names them.
    """
    slides = _slides(cohort, spec.buckets, cache, features)
    pairs = similar_pairs(slides)
    _refuse(
        pairs,
        spec.max_shared_tiles,
        f"{features.name}: slides of different patients show the same tissue by their features "
        f"({_words(spec.max_shared_tiles)}), so a slide and its copy could be in different folds. "
        "Remove one row, give both the same patient_id, or raise the limit if you have looked at "
        "the slides and they differ",
    )
    _write(pairs, output)
    return pairs


def find_similar_across(
    spec: ApartSpec,
    cohort: Path,
    development_cohort: Path,
    cache: Cache,
    *,
    features: Path,
    development_features: Path,
    output: Path,
) -> list[Pair]:
    """Write the most similar pairs of an external and a development slide, as Parquet.

    `slide_a` and `patient_a` are of the external cohort.

    Args:
        spec: the job.
        cohort: the audit's table of the external cohort, for the patients.
        development_cohort: the audit's table of the development cohort.
        cache: the cache with the feature stores.
        features: the encoder's folder of feature entries of the external cohort.
        development_features: that of the development cohort.
        output: the table.

    Raises:
        UserError: pairs share more tiles than `folds.max_shared_tiles`; the message names them. Or
            the features are not of one encoder.
    """
    external = _slides(cohort, spec.buckets, cache, features)
    development = _slides(
        development_cohort,
        spec.development_buckets,
        cache,
        development_features,
        already=len(external),
    )
    _check_encoders(external, development)
    pairs = similar_pairs(external, development)
    _refuse(
        pairs,
        spec.max_shared_tiles,
        f"{features.name}: slides of validation.{spec.cohort} show the same tissue as slides of "
        f"the development cohort by their features ({_words(spec.max_shared_tiles)}), on which the "
        "models were trained. Remove one of each pair from its manifest, or raise the limit if you "
        "have looked at the slides and they differ",
    )
    _write(pairs, output)
    return pairs


def similar_pairs(slides: Sequence[Tissue], others: Sequence[Tissue] | None = None) -> list[Pair]:
    """Return the candidate pairs, sorted by the share of shared tiles, the largest first.

    They are pairs of different patients or, if there are `others`, of a slide and one of these.
    """
    both = [*slides, *(others or ())]
    if len(both) < 2:
        return []
    means, mean, std = _mean_embeddings([slide.store for slide in both])
    groups = (
        np.array([slide.patient_id for slide in slides])
        if others is None
        else np.arange(len(both)) < len(slides)
    )
    found = {}
    # Row by row, because all pairs of 20,000 slides take 1.6 GB.
    for index, row in enumerate(means[: len(slides)]):
        cosine = means @ row
        cosine[groups == groups[index]] = -np.inf
        for other in np.argsort(-cosine)[:NEIGHBOURS]:
            if np.isfinite(cosine[other]):
                found[min(index, int(other)), max(index, int(other))] = float(cosine[other])
    pairs = [
        Pair(
            slide_a=both[a].slide_id,
            slide_b=both[b].slide_id,
            patient_a=both[a].patient_id,
            patient_b=both[b].patient_id,
            cosine=round(value, 4),
            shared=shared_tiles(both[a], both[b], mean, std),
        )
        for (a, b), value in sorted(found.items())
    ]
    return sorted(pairs, key=lambda pair: (-(pair.shared or 0), -pair.cosine, pair.slide_a))


def shared_tiles(a: Tissue, b: Tissue, mean: Floats, std: Floats) -> float | None:
    """Return the chance-corrected share of the smaller slide's probes that match the other.

    Without places of tiles, only equal features are told: one file under two names.
    """
    small, large = (a, b) if len(a.store) <= len(b.store) else (b, a)
    if small.places is None or large.places is None:
        return 1.0 if _are_equal(small.store, large.store) else None
    rows = spaced(len(small.store), PROBES)
    if len(rows) < LEAST_PROBES:
        return None
    probes = _unit((small.store.gather(rows).astype(np.float32) - mean) / std)
    best, nearest = np.full(len(rows), -np.inf, np.float32), np.zeros(len(rows), np.int64)
    start = 0
    for chunk in large.store.chunks:
        for first in range(0, len(chunk), 4096):
            tiles = _unit((chunk[first : first + 4096].astype(np.float32) - mean) / std)
            alike = probes @ tiles.T  # (probes, tiles)
            index, value = alike.argmax(axis=1), alike.max(axis=1)
            nearest = np.where(value > best, start + first + index, nearest)
            best = np.maximum(best, value)
        start += len(chunk)
    shifts = large.places[nearest] - small.places[rows]  # (probes, 2), in tiles
    agree = (np.abs(shifts[:, None] - shifts[None]) <= 1).all(axis=2)  # (probes, probes)
    mode = shifts[agree.sum(axis=1).argmax()]
    share = float(agree.sum(axis=1).max()) / len(rows)
    every = large.places[None] - small.places[rows][:, None]  # (probes, tiles, 2)
    chance = float((np.abs(every - mode) <= 1).all(axis=2).mean())
    return round(max(0.0, (share - chance) / (1 - chance)), 4) if chance < 1 else None


def _are_equal(a: FeatureStore, b: FeatureStore) -> bool:
    """Return whether two stores have the same features, tile by tile; few of most are read."""
    if len(a) != len(b):
        return False
    rows = spaced(len(a), PROBES)
    return np.array_equal(a.gather(rows), b.gather(rows)) and all(
        np.array_equal(one, other) for one, other in zip(a.chunks, b.chunks, strict=False)
    )


def _mean_embeddings(stores: Sequence[FeatureStore]) -> tuple[Floats, Floats, Floats]:
    """Return standardised unit mean embeddings (s, d), and the tiles' mean and deviation (d,)."""
    means, squares = [], []
    for store in stores:
        rows = store.gather(spaced(len(store), SAMPLE)).astype(np.float64)
        means.append(rows.mean(axis=0))
        squares.append((rows**2).mean(axis=0))
    table = np.stack(means)
    mean = table.mean(axis=0)
    std = np.sqrt(np.maximum(np.mean(squares, axis=0) - mean**2, 0))
    std[std < 1e-6 * np.maximum(1.0, np.abs(mean))] = 1.0
    unit = _unit(((table - mean) / std).astype(np.float32))
    return unit, mean.astype(np.float32), std.astype(np.float32)


def _unit(rows: Floats) -> Floats:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def spaced(count: int, wanted: int) -> NDArray[np.int64]:
    """Return at most `wanted` evenly spaced of `count` row numbers, the first and last included."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64))


def _check_encoders(external: Sequence[Tissue], development: Sequence[Tissue]) -> None:
    found = {
        (slide.store.attributes["encoder"]["digest"], slide.store.dimension): slide.slide_id
        for slide in (*development, *external)
    }
    if len(found) > 1:
        raise UserError(
            "the features of both cohorts are not of one encoder, e.g. those of "
            f"{' and '.join(found.values())}; run snakemake again, so that both are made with the "
            "same one."
        )


def _refuse(pairs: Sequence[Pair], limit: float, headline: str) -> None:
    """Log the most similar pairs, and stop if one shares more tiles than allowed."""
    for pair in pairs[:3]:
        log.info(
            "%s and %s: cosine %.3f, %.0f %% of tiles shared",
            *(pair.slide_a, pair.slide_b, pair.cosine, 100 * (pair.shared or 0)),
        )
    found = [pair for pair in pairs if (pair.shared or 0) > limit]
    if found:
        raise problem_list(
            headline,
            [
                f"{p.slide_a} ({p.patient_a}) and {p.slide_b} ({p.patient_b}): {p.shared:.0%} of "
                f"tiles, cosine of the means {p.cosine:.3f}"
                for p in found
            ],
        )


def _words(limit: float) -> str:
    return f"more than folds.max_shared_tiles {limit:g} of the tiles"


def _write(pairs: Sequence[Pair], output: Path) -> None:
    columns = {"slide_a": pl.String, "slide_b": pl.String, "patient_a": pl.String,
               "patient_b": pl.String, "cosine": pl.Float64, "shared": pl.Float64}  # fmt: skip
    write_parquet(pl.DataFrame([asdict(pair) for pair in pairs[:SHOWN]], schema=columns), output)


def _slides(
    cohort: Path, buckets: Sequence[str], cache: Cache, features: Path, *, already: int = 0
) -> list[Tissue]:
    """Return the slides of a cohort that have features, by name; `already` others are open."""
    patients = dict(read_result(cohort, columns=["slide_id", "patient_id"]).iter_rows())
    entries = read_all_entries(features, buckets, FeatureEntry)
    allow_open_files(already + len(entries))
    found = []
    for name, entry in sorted(entries.items()):
        if entry.status != "ok" or entry.key is None:
            continue
        path = find_product(cache, "features", entry.key, features / f"{name}.zarr.zip")
        store = open_store(path)
        found.append(Tissue(name, patients[name], store, _places(store)))
    return found


def _places(store: FeatureStore) -> Floats | None:
    """Return the positions of a slide's tiles in tile sides, None where they are not known.

    Of tiles that another program cut without telling their size, the side is the step of its grid.
    """
    coords = read_coords(store.path)
    tile = store.attributes["slide"]["level0_tile"]
    if tile is None:
        steps = [np.diff(np.unique(coords[:, axis])) for axis in (0, 1)]
        if not any(len(one) for one in steps):  # one tile, or no positions
            return None
        tile = float(min(one.min() for one in steps if len(one)))
    return (coords / np.array(tile, np.float32)).astype(np.float32)
