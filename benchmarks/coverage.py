"""Coverage of the 95 % intervals, in simulated studies with a known AUC.

    python benchmarks/coverage.py            500 studies (a minute), true AUC 0.76
    python benchmarks/coverage.py --shift 2  true AUC 0.92

Each study has 100 patients, 40 / 30 / 20 / 10 in four classes. The score of a class is standard
normal noise, higher by `--shift` for the patients of that class. Its true one-vs-rest AUC, and so
the mean over classes, is Phi(shift / sqrt 2). An interval that is not defined counts as missing the
truth, and does not enter the mean width. At slide level a patient has one to three slides that
share half of the variance. A second model is equally good, and half of the variance of its noise is
shared with the first.
"""

import argparse
from dataclasses import dataclass

import numpy as np
from her2.evaluation.delong import area_interval, compare_areas
from numpy.typing import NDArray
from scipy.stats import norm

from her2.evaluation.bootstrap import bootstrapped, interval
from her2.evaluation.paired import difference
from her2.metrics.auc import auc
from her2.metrics.base import Binary

SIZES = (40, 30, 20, 10)
CONFIDENCE = 0.95
SHIFT = 1.0
SHARED = 0.5
"""Share of the noise's variance that is common to a patient's slides, and to two models."""
TRUTH = float(norm.cdf(SHIFT / np.sqrt(2)))


@dataclass(frozen=True, slots=True)
class Coverage:
    """Coverage of one method and figure.

    `n` is the number of patients in the class (or of all), `coverage` the share of `studies` whose
    interval contains the truth, `width` the interval's mean width.
    """

    method: str
    figure: str
    n: int
    coverage: float
    width: float
    studies: int


def coverages(*, studies: int, resamples: int, seed: int, shift: float = SHIFT) -> list[Coverage]:
    """Simulate studies, and return the coverages in a fixed order."""
    generator = np.random.default_rng(seed)
    truth = float(norm.cdf(shift / np.sqrt(2)))
    target = np.repeat(np.arange(len(SIZES)), SIZES)
    found: dict[tuple[str, str, int], list[tuple[bool, float]]] = {}

    def note(method: str, figure: str, n: int, ends: tuple[float, float], true: float) -> None:
        low, high = ends
        found.setdefault((method, figure, n), []).append((low <= true <= high, high - low))

    for study in range(studies):
        options = {"resamples": resamples, "seed": study}
        common = generator.normal(size=(len(target), len(SIZES)))
        first, second = (_scores(common, target, generator, shift) for _ in range(2))
        both = np.concatenate([first, second], axis=1)
        draws = bootstrapped(
            lambda weights, s=both: _areas(target, s, weights),
            np.arange(len(target)), target, **options,
        )  # fmt: skip
        own, other = draws[:, : len(SIZES) + 1], draws[:, len(SIZES) + 1 :]
        for index, n in enumerate(SIZES):
            name, positive, rest = f"class {index}", target == index, len(target) - n
            note("bootstrap", name, n, interval(own[1:, index], CONFIDENCE, (n, rest)), truth)
            note("delong", name, n, area_interval(positive, first[:, index], CONFIDENCE)[1:], truth)
            gap = difference(own[:, index] - other[:, index], CONFIDENCE, (n, rest))
            note("bootstrap", f"difference, {name}", n, (gap["low"], gap["high"]), 0.0)
            test = compare_areas(positive, first[:, index], second[:, index], CONFIDENCE)
            note("delong", f"difference, {name}", n, (test.low, test.high), 0.0)
        note("bootstrap", "macro", len(target), interval(own[1:, -1], CONFIDENCE, SIZES), truth)
        gap = difference(own[:, -1] - other[:, -1], CONFIDENCE, SIZES)
        note("bootstrap", "difference, macro", len(target), (gap["low"], gap["high"]), 0.0)

        slides = generator.integers(1, 4, len(target))
        patients = np.repeat(np.arange(len(target)), slides)
        scores = _scores(common[patients], target[patients], generator, shift)
        draws = bootstrapped(
            lambda weights, t=target[patients], s=scores: _areas(t, s, weights),
            patients, target[patients], **options,
        )  # fmt: skip
        for index, n in enumerate(SIZES):
            ends = interval(draws[1:, index], CONFIDENCE, (n, len(target) - n))
            note("bootstrap", f"slides, class {index}", n, ends, truth)
        note(
            "bootstrap",
            "slides, macro",
            len(target),
            interval(draws[1:, -1], CONFIDENCE, SIZES),
            truth,
        )
    return [
        Coverage(*key, float(np.mean([hit for hit, _ in own])),
                 float(np.nanmean([width for _, width in own])), studies)
        for key, own in sorted(found.items())
    ]  # fmt: skip


def table(rows: list[Coverage]) -> str:
    """Return the coverages as a Markdown table."""
    lines = ["| method | figure | n | coverage | mean width |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {row.method} | {row.figure} | {row.n} | {100 * row.coverage:.1f} % | {row.width:.3f} |"
        for row in rows
    ]
    return "\n".join(lines)


def _scores(
    common: NDArray[np.float64],
    target: NDArray[np.int64],
    generator: np.random.Generator,
    shift: float = SHIFT,
) -> NDArray[np.float64]:
    """Return scores (n, c): noise of variance 1, `SHARED` of it common, plus the shift."""
    own = generator.normal(size=common.shape)
    noise = np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * own
    noise[np.arange(len(target)), target] += shift
    return noise


def _areas(
    target: NDArray[np.int64], scores: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the class AUCs and the macro AUC (b, k) of each model in `scores` (n, models x c)."""
    count = len(SIZES)
    found = []
    for first in range(0, scores.shape[1], count):
        own = [
            auc(Binary(target == index, scores[:, first + index], weights))
            for index in range(count)
        ]
        found += [*own, np.mean(own, axis=0)]
    return np.stack(found, axis=1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--shift", type=float, default=SHIFT)
    print(table(coverages(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
