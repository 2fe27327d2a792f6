"""Differences between two cohorts of patients, for benchmarks/coverage.py.

The internal figure is that of a development cohort, the external one that of other patients, and
the interval of their difference is that of `her2.evaluation.external.internal`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from benchmarks.studies import (
    CONFIDENCE,
    SHAPES,
    batches,
    class_estimates,
    cross_validated,
    held,
    patients,
    places,
    shaped,
    split,
)
from her2.core.types import Floats, Ints
from her2.evaluation.areas import Area, class_area
from her2.evaluation.external.internal import difference_limits
from her2.evaluation.intervals import Estimate, area_estimate, spread

BATCH = 20
ALIKE = {
    "100 / 50": ((40, 60), (20, 30)),
    "100 / 52": ((25, 75), (12, 40)),
    "400 / 260": ((100, 300), (60, 200)),
    "100 / 26": ((40, 60), (6, 20)),
}
"""Name -> patients of the class and of the rest, of the development and of the external cohort."""
SIZES = {
    "4 x 12 / 4 x 6": ((12, 12, 12, 12), (6, 6, 6, 6)),
    "40/30/20/10 / 24/18/12/6": ((40, 30, 20, 10), (24, 18, 12, 6)),
}
LEARNERS = {"few features": (6, (0.0, 0.7, 1.5)), "many features": (60, (0.0, 1.2, 2.5))}
"""Number of features, and how much higher that of a class is for its patients."""


@dataclass(frozen=True, slots=True)
class Across:
    """What intervals of the difference of two cohorts did over the studies of a cell, as shares.

    `mean` and `single` (c + 1,): how often intervals of each class and of the macro AUC contain the
    true difference, of the mean of the models and of single ones. `gain`: by how much the mean of
    the models is better than a single one, which is its true difference. `truth`: true macro AUC of
    single models.
    """

    mean: Floats
    single: Floats
    gain: float
    truth: float


def alike(
    shape: str, truth: float, sizes: tuple[tuple[int, int], ...], studies: int, seed: int
) -> tuple[float, float]:
    """Return how often intervals of cohorts with the same scores contain 0.

    Returns:
        Of the package, and of the sum of both variances with Student's t.
    """
    generator = np.random.default_rng([seed, SHAPES.index(shape), round(100 * truth), *sizes[1]])
    package = summed = 0
    for count in batches(studies, BATCH):
        both = []
        for own in sizes:
            target = np.repeat([1, 0], own)
            scores = shaped(shape, truth, (own[0], own[1]), count, generator)
            rows = held(
                target, np.stack([-scores, scores], axis=-1)[:, None], _one_set(target, count)
            )
            both.append(split(class_area(rows, 1), count))
        for inside, outside in zip(*both, strict=True):
            low, high = difference_limits(
                *(area_estimate(a, CONFIDENCE) for a in (inside, outside))
            )
            package += low <= 0 <= high
            summed += _within_t(inside, outside)
    return package / studies, summed / studies


def across(
    sizes: tuple[tuple[int, ...], tuple[int, ...]],
    features: int,
    strength: float,
    repeats: int,
    studies: int,
    seed: int,
) -> Across:
    """Cross-validate ridge regressions on one cohort, and read their mean on another.

    Args:
        sizes: patients of each class, of both cohorts.
        features: number of features.
        strength: how much higher the feature of a class is for its patients.
        repeats: of the cross-validation.
        studies: number of studies.
        seed: seed.
    """
    generator = np.random.default_rng([seed, *sizes[0], features, repeats, round(10 * strength)])
    inside, outside = (np.repeat(np.arange(len(own)), own) for own in sizes)
    covered: list[list[bool]] = []
    alone: list[list[bool]] = []
    gains, truths = [], []
    for count in batches(studies, BATCH):
        made, new = (
            patients(target, strength, generator.normal(size=(count, len(target), features)))
            for target in (inside, outside)
        )
        place = places(inside, (count, repeats), generator)
        models = cross_validated(inside, made, place, strength, generator)
        each = np.einsum("snd,msdc->smnc", new, models.weights)
        one_set = np.zeros(each.shape[:3], np.int64)
        own = class_estimates(held(inside, models.scores, place), count)
        mean = held(outside, each.mean(axis=1, keepdims=True), one_set[:, :1])
        gain = models.mean_truth - models.truth
        gain = np.column_stack([gain, gain.mean(axis=1)])
        covered += _contained(own, class_estimates(mean, count), gain)
        alone += _contained(own, class_estimates(held(outside, each, one_set), count), 0 * gain)
        gains.append(gain[:, -1])
        truths.append(models.truth.mean(axis=1))
    return Across(
        np.mean(covered, axis=0),
        np.mean(alone, axis=0),
        float(np.concatenate(gains).mean()),
        float(np.concatenate(truths).mean()),
    )


def _contained(
    inside: list[list[Estimate]], outside: list[list[Estimate]], true: Floats
) -> list[list[bool]]:
    """Return for each study and figure whether the interval contains the true difference."""
    return [
        [low <= gap <= high
         for gap, (low, high) in zip(gaps, map(difference_limits, own, other), strict=True)]
        for own, other, gaps in zip(inside, outside, true, strict=True)
    ]  # fmt: skip


def _one_set(target: Ints, count: int) -> Ints:
    """Return the place of each row in a single test set (s, 1, n)."""
    return np.zeros((count, 1, len(target)), np.int64)


def _within_t(inside: Area, outside: Area) -> bool:
    """Return whether the interval by Student's t contains 0."""
    pairs = [spread(area) for area in (inside, outside)]
    total = sum(variance for variance, _ in pairs)
    gap = abs(outside.value - inside.value)
    if not total > 0:
        return gap == 0
    freedom = total**2 / sum(v**2 / df for v, df in pairs if v > 0)
    return bool(gap <= stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(total))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


Rows = Iterator[tuple[object, ...]]


def alike_rows(studies: int, seed: int) -> Rows:
    """Yield the table of given scores."""
    yield "scores", "true AUC", *ALIKE
    for shape in SHAPES:
        for truth in (0.6, 0.75, 0.9, 0.97):
            cells = [alike(shape, truth, sizes, studies, seed) for sizes in ALIKE.values()]
            yield shape, truth, *(f"{_percent(own)} ({_percent(t)})" for own, t in cells)


def across_rows(studies: int, seed: int) -> Rows:
    """Yield the table of trained models."""
    yield ("patients", "models", "repeats", "true AUC", "single: classes", "single: macro",
           "gain of the mean", "mean: classes", "mean: macro")  # fmt: skip
    for name, sizes in SIZES.items():
        for learner, (features, strengths) in LEARNERS.items():
            for strength in strengths:
                for repeats in (1, 5):
                    found = across(sizes, features, strength, repeats, studies, seed)
                    single, mean = (
                        (" / ".join(map(_percent, own[:-1])), _percent(own[-1]))
                        for own in (found.single, found.mean)
                    )
                    truth, gain = f"{found.truth:.2f}", f"{found.gain:+.3f}"
                    yield (name, learner, repeats, truth, *single, gain, *mean)
