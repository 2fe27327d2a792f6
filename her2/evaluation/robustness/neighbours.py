r"""Stage 2, robustness: whether a tile's nearest neighbours share its class or its site.

For each tile, its K nearest neighbours among the tiles of other patients by cosine are of one of
four kinds. Two of them tell what the encoder arranges tiles by: those of the same class from
another site (SO), and those of another class from the same site (OS). With n_SO and n_OS the
numbers of such tiles that there are for a tile, over all tiles

    index = sum SO/n_SO / (sum SO/n_SO + sum OS/n_OS)

1: only the class counts; 0: only the site does; 0.5: both alike, or neither.

The robustness index of PathoROB (Kömen et al., Nature Communications 17, 2026; first de Jong et
al., arXiv 2501.18055) is sum SO / (sum SO + sum OS): ours differs in the following.

- Counts are divided by what there is to find. PathoROB takes equally many patches of each class
  and site, two by two where it cannot; a cohort has what it has. With four classes and two sites
  its formula gives 0.25 for neighbours at random. Where all classes and sites are equally frequent
  and there are as many classes as sites, both are the same number. `plain` is by its formula.
- Its class is that of a patch. Here it is the task's class of the patient, which each tile
  inherits, also those that show nothing of it, so the index is nearer to 0.5.
- It leaves out neighbours of the same slide or patient, by data set; here always of the patient.
- It takes the k at which the neighbours predict the class best, and publishes 11, 46 and 61. With a
  patient's class that choice is mostly noise; here it is fixed, and the table has all of `KS`.

The interval is from a Bayesian bootstrap of the patients (Rubin, Annals of Statistics 9(1), 1981):
a pair of tiles counts by the product of the weights of both patients, since a patient is asked for
neighbours and is one, and n_SO and n_OS are weighed likewise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from her2.core.types import Bools, Floats, Ints

KS = (5, 15, 50)
"""Numbers of neighbours."""
SHOWN = 15
"""The one that the report shows."""
RESAMPLES = 500
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Index:
    """The index with K neighbours.

    Attributes:
        k: number of neighbours.
        value: the index, with its limits `low` and `high`.
        plain: by the formula of PathoROB, and `plain_chance` what neighbours at random give there.
        same_class, same_site: the shares of neighbours that are SO and OS.
        tiles: that have both kinds to find.
    """

    k: int
    value: float
    low: float
    high: float
    plain: float
    plain_chance: float
    same_class: float
    same_site: float
    tiles: int


def nearest(
    tiles: NDArray[np.float32], patients: Ints, most: int
) -> tuple[NDArray[np.int32], Bools]:
    """Return the nearest tiles of other patients by cosine, nearest first.

    Args:
        tiles: features (t, d).
        patients: of each tile (t,).
        most: number of neighbours wanted.

    Returns:
        Their indices (t, k), and whether each exists (t, k); k is smaller in a small cohort.
    """
    unit = tiles / np.maximum(np.linalg.norm(tiles, axis=1, keepdims=True), 1e-12)
    k = min(most, len(tiles))
    found, there = np.empty((len(tiles), k), np.int32), np.empty((len(tiles), k), bool)
    for start in range(0, len(tiles), _BLOCK):
        part = slice(start, start + _BLOCK)
        alike = unit[part] @ unit.T
        asking = patients[part]
        alike[asking[:, None] == patients[None]] = -np.inf
        best = np.argpartition(-alike, k - 1, axis=1)[:, :k]
        values = np.take_along_axis(alike, best, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        found[part] = np.take_along_axis(best, order, axis=1)
        there[part] = np.isfinite(np.take_along_axis(values, order, axis=1))
    return found, there


def robustness_index(
    neighbours: NDArray[np.int32],
    there: Bools,
    patients: Ints,
    classes: Ints,
    sites: Ints,
    *,
    confidence: float,
    seed: int,
    ks: Sequence[int] = KS,
) -> list[Index]:
    """Return the index for each number of neighbours; tiles of -1 have no class or site.

    Args:
        neighbours, there: of `nearest`.
        patients: of each tile (t,).
        classes: of each tile (t,), -1 for none.
        sites: of each tile (t,), -1 for none.
        confidence: of the interval.
        seed: of its bootstrap.
        ks: numbers of neighbours, ascending.

    Returns:
        One for each number of neighbours that there are; none if no tile has both kinds to find.
    """
    # Tiles of one patient, class and site have the same to find.
    units, unit = np.unique(np.stack([patients, classes, sites]), axis=1, return_inverse=True)
    unit = unit.ravel()
    to_find = _to_find(units, np.bincount(unit))
    asked = np.logical_and.reduce([one.any(axis=1) for one in to_find])[unit]
    if not asked.any():
        return []
    rows = np.flatnonzero(asked)
    # Of each neighbour: whether it is there and of known class and site, SO, OS.
    other = unit[neighbours[rows]]
    valid = there[rows] & (units[1:, other] >= 0).all(axis=0)
    same = units[1:, other] == units[1:, unit[rows], None]
    kinds = valid & same[0] & ~same[1], valid & ~same[0] & same[1]
    draws = np.random.default_rng(seed).exponential(size=(int(patients.max()) + 1, RESAMPLES))
    weights = np.column_stack([np.ones(units.shape[1]), draws[units[0]]])
    # What neighbours at random give by the plain formula.
    numbers = [float(one.sum(axis=1)[unit[rows]].sum()) for one in to_find]
    found = []
    for k in ks:
        if k > other.shape[1]:
            continue
        own = [kind[:, :k] for kind in kinds]
        sums = []
        for kind, there_are in zip(own, to_find, strict=True):
            asking, column = np.nonzero(kind)
            pairs = np.zeros((units.shape[1], units.shape[1]))
            np.add.at(pairs, (unit[rows[asking]], other[asking, column]), 1)
            sums.append(_weighed(pairs, there_are, weights))
        values = _share(*sums)
        low, high = np.nanquantile(values[1:], [(1 - confidence) / 2, (1 + confidence) / 2])
        totals = [int(kind.sum()) for kind in own]
        seen = max(1, int(valid[:, :k].sum()))
        found.append(
            Index(
                k=k,
                value=float(values[0]),
                low=float(low),
                high=float(high),
                plain=totals[0] / sum(totals) if sum(totals) else float("nan"),
                plain_chance=numbers[0] / sum(numbers),
                same_class=totals[0] / seen,
                same_site=totals[1] / seen,
                tiles=len(rows),
            )
        )
    return found


def _to_find(units: Ints, tiles: Ints) -> list[Floats]:
    """Return how many tiles of each unit are SO, and OS, for a tile of each unit, two (u, u)."""
    known = (units[1:] >= 0).all(axis=0)
    patients, classes, sites = (np.equal.outer(row, row) for row in units)
    fit = np.logical_and.outer(known, known) & ~patients
    return [(fit & classes & ~sites) * tiles, (fit & ~classes & sites) * tiles]


def _weighed(pairs: Floats, to_find: Floats, weights: Floats) -> Floats:
    """Return the sum of neighbours of a kind over how many there are to find, by weights (u, b).

    Args:
        pairs: number of neighbours of each unit that each unit has (u, u).
        to_find: number of tiles (u, u), see `_to_find`.
        weights: of the units (u, b).
    """
    met, there_are = pairs @ weights, to_find @ weights
    parts = np.divide(met, there_are, out=np.zeros_like(met), where=there_are > 0)
    found: Floats = (weights * parts).sum(axis=0)
    return found


def _share(first: Floats, second: Floats) -> Floats:
    total = first + second
    return np.divide(first, total, out=np.full(len(total), np.nan), where=total > 0)
