"""Coverage of the 95 % intervals of AUCs and error rates of comparisons, in simulated studies.

    python benchmarks/coverage.py                        every table, 500 studies a cell
    python benchmarks/coverage.py --part trained         one part (may be given again)
    python benchmarks/coverage.py --studies 2000         more studies a cell

The true AUC of each study is known (`benchmarks/studies.py`). The tables are in docs/coverage.md.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm, t

from benchmarks.cohorts import across_rows, alike_rows
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
from her2.evaluation.areas import Area, HeldOut, class_area, class_areas, combined, macro_area
from her2.evaluation.bootstrap import bootstrapped, interval
from her2.evaluation.intervals import (
    Estimate,
    area_estimate,
    difference_estimate,
    newcombe,
)
from her2.metrics.auc import auc
from her2.metrics.base import Binary

BATCH = 20
REST = 90
"""Patients that a class of fixed scores stands against."""
SIZES = {"4 x 12": (12, 12, 12, 12), "40/30/20/10": (40, 30, 20, 10)}
NULL_SIZES = {"24 + 24": (24, 24), "50 + 50": (50, 50), **SIZES}
COMPARED = {
    48: (12, 12, 12, 12),
    96: (24, 24, 24, 24),
    100: (40, 30, 20, 10),
    200: (80, 60, 40, 20),
}
LEARNERS = {"few features": 6, "many features": 60}
"""Number of features of ridge regressions, 4 of which carry the signal: the more, the less the
models agree with each other."""
STRENGTHS = {"few features": (0.0, 0.7, 1.5), "many features": (0.0, 1.2, 2.5)}
"""How much higher the feature of a class is for its patients: none, weak, strong."""
POOLED_STUDIES, RESAMPLES = 200, 500
SHARED = 0.5
"""Share of the noise's variance that is common to a patient's slides, and to two encoders."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What the intervals of a figure did over the studies of a cell, as shares."""

    covered: float
    below_half: float
    width: float
    bias: float

    def __str__(self) -> str:
        """Return the coverage in percent."""
        return percent(self.covered)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What tests of a difference did over the studies of a cell, as shares.

    `rejected` by the package and `corrected` by the corrected resampled t test at 5 %; `covered`:
    the package's interval contains the expected difference; `difference`: that difference.
    """

    rejected: float
    corrected: float
    covered: float
    difference: float


def tally(estimates: Sequence[Estimate], truths: Floats | float) -> Tally:
    """Count intervals; one that is not defined misses the truth and has no width."""
    low, high, value = (
        np.array([getattr(e, k) for e in estimates]) for k in ("low", "high", "value")
    )
    return Tally(
        float(np.mean((low <= truths) & (truths <= high))),
        float(np.mean(high < 0.5)),
        float(np.nanmean(high - low)),
        float(np.nanmean(value - truths)),
    )


def fixed(
    shape: str, truth: float, size: int, repeats: int, studies: int, seed: int
) -> tuple[Tally, Tally]:
    """Return what the package's intervals and Newcombe's alone do for given scores of a class."""
    generator = np.random.default_rng([seed, SHAPES.index(shape), round(100 * truth), size])
    target = np.repeat([1, 0], (size, REST))
    found: list[Estimate] = []
    for count in batches(studies, BATCH):
        scores = shaped(shape, truth, (size, REST), count, generator)
        both = np.repeat(np.stack([-scores, scores], axis=-1)[:, None], repeats, axis=1)
        rows = held(target, both, places(target, (count, repeats), generator))
        found += [area_estimate(one, CONFIDENCE) for one in split(class_area(rows, 1), count)]
    alone = [Estimate(one.value, *newcombe(one.value, size, REST, CONFIDENCE)) for one in found]
    return tally(found, truth), tally(alone, truth)


def classes(
    sizes: tuple[int, ...], shift: float, repeats: int, studies: int, seed: int, *, slides: int = 1
) -> list[Tally]:
    """Return the tallies of each class and the macro AUC for given scores.

    The score of a class is `shift` higher for its patients. A patient has up to `slides` slides,
    which share half of the variance of the noise.
    """
    generator = np.random.default_rng([seed, round(10 * shift), repeats, slides])
    own = np.repeat(np.arange(len(sizes)), sizes)
    found: list[list[Estimate]] = []
    for count in batches(studies, BATCH):
        slide_counts = generator.integers(1, slides + 1, len(own))
        of = np.repeat(np.arange(len(own)), slide_counts)
        common = generator.normal(size=(count, len(own), len(sizes)))[:, of]
        noise = generator.normal(size=common.shape)
        scores = np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * noise
        scores[:, np.arange(len(of)), own[of]] += shift
        place = places(own, (count, repeats), generator)[..., of]
        rows = held(own[of], np.repeat(scores[:, None], repeats, axis=1), place, of)
        found += class_estimates(rows, count)
    truth = float(norm.cdf(shift / np.sqrt(2)))
    return [tally(one, truth) for one in zip(*found, strict=True)]


@dataclass(frozen=True, slots=True)
class Trained:
    """Tallies of the classes and the macro AUC of cross-validated models, and the mean true AUC.

    `pooled` are those of the old method: probabilities averaged over the repeats, all folds
    pooled, intervals by bootstrap (empty if it was not asked for).
    """

    within: list[Tally]
    pooled: list[Tally]
    truth: float


def trained(
    sizes: tuple[int, ...],
    features: int,
    strength: float,
    repeats: int,
    studies: int,
    seed: int,
    *,
    pooled: int = 0,
    by_site: bool = False,
) -> Trained:
    """Cross-validate ridge regressions.

    Args:
        sizes: patients of each class.
        features: number of features.
        strength: see `STRENGTHS`.
        repeats: of the cross-validation.
        studies: number of studies.
        seed: seed.
        pooled: number of studies in which the old method is computed too.
        by_site: leave out one of four sites at a time, each of which has three quarters of
            the patients of one class.
    """
    generator = np.random.default_rng([seed, len(sizes), sizes[0], features, repeats])
    target = np.repeat(np.arange(len(sizes)), sizes)
    site = sites(sizes) if by_site else None
    found: list[list[Estimate]] = []
    old: list[list[Estimate]] = []
    truths: list[Floats] = []
    for count in batches(studies, BATCH):
        made = patients(target, strength, generator.normal(size=(count, len(target), features)))
        place = places(target, (count, repeats), generator)
        if site is not None:
            place = np.broadcast_to(site, place.shape)
        models = cross_validated(target, made, place, strength, generator)
        found += class_estimates(held(target, models.scores, place), count)
        for scores in models.scores[: max(0, pooled - len(old))]:
            old.append(pooled_estimates(target, scores.mean(axis=0), len(old)))
        truths.append(np.column_stack([models.truth, models.truth.mean(axis=1)]))
    truth = np.concatenate(truths)
    return Trained(
        [tally(one, truth[:, index]) for index, one in enumerate(zip(*found, strict=True))],
        [tally(one, truth[:pooled, index]) for index, one in enumerate(zip(*old, strict=True))],
        float(truth[:, -1].mean()),
    )


def compared(
    sizes: tuple[int, ...],
    strengths: tuple[float, float],
    repeats: int,
    studies: int,
    seed: int,
    *,
    features: int = 20,
) -> Comparison:
    """Compare the macro AUCs of two encoders that share half of the variance of their noise.

    The encoders' features are as useful as their strengths say. Two of equal strength are equally
    good, though two of their models are not: what training adds is part of the error.
    """
    generator = np.random.default_rng([seed, sizes[0], len(sizes), repeats])
    target = np.repeat(np.arange(len(sizes)), sizes)
    found: list[Estimate] = []
    gaps: list[Floats] = []
    truths: list[Floats] = []
    for count in batches(studies, BATCH):
        place = places(target, (count, repeats), generator)
        shape = (count, len(target), features)
        common = generator.normal(size=shape)
        areas, folds, true = [], [], []
        for strength in strengths:
            own = generator.normal(size=shape)
            noise = np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * own
            made = patients(target, strength, noise)
            models = cross_validated(target, made, place, strength, generator)
            rows = held(target, models.scores, place)
            areas.append(macro(rows))
            folds.append(macro(replace(rows, rounds=np.arange(len(rows.rounds)))).rounds)
            true.append(models.truth.mean(axis=1))
        difference = combined(areas, [1, -1], groups=rows.classes)
        found += [difference_estimate(one, CONFIDENCE) for one in split(difference, count)]
        gaps += list((folds[0] - folds[1]).reshape(count, -1))
        truths.append(true[0] - true[1])
    expected = 0.0 if strengths[0] == strengths[1] else float(np.concatenate(truths).mean())
    return Comparison(
        float(np.mean([one.p < 0.05 for one in found])),
        float(np.mean([corrected_p(one, int(place.max()) + 1) < 0.05 for one in gaps])),
        tally(found, expected).covered,
        expected,
    )


def macro(rows: HeldOut) -> Area:
    """Return the macro AUC."""
    return macro_area(rows, class_areas(rows))


def pooled_estimates(target: Ints, scores: Floats, seed: int) -> list[Estimate]:
    """Return the AUCs of pooled folds (scores (n, c)) with the intervals of a bootstrap."""

    def measure(weights: Floats) -> Floats:
        each = [auc(Binary(target == k, column, weights)) for k, column in enumerate(scores.T)]
        return np.column_stack([*each, np.mean(each, axis=0)])

    draws = bootstrapped(measure, np.arange(len(target)), target, resamples=RESAMPLES, seed=seed)
    counts = np.bincount(target)
    sizes = [*((int(n), int(counts.sum() - n)) for n in counts), tuple(int(n) for n in counts)]
    return [
        Estimate(float(column[0]), *interval(column[1:], CONFIDENCE, size))
        for column, size in zip(draws.T, sizes, strict=True)
    ]


def corrected_p(differences: Floats, folds: int) -> float:
    """Return the p value of the corrected resampled t test.

    Source: Nadeau and Bengio, Machine Learning 52(3), 2003.

    Args:
        differences: of each fold and repeat (j,).
        folds: number of folds.
    """
    count = len(differences)
    error = np.sqrt((1 / count + 1 / (folds - 1)) * differences.var(ddof=1))
    return float(2 * t.sf(abs(differences.mean()) / error, count - 1))


def sites(sizes: tuple[int, ...]) -> Ints:
    """Return the site of each patient (n,): most of a class is at the site of its number."""
    parts = []
    for index, size in enumerate(sizes):
        others = [one for one in range(len(sizes)) if one != index]
        parts.append(np.r_[np.full(size - size // 4, index), np.resize(others, size // 4)])
    return np.concatenate(parts)


def percent(share: float) -> str:
    """Return a share in percent."""
    return f"{100 * share:.1f}"


Rows = Iterator[tuple[object, ...]]


def fixed_rows(studies: int, seed: int) -> Rows:
    """Yield the table of given scores."""
    yield (
        "scores",
        "true AUC",
        *(f"class of {size}" for size in (6, 10, 20, 40)),
        "Newcombe alone",
    )
    for shape in SHAPES:
        for truth in (0.6, 0.75, 0.9, 0.97):
            cells = []
            alone = []
            for size in (6, 10, 20, 40):
                one, other = (fixed(shape, truth, size, n, studies, seed) for n in (1, 5))
                cells.append(f"{one[0]} / {other[0]}")
                alone.append(str(one[1]))
            yield (shape, truth, *cells, " / ".join(alone))


def class_rows(studies: int, seed: int) -> Rows:
    """Yield the table of given scores of four classes."""
    yield ("patients", "level", "repeats", "true AUC", "classes", "macro", "width of macro")
    for name, sizes in SIZES.items():
        for slides, level in ((1, "patient"), (3, "slide")):
            for repeats in (1, 5):
                for shift in (0.4, 1.0, 2.0, 2.7):
                    *each, mean = classes(sizes, shift, repeats, studies, seed, slides=slides)
                    truth = f"{norm.cdf(shift / np.sqrt(2)):.2f}"
                    yield (name, level, repeats, truth, joined(each), mean, f"{mean.width:.2f}")


def trained_rows(studies: int, seed: int) -> Rows:
    """Yield the table of trained models."""
    yield ("patients", "models", "repeats", "true AUC", "bias", "classes", "macro", "width",
           "pooled: bias", "pooled: classes", "pooled: macro")  # fmt: skip
    for name, sizes in SIZES.items():
        for learner, features in LEARNERS.items():
            for strength in STRENGTHS[learner]:
                for repeats in (1, 5):
                    found = trained(sizes, features, strength, repeats, studies, seed,
                                    pooled=min(studies, POOLED_STUDIES))  # fmt: skip
                    *each, mean = found.within
                    *old, old_mean = found.pooled
                    yield (name, learner, repeats, f"{found.truth:.2f}", f"{mean.bias:+.3f}",
                           joined(each), mean, f"{mean.width:.2f}", f"{old_mean.bias:+.3f}",
                           joined(old), old_mean)  # fmt: skip


def null_rows(studies: int, seed: int) -> Rows:
    """Yield the table of useless features."""
    yield ("patients", "folds", "repeats", "mean macro AUC", "macro below 0.5",
           "classes below 0.5", "pooled: mean macro AUC", "pooled: macro below 0.5")  # fmt: skip
    schemes = [(name, False, repeats) for name in NULL_SIZES for repeats in (1, 10)]
    for name, by_site, repeats in [*schemes, *((name, True, 1) for name in SIZES)]:
        found = trained(NULL_SIZES[name], LEARNERS["few features"], 0.0, repeats, studies, seed,
                        by_site=by_site, pooled=min(studies, POOLED_STUDIES))  # fmt: skip
        *each, mean = found.within
        old = found.pooled[-1]
        yield (name, "leave one site out" if by_site else "5, by class", repeats,
               f"{0.5 + mean.bias:.3f}", percent(mean.below_half),
               " / ".join(percent(one.below_half) for one in each),
               f"{0.5 + old.bias:.3f}", percent(old.below_half))  # fmt: skip


def compared_rows(studies: int, seed: int) -> Rows:
    """Yield the table of equally good encoders."""
    yield ("n", "repeats", "no signal", "weak", "strong")
    for n, sizes in COMPARED.items():
        for repeats in (1, 5):
            cells = [compared(sizes, (s, s), repeats, studies, seed) for s in (0.0, 1.0, 2.0)]
            yield (n, repeats, *(f"{percent(c.rejected)} ({percent(c.corrected)})" for c in cells))


def power_rows(studies: int, seed: int) -> Rows:
    """Yield the table of encoders that differ."""
    yield ("n", "repeats", "expected difference", "power", "power of the corrected t test",
           "coverage of the difference")  # fmt: skip
    for n, sizes in COMPARED.items():
        for repeats in (1, 5):
            found = compared(sizes, (1.7, 1.0), repeats, studies, seed)
            yield (n, repeats, f"{found.difference:.3f}", percent(found.rejected),
                   percent(found.corrected), percent(found.covered))  # fmt: skip


PARTS: dict[str, tuple[str, Callable[[int, int], Rows]]] = {
    "fixed": (
        "Given scores, a class against 90 others: coverage in % with 1 / 5 repeats; Newcombe's "
        "interval alone for each size",
        fixed_rows,
    ),
    "classes": ("Given scores of four classes: coverage in %", class_rows),
    "trained": ("Trained models: coverage in % of the true AUC of these models", trained_rows),
    "null": ("Useless features: share of intervals wholly below 0.5 in %", null_rows),
    "compared": (
        "Two equally good encoders: p < 0.05 in % of studies (in brackets the corrected resampled "
        "t test)",
        compared_rows,
    ),
    "power": ("Two encoders that differ: power at 5 % and coverage, in %", power_rows),
    "cohorts": (
        "Two cohorts with the same scores: intervals of the difference that contain 0, in % (in "
        "brackets by Student's t and the sum of both variances)",
        alike_rows,
    ),
    "across": (
        "Models trained on one cohort, their mean read on another: coverage of the true "
        "difference, in %",
        across_rows,
    ),
}


def joined(tallies: Sequence[Tally]) -> str:
    """Return the coverages of the classes."""
    return " / ".join(str(one) for one in tallies)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="all if left out")
    parser.add_argument("--studies", type=int, default=500, help="per cell")
    parser.add_argument("--seed", type=int, default=11)
    given = parser.parse_args()
    for part in given.part or PARTS:
        title, rows = PARTS[part]
        print(f"### {title}\n")
        start = time.process_time()
        for number, row in enumerate(rows(given.studies, given.seed)):
            print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)
            if not number:
                print("| " + " | ".join("---" for _ in row) + " |")
            elif not sys.stdout.isatty():
                seconds = time.process_time() - start
                print(f"{part}: {number} rows, {seconds:.0f} s", file=sys.stderr)
        print()


if __name__ == "__main__":
    main()
