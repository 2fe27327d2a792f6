import warnings
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    mean_absolute_error,
    roc_auc_score,
)

from her2.metrics import selecting_metrics
from her2.metrics.__main__ import page
from her2.metrics.auc import auc, ranking_area
from her2.metrics.average_precision import average_precision
from her2.metrics.base import Binary, Classified
from her2.metrics.classes import balanced_accuracy, macro_f1
from her2.metrics.ordinal import ordinal_mae, quadratic_kappa
from her2.metrics.probability_scores import brier, log_loss

QUICK = settings(max_examples=80)
CLASSES = 4


@st.composite
def scored(draw: st.DrawFn, *, ties: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels of both classes, and scores with few distinct values, so that many are equal."""
    n = draw(st.integers(2, 30))
    positive = draw(hnp.arrays(bool, n))
    positive[0], positive[1] = True, False
    few = st.sampled_from([0.0, 1e-300, 0.1, 0.5, 0.5000001, 0.9, 1.0])
    many = st.floats(0, 1, allow_subnormal=False)
    return positive, draw(hnp.arrays(float, n, elements=few if ties else many))


@st.composite
def classified(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw true and predicted classes (every class occurs) and integer weights of at least 1."""
    n = draw(st.integers(CLASSES, 40))
    target = np.concatenate(
        [np.arange(CLASSES), draw(hnp.arrays(np.int64, n - CLASSES, elements=_class()))]
    )
    predicted = draw(hnp.arrays(np.int64, n, elements=_class()))
    return target, predicted, draw(hnp.arrays(np.int64, n, elements=st.integers(1, 4)))


def _class() -> st.SearchStrategy[int]:
    return st.integers(0, CLASSES - 1)


def ones(n: int) -> np.ndarray:
    return np.ones((1, n))


def auc_of(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return auc(Binary(positive, scores, weights))


def average_precision_of(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    return average_precision(Binary(positive, scores, weights))


def classified_as(
    target: np.ndarray, predicted: np.ndarray, weights: np.ndarray, classes: int = CLASSES
) -> Classified:
    return Classified(target, np.eye(classes)[predicted], weights)


@QUICK
@given(scored())
def test_auc_is_scikit_learns_on_ties(case: tuple[np.ndarray, np.ndarray]) -> None:
    positive, scores = case
    assert auc_of(positive, scores, ones(len(scores)))[0] == pytest.approx(
        roc_auc_score(positive, scores)
    )


@QUICK
@given(scored(ties=False))
def test_auc_is_scikit_learns_on_any_scores(case: tuple[np.ndarray, np.ndarray]) -> None:
    positive, scores = case
    assert auc_of(positive, scores, ones(len(scores)))[0] == pytest.approx(
        roc_auc_score(positive, scores)
    )


@QUICK
@given(scored(), st.data())
def test_weighted_auc_is_scikit_learns(
    case: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    positive, scores = case
    weights = data.draw(hnp.arrays(float, (3, len(scores)), elements=st.floats(0.25, 8, width=16)))
    expected = [roc_auc_score(positive, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(auc_of(positive, scores, weights), expected)


@QUICK
@given(scored(), st.data())
def test_weighted_average_precision_is_scikit_learns(
    case: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    positive, scores = case
    weights = data.draw(hnp.arrays(float, (3, len(scores)), elements=st.floats(0.25, 8, width=16)))
    weights[0] = 1
    expected = [average_precision_score(positive, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(average_precision_of(positive, scores, weights), expected)


@QUICK
@given(scored(ties=False))
def test_average_precision_is_scikit_learns_on_any_scores(
    case: tuple[np.ndarray, np.ndarray],
) -> None:
    positive, scores = case
    assert average_precision_of(positive, scores, ones(len(scores)))[0] == pytest.approx(
        average_precision_score(positive, scores)
    )


@QUICK
@given(scored())
def test_a_monotone_map_of_the_scores_changes_no_area(case: tuple[np.ndarray, np.ndarray]) -> None:
    positive, scores = case
    ranks = np.unique(scores, return_inverse=True)[1]
    for mapped in (ranks * 3.0 - 7, np.exp(ranks / 4.0), np.cbrt(ranks)):
        for figure in (auc_of, average_precision_of):
            assert figure(positive, mapped, ones(len(scores)))[0] == pytest.approx(
                figure(positive, scores, ones(len(scores)))[0]
            )


@QUICK
@given(scored())
def test_the_complement_of_the_classes_has_the_complement_of_the_auc(
    case: tuple[np.ndarray, np.ndarray],
) -> None:
    positive, scores = case
    there, back = (auc_of(side, scores, ones(len(scores)))[0] for side in (positive, ~positive))
    assert there + back == pytest.approx(1)


@QUICK
@given(scored(), st.data())
def test_a_row_of_weight_three_counts_as_three_rows(
    case: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    positive, scores = case
    times = data.draw(hnp.arrays(np.int64, len(scores), elements=st.integers(0, 4)))
    times[:2] = np.maximum(times[:2], 1)  # one of each class stays
    repeated = np.repeat(np.arange(len(scores)), times)
    assert auc_of(positive, scores, times[None].astype(float))[0] == pytest.approx(
        auc_of(positive[repeated], scores[repeated], ones(len(repeated)))[0]
    )


@QUICK
@given(scored(), st.randoms(use_true_random=False))
def test_auc_does_not_know_the_order_of_rows(
    case: tuple[np.ndarray, np.ndarray], random: Random
) -> None:
    positive, scores = case
    order = np.arange(len(scores))
    random.shuffle(order)
    assert auc_of(positive[order], scores[order], ones(len(order)))[0] == pytest.approx(
        auc_of(positive, scores, ones(len(order)))[0]
    )


def test_auc_of_equal_scores_is_one_half() -> None:
    assert auc_of(np.array([True, False, False]), np.full(3, 0.25), ones(3))[0] == 0.5


def test_auc_without_positives_or_negatives_is_nan_and_warns_of_nothing() -> None:
    weights = np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = auc_of(np.array([True, False, False]), np.array([0.9, 0.1, 0.5]), weights)
    np.testing.assert_array_equal(found, [1.0, np.nan, np.nan])


@QUICK
@given(classified())
def test_the_confusion_matrix_is_scikit_learns(
    case: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    target, predicted, weights = case
    labels = list(range(CLASSES))
    both = np.stack([np.ones(len(target)), weights])
    found = classified_as(target, predicted, both).matrices
    np.testing.assert_array_equal(found[0], confusion_matrix(target, predicted, labels=labels))
    np.testing.assert_array_equal(
        found[1], confusion_matrix(target, predicted, labels=labels, sample_weight=weights)
    )


@QUICK
@given(classified())
def test_balanced_accuracy_is_scikit_learns(
    case: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    target, predicted, weights = case
    both = np.stack([np.ones(len(target)), weights])
    expected = [balanced_accuracy_score(target, predicted, sample_weight=row) for row in both]
    np.testing.assert_allclose(balanced_accuracy(classified_as(target, predicted, both)), expected)


@QUICK
@given(classified())
def test_quadratic_kappa_is_scikit_learns(
    case: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    target, predicted, weights = case
    labels = list(range(CLASSES))
    both = np.stack([np.ones(len(target)), weights])
    expected = [
        cohen_kappa_score(target, predicted, labels=labels, weights="quadratic", sample_weight=row)
        for row in both
    ]
    np.testing.assert_allclose(
        quadratic_kappa(classified_as(target, predicted, both)), expected, atol=1e-12
    )


@QUICK
@given(classified())
def test_macro_f1_is_scikit_learns(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    target, predicted, weights = case
    both = np.stack([np.ones(len(target)), weights])
    expected = [f1_score(target, predicted, average="macro", sample_weight=row) for row in both]
    np.testing.assert_allclose(macro_f1(classified_as(target, predicted, both)), expected)


@QUICK
@given(classified())
def test_ordinal_mae_is_scikit_learns(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    target, predicted, weights = case
    both = np.stack([np.ones(len(target)), weights])
    expected = [mean_absolute_error(target, predicted, sample_weight=row) for row in both]
    np.testing.assert_allclose(ordinal_mae(classified_as(target, predicted, both)), expected)


@QUICK
@given(classified(), st.integers(0, 2**31))
def test_brier_and_log_loss_are_the_formula_and_scikit_learns(
    case: tuple[np.ndarray, np.ndarray, np.ndarray], seed: int
) -> None:
    target, predicted, weights = case
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(CLASSES), len(target))
    probabilities[0] = np.eye(CLASSES)[predicted[0]]  # surely right, or surely wrong
    both = np.stack([np.ones(len(target)), weights])
    labels = list(range(CLASSES))
    expected = [
        metrics.log_loss(target, probabilities, labels=labels, sample_weight=w) for w in both
    ]
    np.testing.assert_allclose(log_loss(Classified(target, probabilities, both)), expected)
    terms = [
        sum((row[c] - (c == true)) ** 2 for c in labels)
        for row, true in zip(probabilities, target, strict=True)
    ]
    np.testing.assert_allclose(
        brier(Classified(target, probabilities, both)),
        [np.average(terms, weights=w) for w in both],
    )


def test_kappa_counts_a_far_miss_more_than_a_near_one() -> None:
    target = np.array([0, 1, 2, 3])
    near, far = np.array([1, 1, 2, 3]), np.array([3, 1, 2, 3])
    kappa = [quadratic_kappa(classified_as(target, p, ones(4)))[0] for p in (target, near, far)]
    assert kappa[0] == 1.0
    assert kappa[0] > kappa[1] > kappa[2]


def test_figures_of_an_absent_class_are_nan_and_never_one_half() -> None:
    target, predicted = np.array([0, 0, 1]), np.array([0, 1, 1])
    assert np.isnan(balanced_accuracy(classified_as(target, predicted, ones(3), classes=3))[0])
    only = np.zeros(3, np.int64)
    assert np.isnan(quadratic_kappa(classified_as(only, only, ones(3), classes=3))[0])
    assert np.isnan(macro_f1(classified_as(target, predicted, ones(3), classes=3))[0])
    for figure in (auc_of, average_precision_of):
        assert np.isnan(figure(np.array([True] * 3), np.arange(3.0), ones(3))[0])


def test_the_page_of_metrics_is_made_from_the_declarations() -> None:
    """`python -m her2.metrics > docs/metrics.md` renews it."""
    assert (Path(__file__).parents[2] / "docs" / "metrics.md").read_text() == page()


# Figures that choose an epoch


@pytest.mark.parametrize("ties", [True, False])
def test_the_area_of_a_ranking_is_that_of_scikit_learn_to_the_last_bit(ties: bool):
    @QUICK
    @given(scored(ties=ties))
    def check(rows: tuple[np.ndarray, np.ndarray]) -> None:
        positive, scores = rows
        assert ranking_area(positive, scores) == roc_auc_score(positive, scores)

    check()


@QUICK
@given(classified())
def test_the_kappa_that_chooses_an_epoch_is_that_of_scikit_learn_to_the_last_bit(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
):
    target, predicted, _ = rows
    found = selecting_metrics()["quadratic_kappa"][1].compute(
        Classified(target, np.eye(CLASSES)[predicted], ones(len(target)))
    )
    assert found == cohen_kappa_score(target, predicted, weights="quadratic")
