"""The difference between two cohorts: independent samples, with an interval that holds."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from statsmodels.stats.proportion import confint_proportions_2indep

from her2.config import Task
from her2.evaluation.areas import Area, HeldOut, grouping_area
from her2.evaluation.external.internal import SMALLEST_P, independent_difference
from her2.evaluation.groupings import Grouping
from her2.evaluation.intervals import Estimate, area_estimate
from her2.evaluation.shares import wilson
from tests.unit.external_makers import one, world

TASK = Task(label="x", classes={"a": ["0"], "b": ["1"]})
BOTH = Grouping("a vs b", (0,), (1,))


def area_of(up: np.ndarray, down: np.ndarray) -> Area:
    """Return the AUC of one test set."""
    scores = norm.cdf(np.concatenate([down, up]))
    target = np.repeat([0, 1], [len(down), len(up)])
    rows = HeldOut(
        target=target,
        probabilities=np.stack([1 - scores, scores], axis=1),
        patients=np.arange(len(scores)),
        models=np.zeros(len(scores), int),
        rounds=np.zeros(1, int),
        folds=1,
        names=tuple(f"p{i:05d}" for i in range(len(scores))),
        classes=target,
    )
    return grouping_area(rows, BOTH)


def wald(value: float, error: float) -> Callable[[float], Estimate]:
    def at(confidence: float) -> Estimate:
        reach = norm.ppf((1 + confidence) / 2) * error
        return Estimate(value, value - reach, value + reach)

    return at


def test_of_symmetric_intervals_it_is_the_sum_of_the_variances() -> None:
    found = independent_difference(wald(0.8, 0.03), wald(0.7, 0.04), 0.95)
    reach = norm.ppf(0.975) * 0.05
    assert (found.value, found.low, found.high) == pytest.approx((-0.1, -0.1 - reach, -0.1 + reach))
    assert found.p == pytest.approx(2 * norm.sf(2), rel=1e-4)


def test_of_shares_with_wilson_s_intervals_it_is_newcombe_s_method() -> None:
    """statsmodels has the method of Newcombe (1998) for the difference of two proportions."""

    def share(count: int, total: int) -> Callable[[float], Estimate]:
        return lambda confidence: Estimate(count / total, *wilson(count, total, confidence))

    for first, second in (((56, 70), (48, 80)), ((10, 10), (0, 20)), ((5, 56), (0, 29))):
        found = independent_difference(share(*first), share(*second), 0.95)
        expected = confint_proportions_2indep(*second, *first, method="newcomb", compare="diff")
        assert (found.low, found.high) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    sizes=st.tuples(*[st.integers(5, 40)] * 4),
    gaps=st.tuples(*[st.floats(-1, 4)] * 2),
    confidence=st.sampled_from([0.8, 0.9, 0.95, 0.99]),
)
def test_p_is_small_just_where_the_interval_leaves_0_out(seed, sizes, gaps, confidence) -> None:
    generator = np.random.default_rng(seed)
    areas = [
        area_of(generator.normal(gap, 1, up), generator.normal(0, 1, down))
        for gap, up, down in zip(gaps, sizes[::2], sizes[1::2], strict=True)
    ]
    first, second = ((lambda level, own=own: area_estimate(own, level)) for own in areas)
    found = independent_difference(first, second, confidence)
    assert found.low <= found.value <= found.high
    if abs(found.p - (1 - confidence)) > 1e-5:
        assert (found.p < 1 - confidence) == (found.low > 0 or found.high < 0)
    back = independent_difference(second, first, confidence)
    assert (back.value, back.low, back.high) == pytest.approx(
        (-found.value, -found.high, -found.low)
    )
    assert back.p == pytest.approx(found.p, abs=1e-5)


def test_the_same_figure_twice_differs_by_nothing() -> None:
    found = independent_difference(wald(0.7, 0.05), wald(0.7, 0.05), 0.95)
    assert (found.value, found.p) == (0, 1)


def test_far_apart_p_is_the_smallest_and_not_0() -> None:
    assert independent_difference(wald(0.9, 0.001), wald(0.1, 0.001), 0.95).p == SMALLEST_P


def test_perfect_figures_have_an_interval_of_their_difference() -> None:
    perfect = area_of(np.full(10, 3.0), np.full(30, 0.0))

    def at(confidence: float) -> Estimate:
        return area_estimate(perfect, confidence)

    found = independent_difference(at, at, 0.95)
    assert found.low < 0 < found.high
    assert found.p == 1


def test_without_one_interval_there_is_none_of_the_difference() -> None:
    bare = independent_difference(lambda _: Estimate(0.6), wald(0.7, 0.05), 0.95)
    assert bare.value == pytest.approx(0.1)
    assert math.isnan(bare.low)
    assert math.isnan(bare.p)
    assert bare.note


def test_a_cohort_that_is_harder_shows_a_drop() -> None:
    own = world(200, signal=0.0)
    row = one(own.validated()["internal"], **{"class": "macro"})
    assert row["difference"] < 0
    assert row["high"] < 0
    assert row["p"] < 0.01
