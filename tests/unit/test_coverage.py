"""Intervals contain the true figure in about 95 of 100 studies, also for small classes."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.coverage import SIZES, TRUTH, Coverage, _scores, coverages, table

LOW, HIGH = 0.92, 0.97
FIGURES = [
    *((method, f"{kind}class {index}")
      for kind in ("", "difference, ")
      for method in ("bootstrap", "delong")
      for index in range(len(SIZES))),
    *(("bootstrap", f"slides, class {index}") for index in range(len(SIZES))),
    *(("bootstrap", f"{kind}macro") for kind in ("", "difference, ", "slides, ")),
]  # fmt: skip


@pytest.fixture(scope="module")
def simulated() -> list[Coverage]:
    return coverages(studies=500, resamples=1000, seed=11)


@pytest.mark.nightly
@pytest.mark.simulation
@pytest.mark.parametrize(
    ("method", "figure"),
    FIGURES,
)
def test_the_interval_covers_the_true_value_in_about_95_of_100_studies(
    simulated: list[Coverage], method: str, figure: str
) -> None:
    row = next(row for row in simulated if (row.method, row.figure) == (method, figure))
    assert row.studies == 500
    assert LOW <= row.coverage <= HIGH, f"{row}\n{table(simulated)}"


@pytest.mark.nightly
@pytest.mark.simulation
def test_the_truth_is_the_auc_of_a_million_patients() -> None:
    generator = np.random.default_rng(0)
    target = np.repeat(np.arange(len(SIZES)), 10_000 * np.array(SIZES))
    assert len(target) == 1_000_000
    scores = _scores(generator.normal(size=(len(target), len(SIZES))), target, generator)
    for index in range(len(SIZES)):
        # The standard error is below 0.0008 with 100,000 in the smallest class.
        assert roc_auc_score(target == index, scores[:, index]) == pytest.approx(TRUTH, abs=0.003)


@pytest.mark.nightly
@pytest.mark.simulation
def test_every_simulated_figure_is_judged(simulated: list[Coverage]) -> None:
    assert sorted((row.method, row.figure) for row in simulated) == sorted(FIGURES)
