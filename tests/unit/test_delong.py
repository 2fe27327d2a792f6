"""DeLong's variance agrees with the paper's example as printed by SAS, and with its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import norm, rankdata
from sklearn.metrics import roc_auc_score

from her2.evaluation.delong import area_interval, compare_areas, covariance, ranks

QUICK = settings(max_examples=60)

# DeLong, DeLong and Clarke-Pearson 1988: albumin, total protein, K-G score of patients with ovarian
# cancer, and whether surgery did not help; those without a missing value, as in the SAS/STAT
# User's Guide (The LOGISTIC Procedure, "Comparing Receiver Operating Characteristic Curves").
TABLE = """
    3.0 5.8 10 0   3.2 6.3 5 1   3.9 6.8 3 1   2.8 4.8 6 0   3.2 5.8 3 1   0.9 4.0 5 0
    2.5 5.7 8 0    1.6 5.6 5 1   3.8 5.7 5 1   3.7 6.7 6 1   3.2 5.4 4 1   3.8 6.6 6 1
    4.1 6.6 5 1    3.6 5.7 5 1   4.3 7.0 4 1   3.6 6.7 4 0   2.3 4.4 6 1   4.2 7.6 4 0
    4.0 6.6 6 0    3.5 5.8 6 1   3.8 6.8 7 1   3.0 4.7 8 0   4.5 7.4 5 1   3.7 7.4 5 1
    3.1 6.6 6 1    4.1 8.2 6 1   4.3 7.0 5 1   4.3 6.5 4 1   3.2 5.1 5 1   2.6 4.7 6 1
    3.3 6.8 6 0    1.7 4.0 7 0   3.7 6.1 5 1   3.3 6.3 7 1   4.2 7.7 6 1   3.5 6.2 5 1
    2.9 5.7 9 0    2.1 4.8 7 1   2.8 6.2 8 0   4.0 7.0 7 1   3.3 5.7 6 1   3.7 6.9 5 1
    3.6 6.6 5 1
"""
OVARIAN = np.array(TABLE.split(), float).reshape(-1, 4)
POSITIVE = OVARIAN[:, 3] == 0  # SAS models popind 0
SCORES = {"albumin": -OVARIAN[:, 0], "protein": -OVARIAN[:, 1], "kg": OVARIAN[:, 2]}
PRINTED = {  # area, standard error, 95 % Wald limits
    "albumin": (0.7366, 0.0927, 0.5549, 0.9182),
    "kg": (0.7258, 0.1028, 0.5243, 0.9273),
    "protein": (0.6478, 0.1000, 0.4518, 0.8439),
}
PRINTED_DIFFERENCES = {  # minus the K-G score: difference, standard error, limits, p
    "albumin": (0.0108, 0.0953, -0.1761, 0.1976, 0.9102),
    "protein": (-0.0780, 0.1046, -0.2830, 0.1271, 0.4561),
}


@pytest.mark.parametrize("name", PRINTED)
def test_area_and_standard_error_are_those_that_sas_prints(name: str) -> None:
    area, error, low, high = PRINTED[name]
    areas, spread = covariance(POSITIVE, SCORES[name][None])
    found = float(np.sqrt(spread[0, 0]))
    assert float(areas[0]) == pytest.approx(area, abs=5e-5)
    assert found == pytest.approx(error, abs=5e-5)
    reach = norm.ppf(0.975) * found
    assert float(areas[0]) - reach == pytest.approx(low, abs=6e-5)
    assert float(areas[0]) + reach == pytest.approx(high, abs=6e-5)


@pytest.mark.parametrize("name", PRINTED_DIFFERENCES)
def test_the_paired_test_is_that_which_sas_prints(name: str) -> None:
    difference, error, low, high, p = PRINTED_DIFFERENCES[name]
    found = compare_areas(POSITIVE, SCORES[name], SCORES["kg"], 0.95)
    assert found.difference == pytest.approx(difference, abs=6e-5)
    assert found.low == pytest.approx(low, abs=6e-5)
    assert found.high == pytest.approx(high, abs=6e-5)
    assert found.p == pytest.approx(p, abs=6e-5)
    assert (found.high - found.low) / 2 / norm.ppf(0.975) == pytest.approx(error, abs=5e-5)


@pytest.mark.parametrize("name", PRINTED)
def test_the_interval_is_the_plain_one_carried_to_the_logit_scale(name: str) -> None:
    """By the delta method, the error of logit(A) is that of A divided by A (1 - A)."""
    area, low, high = area_interval(POSITIVE, SCORES[name], 0.95)
    _, spread = covariance(POSITIVE, SCORES[name][None])
    logits = [np.log(value / (1 - value)) for value in (low, area, high)]
    assert logits[1] - logits[0] == pytest.approx(logits[2] - logits[1])
    error = (logits[2] - logits[1]) / norm.ppf(0.975) * area * (1 - area)
    assert error == pytest.approx(float(np.sqrt(spread[0, 0])))


def by_definition(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute areas and covariance from all pairs, by equations 3 to 6 of the paper."""
    kernel = [
        [[1.0 if up > down else 0.5 if up == down else 0.0 for down in row[~positive]]
         for up in row[positive]]
        for row in scores
    ]  # fmt: skip
    pairs = np.array(kernel)  # (models, positives, negatives)
    areas = pairs.mean(axis=(1, 2))
    total = np.zeros((len(scores), len(scores)))
    for axis in (2, 1):
        parts = pairs.mean(axis=axis)  # structural components
        n = parts.shape[1]
        for i in range(len(scores)):
            for j in range(len(scores)):
                products = (parts[i] - areas[i]) * (parts[j] - areas[j])
                total[i, j] += products.sum() / (n - 1) / n
    return areas, total


@st.composite
def studies(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Draw at least two rows of each side, and scores of two models with many ties."""
    n = draw(st.integers(4, 20))
    positive = draw(hnp.arrays(bool, n))
    positive[:4] = [True, True, False, False]
    few = st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0])
    return positive, draw(hnp.arrays(float, (2, n), elements=few))


@QUICK
@given(studies())
def test_ranks_give_what_the_pairs_give(study: tuple[np.ndarray, np.ndarray]) -> None:
    positive, scores = study
    areas, spread = covariance(positive, scores)
    expected = by_definition(positive, scores)
    np.testing.assert_allclose(areas, expected[0])
    np.testing.assert_allclose(spread, expected[1], atol=1e-12)
    assert areas[0] == pytest.approx(roc_auc_score(positive, scores[0]))


@given(hnp.arrays(float, (3, 12), elements=st.sampled_from([-1.0, 0.0, 0.25, 0.5, 2.0])))
def test_equal_scores_share_their_mean_rank(scores: np.ndarray) -> None:
    np.testing.assert_array_equal(ranks(scores), rankdata(scores, axis=1))


@QUICK
@given(studies())
def test_the_other_side_as_positive_turns_the_difference_round(
    study: tuple[np.ndarray, np.ndarray],
) -> None:
    positive, (first, second) = study
    one, other = (compare_areas(side, first, second, 0.95) for side in (positive, ~positive))
    assert other.difference == pytest.approx(-one.difference)
    np.testing.assert_allclose(other.p, one.p)
    np.testing.assert_allclose((other.low, other.high), (-one.high, -one.low), atol=1e-12)


def test_a_perfect_separation_has_no_interval() -> None:
    positive = np.array([True, True, False, False])
    area, low, high = area_interval(positive, np.array([0.9, 0.8, 0.2, 0.1]), 0.95)
    assert area == 1
    assert np.isnan([low, high]).all()


def test_one_positive_or_none_has_no_variance() -> None:
    scores = np.array([[0.9, 0.1, 0.5]])
    areas, spread = covariance(np.array([True, False, False]), scores)
    assert areas[0] == 1
    assert np.isnan(spread).all()
    areas, spread = covariance(np.array([False] * 3), scores)
    assert np.isnan(areas).all()
    assert np.isnan(compare_areas(np.array([False] * 3), scores[0], scores[0], 0.95).p)


def test_the_same_order_twice_does_not_differ() -> None:
    found = compare_areas(POSITIVE, SCORES["kg"], SCORES["kg"] * 3 - 1, 0.95)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
