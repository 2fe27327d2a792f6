import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import (
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    roc_auc_score,
)

from her2.evaluation.metrics import (
    auc,
    balanced_accuracy,
    confusion,
    interval,
    patient_weights,
    quadratic_kappa,
)

QUICK = settings(max_examples=80, deadline=None)
CLASSES = 4


@st.composite
def scored(draw: st.DrawFn, *, ties: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Labels with both classes, and scores; few distinct values, so that many are equal."""
    n = draw(st.integers(2, 30))
    positive = draw(hnp.arrays(bool, n))
    positive[0], positive[1] = True, False
    few = st.sampled_from([0.0, 1e-300, 0.1, 0.5, 0.5000001, 0.9, 1.0])
    many = st.floats(0, 1, allow_subnormal=False)
    return positive, draw(hnp.arrays(float, n, elements=few if ties else many))


@st.composite
def classified(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and predicted classes (every class is there) and whole-number weights, 1 or more."""
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


@QUICK
@given(scored())
def test_auc_is_scikit_learns_on_ties(case: tuple[np.ndarray, np.ndarray]) -> None:
    positive, scores = case
    assert auc(positive, scores, ones(len(scores)))[0] == pytest.approx(
        roc_auc_score(positive, scores)
    )


@QUICK
@given(scored(ties=False))
def test_auc_is_scikit_learns_on_any_scores(case: tuple[np.ndarray, np.ndarray]) -> None:
    positive, scores = case
    assert auc(positive, scores, ones(len(scores)))[0] == pytest.approx(
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
    np.testing.assert_allclose(auc(positive, scores, weights), expected)


@QUICK
@given(scored(), st.data())
def test_a_row_of_weight_three_counts_as_three_rows(
    case: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    positive, scores = case
    times = data.draw(hnp.arrays(np.int64, len(scores), elements=st.integers(0, 4)))
    times[:2] = np.maximum(times[:2], 1)  # one of each class stays
    repeated = np.repeat(np.arange(len(scores)), times)
    assert auc(positive, scores, times[None].astype(float))[0] == pytest.approx(
        auc(positive[repeated], scores[repeated], ones(len(repeated)))[0]
    )


@QUICK
@given(scored(), st.randoms(use_true_random=False))
def test_auc_does_not_know_the_order_of_rows(
    case: tuple[np.ndarray, np.ndarray], random: object
) -> None:
    positive, scores = case
    order = np.arange(len(scores))
    random.shuffle(order)
    assert auc(positive[order], scores[order], ones(len(order)))[0] == pytest.approx(
        auc(positive, scores, ones(len(order)))[0]
    )


def test_auc_of_equal_scores_is_one_half() -> None:
    assert auc(np.array([True, False, False]), np.full(3, 0.25), ones(3))[0] == 0.5


def test_auc_without_positives_or_negatives_is_nan_and_warns_of_nothing() -> None:
    weights = np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = auc(np.array([True, False, False]), np.array([0.9, 0.1, 0.5]), weights)
    np.testing.assert_array_equal(found, [1.0, np.nan, np.nan])


@QUICK
@given(classified())
def test_the_confusion_matrix_is_scikit_learns(
    case: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    target, predicted, weights = case
    labels = list(range(CLASSES))
    both = np.stack([np.ones(len(target)), weights])
    found = confusion(target, predicted, CLASSES, both)
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
    np.testing.assert_allclose(
        balanced_accuracy(confusion(target, predicted, CLASSES, both)), expected
    )


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
        quadratic_kappa(confusion(target, predicted, CLASSES, both)), expected, atol=1e-12
    )


def test_kappa_counts_a_far_miss_more_than_a_near_one() -> None:
    target = np.array([0, 1, 2, 3])
    near, far = np.array([1, 1, 2, 3]), np.array([3, 1, 2, 3])
    kappa = [quadratic_kappa(confusion(target, p, 4, ones(4)))[0] for p in (target, near, far)]
    assert kappa[0] == 1.0
    assert kappa[0] > kappa[1] > kappa[2]


def test_figures_of_an_absent_class_are_nan_and_never_one_half() -> None:
    target, predicted = np.array([0, 0, 1]), np.array([0, 1, 1])
    assert np.isnan(balanced_accuracy(confusion(target, predicted, 3, ones(3)))[0])
    only = np.zeros(3, np.int64)
    assert np.isnan(quadratic_kappa(confusion(only, only, 3, ones(3)))[0])


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """(patient of each row, class of each row): a patient has one class and 1 to 3 rows."""
    labels = np.array(draw(st.lists(_class(), min_size=1, max_size=15)))
    rows = draw(st.lists(st.integers(1, 3), min_size=len(labels), max_size=len(labels)))
    patients = np.repeat(np.arange(len(labels)), rows)
    patients = patients[draw(st.permutations(range(len(patients))))]
    return patients, labels[patients]


@QUICK
@given(cohorts())
def test_the_bootstrap_draws_patients_with_all_their_slides(
    case: tuple[np.ndarray, np.ndarray],
) -> None:
    patients, target = case
    weights = patient_weights(patients, target, resamples=20, seed=1)
    assert weights.shape == (20, len(patients))
    for patient in np.unique(patients):
        own = weights[:, patients == patient]
        assert (own == own[:, :1]).all()


@QUICK
@given(cohorts())
def test_each_resample_has_as_many_patients_of_a_class_as_the_cohort(
    case: tuple[np.ndarray, np.ndarray],
) -> None:
    patients, target = case
    weights = patient_weights(patients, target, resamples=20, seed=1)
    first = np.unique(patients, return_index=True)[1]  # one row a patient
    for label in np.unique(target):
        of_class = first[target[first] == label]
        assert (weights[:, of_class].sum(axis=1) == len(of_class)).all()


def test_the_bootstrap_draws_with_replacement_and_by_its_seed() -> None:
    patients = np.arange(6)
    target = np.array([0, 0, 0, 1, 1, 1])
    draws = patient_weights(patients, target, resamples=4000, seed=3)
    np.testing.assert_array_equal(draws, patient_weights(patients, target, resamples=4000, seed=3))
    assert (draws != patient_weights(patients, target, resamples=4000, seed=4)).any()
    # A patient of three is drawn binomially: 3 trials of 1/3 each.
    assert draws.mean(axis=0) == pytest.approx(np.ones(6), abs=0.06)
    assert (draws == 0).mean() == pytest.approx((2 / 3) ** 3, abs=0.02)
    assert (draws == 3).mean() == pytest.approx((1 / 3) ** 3, abs=0.01)


def test_the_interval_is_numpys_percentiles() -> None:
    values = np.random.default_rng(0).normal(size=999)
    assert interval(values, 0.95) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))
    assert interval(values, 0.8) == pytest.approx(tuple(np.percentile(values, [10, 90])))


def test_one_undefined_resample_leaves_the_interval_undefined() -> None:
    assert np.isnan(interval(np.array([0.1, np.nan, 0.3]), 0.95)).all()
