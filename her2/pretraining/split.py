"""Stage 1, pre-training data: train and validation parts that share no case."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from her2.core.errors import problem_list
from her2.pretraining.patch_set import PatchSet


@dataclass(frozen=True, slots=True)
class Split:
    """Sorted indices; the test set of `test` is used for neither training nor choosing."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    split_by: str


def split_patches(patches: PatchSet, *, share: float, seed: int) -> Split:
    """Split a set into train, validation and (where the set has one) test.

    A set's own `valid` part is kept. Otherwise `share` of the train patches become the validation
    part: whole cases, stratified by class, where cases are known, else random patches per class.

    Raises:
        UserError: a class cannot be on both sides, or a case is in two of the set's own parts.
    """
    where = f"patches.{patches.name}"
    parts = np.array([part or "train" for part in patches.parts])
    pool, valid, test = (np.flatnonzero(parts == part) for part in ("train", "valid", "test"))
    known = patches.cases_known
    if known:
        _check_own_parts(where, patches, parts)
    if len(valid):
        by = "the set's own parts" + ("" if known else " (cases unknown)")
        split = Split(pool, valid, test, by)
    else:
        generator = np.random.default_rng([seed, 1])
        choose = _some_cases if known else _some_patches
        chosen = choose(patches, pool, share, generator)
        by = "case" if known else "patch (cases unknown)"
        split = Split(pool[~chosen], pool[chosen], test, by)
    problems = [
        f"class {name!r} has no {part} patch"
        for part, indices in (("train", split.train), ("validation", split.validation))
        for i, name in enumerate(patches.class_names)
        if not (patches.labels[indices] == i).any()
    ]
    if problems:
        unit = "cases" if known else "patches"
        raise problem_list(
            f"{where}: cannot be split into train and validation. Each class needs at least two "
            f"{unit}; add some, or merge classes with `classes`",
            problems,
        )
    return split


def _some_patches(
    patches: PatchSet, pool: NDArray[np.int64], share: float, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Choose `share` of each class in `pool`, at least one patch and never all; return a mask."""
    chosen = np.zeros(len(pool), bool)
    labels = patches.labels[pool]
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        chosen[members[: min(max(1, round(share * len(members))), len(members) - 1)]] = True
    return chosen


def _some_cases(
    patches: PatchSet, pool: NDArray[np.int64], share: float, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Choose whole cases in `pool` that hold about `share` of every class; return a mask.

    Cases are tried in random order and taken if that brings the shares nearer. The best of several
    orders is kept.
    """
    names, case = np.unique([str(patches.cases[i]) for i in pool], return_inverse=True)
    counts = np.zeros((len(names), len(patches.class_names)))
    np.add.at(counts, (case, patches.labels[pool]), 1)
    totals = np.maximum(counts.sum(axis=0), 1)

    def cost(taken: NDArray[np.float64]) -> float:
        shares = taken / totals
        # A class that is absent from either side is worse than any uneven share.
        return float(np.abs(shares - share).sum() + (shares == 0).sum() + 2 * (shares == 1).sum())

    best, best_cost = np.zeros(len(names), bool), np.inf
    for _ in range(20):
        chosen, taken = np.zeros(len(names), bool), np.zeros(counts.shape[1])
        for i in generator.permutation(len(names)):
            if cost(taken + counts[i]) < cost(taken):
                chosen[i], taken = True, taken + counts[i]
        if cost(taken) < best_cost:
            best, best_cost = chosen, cost(taken)
    return best[case]


def _check_own_parts(where: str, patches: PatchSet, parts: NDArray[np.str_]) -> None:
    where_is: dict[str, set[str]] = {}
    for case, part in zip(patches.cases, parts.tolist(), strict=True):
        where_is.setdefault(str(case), set()).add(part)
    crossing = [
        f"{case} is in {' and '.join(sorted(found))}"
        for case, found in sorted(where_is.items())
        if len(found) > 1
    ]
    if crossing:
        raise problem_list(
            f"{where}: cases are in two of the set's own parts, so the validation would reward "
            "memorised patches. Move each case into one part",
            crossing,
            limit=10,
        )
