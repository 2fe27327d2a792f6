import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import norm, t, ttest_ind
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    log_loss,
    mean_absolute_error,
    roc_auc_score,
)

from her2.evaluation import metrics
from her2.evaluation.delong import area_interval
from her2.evaluation.metrics import (
    auc,
    average_precision,
    balanced_accuracy,
    bootstrapped,
    confusion,
    expansion,
    interval,
    log_losses,
    macro_f1,
    mean,
    ordinal_mae,
    quadratic_kappa,
    squared_errors,
    two_sided,
    unvarying,
    weight_blocks,
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
def test_weighted_average_precision_is_scikit_learns(
    case: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    positive, scores = case
    weights = data.draw(hnp.arrays(float, (3, len(scores)), elements=st.floats(0.25, 8, width=16)))
    weights[0] = 1
    expected = [average_precision_score(positive, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(average_precision(positive, scores, weights), expected)


@QUICK
@given(scored(ties=False))
def test_average_precision_is_scikit_learns_on_any_scores(
    case: tuple[np.ndarray, np.ndarray],
) -> None:
    positive, scores = case
    assert average_precision(positive, scores, ones(len(scores)))[0] == pytest.approx(
        average_precision_score(positive, scores)
    )


@QUICK
@given(scored())
def test_a_monotone_map_of_the_scores_changes_no_area(case: tuple[np.ndarray, np.ndarray]) -> None:
    positive, scores = case
    ranks = np.unique(scores, return_inverse=True)[1]
    for mapped in (ranks * 3.0 - 7, np.exp(ranks / 4.0), np.cbrt(ranks)):
        for figure in (auc, average_precision):
            assert figure(positive, mapped, ones(len(scores)))[0] == pytest.approx(
                figure(positive, scores, ones(len(scores)))[0]
            )


@QUICK
@given(scored())
def test_the_complement_of_the_classes_has_the_complement_of_the_auc(
    case: tuple[np.ndarray, np.ndarray],
) -> None:
    positive, scores = case
    there, back = (auc(side, scores, ones(len(scores)))[0] for side in (positive, ~positive))
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


@QUICK
@given(classified())
def test_macro_f1_is_scikit_learns(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    target, predicted, weights = case
    both = np.stack([np.ones(len(target)), weights])
    expected = [f1_score(target, predicted, average="macro", sample_weight=row) for row in both]
    np.testing.assert_allclose(macro_f1(confusion(target, predicted, CLASSES, both)), expected)


@QUICK
@given(classified())
def test_ordinal_mae_is_scikit_learns(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    target, predicted, weights = case
    both = np.stack([np.ones(len(target)), weights])
    expected = [mean_absolute_error(target, predicted, sample_weight=row) for row in both]
    np.testing.assert_allclose(ordinal_mae(confusion(target, predicted, CLASSES, both)), expected)


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
    expected = [log_loss(target, probabilities, labels=labels, sample_weight=w) for w in both]
    np.testing.assert_allclose(mean(log_losses(target, probabilities), both), expected)
    terms = [
        sum((row[c] - (c == true)) ** 2 for c in labels)
        for row, true in zip(probabilities, target, strict=True)
    ]
    np.testing.assert_allclose(
        mean(squared_errors(target, probabilities), both),
        [np.average(terms, weights=w) for w in both],
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
    assert np.isnan(macro_f1(confusion(target, predicted, 3, ones(3)))[0])
    for figure in (auc, average_precision):
        assert np.isnan(figure(np.array([True] * 3), np.arange(3.0), ones(3))[0])


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """(patient of each row, class of each row): a patient has one class and 1 to 3 rows."""
    labels = np.array(draw(st.lists(_class(), min_size=1, max_size=15)))
    rows = draw(st.lists(st.integers(1, 3), min_size=len(labels), max_size=len(labels)))
    patients = np.repeat(np.arange(len(labels)), rows)
    patients = patients[draw(st.permutations(range(len(patients))))]
    return patients, labels[patients]


def patient_weights(
    patients: np.ndarray, target: np.ndarray, *, resamples: int, seed: int
) -> np.ndarray:
    """The blocks together: (resamples, n)."""
    return np.concatenate(list(weight_blocks(patients, target, resamples=resamples, seed=seed)))


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


def test_the_interval_of_large_groups_is_numpys_percentiles() -> None:
    values = np.random.default_rng(0).normal(size=999)
    large = (10**7, 10**7)
    assert interval(values, 0.95, large) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))
    assert interval(values, 0.8, large) == pytest.approx(tuple(np.percentile(values, [10, 90])))


def test_the_interval_of_few_patients_is_students() -> None:
    """Of normal resamples of a mean: Student's, and wider by sqrt(n / (n - 1))."""
    n = 12
    values = norm.ppf((np.arange(200_000) + 0.5) / 200_000)  # resamples whose spread is 1
    low, high = interval(values, 0.95, (n,))
    reach = t.ppf(0.975, n - 1) * np.sqrt(n / (n - 1))
    assert (low, high) == pytest.approx((-reach, reach), rel=1e-3)


def test_two_groups_have_welchs_degrees_of_freedom() -> None:
    """Those that scipy gives two samples whose variances are equal to the last bit."""
    generator = np.random.default_rng(1)
    samples = [generator.normal(size=size) for size in (10, 90)]
    first, second = ((own - own.mean()) / own.std(ddof=1) for own in samples)
    assert expansion((10, 90))[1] == pytest.approx(ttest_ind(first, second, equal_var=False).df)


def test_p_and_interval_agree_on_zero() -> None:
    generator = np.random.default_rng(2)
    for shift in np.linspace(0, 3.5, 40):
        values = generator.normal(loc=shift, size=1999)
        low, high = interval(values, 0.95, (15, 40))
        p = two_sided(values, (15, 40))
        if abs(p - 0.05) > 0.004:
            assert (low <= 0 <= high) == (p > 0.05)


def test_resamples_that_are_all_the_same_are_told() -> None:
    assert unvarying(np.ones(50)) == "interval not defined: every resample gives the same"
    assert unvarying(np.array([1.0, 0.99])) == ""
    assert unvarying(np.array([np.nan, np.nan])) == ""  # another reason, told elsewhere


def test_a_group_of_one_patient_has_no_interval() -> None:
    values = np.random.default_rng(0).normal(size=99)
    assert np.isnan(interval(values, 0.95, (1, 40))).all()
    assert np.isnan(two_sided(values, (1, 40)))


def test_one_undefined_resample_leaves_the_interval_undefined() -> None:
    assert np.isnan(interval(np.array([0.1, np.nan, 0.3]), 0.95, (9, 9))).all()


def test_the_draws_do_not_depend_on_how_they_are_cut_into_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    patients, target = np.repeat(np.arange(30), 2), np.repeat(np.arange(30) % 3, 2)
    whole = patient_weights(patients, target, resamples=50, seed=5)
    monkeypatch.setattr(metrics, "BLOCK_VALUES", 60 * 7)
    blocks = list(weight_blocks(patients, target, resamples=50, seed=5))
    assert [len(block) for block in blocks] == [7] * 7 + [1]
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_a_block_of_ten_thousand_slides_stays_small() -> None:
    patients = np.arange(10_000)
    blocks = weight_blocks(patients, patients % 4, resamples=2000, seed=1)
    assert next(blocks).nbytes <= 8 * metrics.BLOCK_VALUES


def test_the_first_of_the_bootstrapped_figures_is_that_of_all_rows() -> None:
    values, patients = np.arange(8.0), np.arange(8)
    found = bootstrapped(
        lambda weights: mean(values, weights)[:, None], patients, patients % 2, resamples=9, seed=1
    )
    weights = patient_weights(patients, patients % 2, resamples=9, seed=1)
    assert found.shape == (10, 1)
    np.testing.assert_allclose(found[:, 0], [3.5, *(weights @ values / 8)])


@pytest.mark.slow
@pytest.mark.parametrize("n", [60, 200])
def test_both_intervals_cover_the_true_auc_in_about_95_of_100_studies(n: int) -> None:
    """500 studies of two normal distributions a standard deviation apart: AUC Phi(1 / sqrt 2)."""
    truth = norm.cdf(1 / np.sqrt(2))
    generator = np.random.default_rng(11)
    positive = np.arange(n) % 3 == 0
    covered = {"bootstrap": 0, "delong": 0}
    for study in range(500):
        scores = generator.normal(size=n) + positive
        draws = bootstrapped(
            lambda weights, s=scores: auc(positive, s, weights)[:, None],
            np.arange(n),
            positive.astype(int),
            resamples=1000,
            seed=study,
        )
        low, high = interval(draws[1:, 0], 0.95, (int(positive.sum()), int((~positive).sum())))
        covered["bootstrap"] += low <= truth <= high
        _, low, high = area_interval(positive, scores, 0.95)
        covered["delong"] += low <= truth <= high
    print({name: count / 500 for name, count in covered.items()})
    for name, count in covered.items():
        assert 0.92 <= count / 500 <= 0.97, (name, count)
