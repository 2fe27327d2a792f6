import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, t, ttest_ind

from her2.evaluation import bootstrap
from her2.evaluation.bootstrap import (
    bootstrapped,
    expansion,
    interval,
    unvarying,
    weight_blocks,
)
from her2.metrics.auc import auc
from her2.metrics.base import Binary, mean

QUICK = settings(max_examples=80)


def patient_weights(
    patients: np.ndarray, target: np.ndarray, *, resamples: int, seed: int
) -> np.ndarray:
    return np.concatenate(list(weight_blocks(patients, target, resamples=resamples, seed=seed)))


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """(patient of each row, class of each row): a patient has one class and 1 to 3 rows."""
    labels = np.array(draw(st.lists(st.integers(0, 3), min_size=1, max_size=15)))
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


def test_the_interval_of_large_groups_is_numpys_percentiles() -> None:
    values = np.random.default_rng(0).normal(size=999)
    large = (10**7, 10**7)
    assert interval(values, 0.95, large) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))
    assert interval(values, 0.8, large) == pytest.approx(tuple(np.percentile(values, [10, 90])))


def test_the_interval_of_few_patients_is_students() -> None:
    """For normal resamples of a mean it is Student's, wider by sqrt(n / (n - 1))."""
    n = 12
    values = norm.ppf((np.arange(200_000) + 0.5) / 200_000)  # resamples whose spread is 1
    low, high = interval(values, 0.95, (n,))
    reach = t.ppf(0.975, n - 1) * np.sqrt(n / (n - 1))
    assert (low, high) == pytest.approx((-reach, reach), rel=1e-3)


def test_two_groups_have_welchs_degrees_of_freedom() -> None:
    """They equal scipy's for two samples with exactly equal variances."""
    generator = np.random.default_rng(1)
    samples = [generator.normal(size=size) for size in (10, 90)]
    first, second = ((own - own.mean()) / own.std(ddof=1) for own in samples)
    assert expansion((10, 90))[1] == pytest.approx(ttest_ind(first, second, equal_var=False).df)


def test_resamples_that_are_all_the_same_are_told() -> None:
    assert unvarying(np.ones(50)) == "interval not defined: all resamples give the same value"
    assert unvarying(np.array([1.0, 0.99])) == ""
    assert unvarying(np.array([np.nan, np.nan])) == ""  # another reason, told elsewhere


def test_a_group_of_one_patient_has_no_interval() -> None:
    values = np.random.default_rng(0).normal(size=99)
    assert np.isnan(interval(values, 0.95, (1, 40))).all()


def test_one_undefined_resample_leaves_the_interval_undefined() -> None:
    assert np.isnan(interval(np.array([0.1, np.nan, 0.3]), 0.95, (9, 9))).all()


def test_the_draws_do_not_depend_on_how_they_are_cut_into_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    patients, target = np.repeat(np.arange(30), 2), np.repeat(np.arange(30) % 3, 2)
    whole = patient_weights(patients, target, resamples=50, seed=5)
    monkeypatch.setattr(bootstrap, "BLOCK_VALUES", 60 * 7)
    blocks = list(weight_blocks(patients, target, resamples=50, seed=5))
    assert [len(block) for block in blocks] == [7] * 7 + [1]
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_a_block_of_ten_thousand_slides_stays_small() -> None:
    patients = np.arange(10_000)
    blocks = weight_blocks(patients, patients % 4, resamples=2000, seed=1)
    assert next(blocks).nbytes <= 8 * bootstrap.BLOCK_VALUES


def test_the_first_of_the_bootstrapped_figures_is_that_of_all_rows() -> None:
    values, patients = np.arange(8.0), np.arange(8)
    found = bootstrapped(
        lambda weights: mean(values, weights)[:, None], patients, patients % 2, resamples=9, seed=1
    )
    weights = patient_weights(patients, patients % 2, resamples=9, seed=1)
    assert found.shape == (10, 1)
    np.testing.assert_allclose(found[:, 0], [3.5, *(weights @ values / 8)])


@pytest.mark.nightly
@pytest.mark.simulation
@pytest.mark.parametrize("n", [60, 200])
def test_pooled_intervals_cover_the_true_auc_in_about_95_of_100_studies(n: int) -> None:
    """500 studies of two normal distributions a standard deviation apart: AUC Phi(1 / sqrt 2)."""
    truth = norm.cdf(1 / np.sqrt(2))
    generator = np.random.default_rng(11)
    positive = np.arange(n) % 3 == 0
    covered = 0
    for study in range(500):
        scores = generator.normal(size=n) + positive
        draws = bootstrapped(
            lambda weights, s=scores: auc(Binary(positive, s, weights))[:, None],
            np.arange(n),
            positive.astype(int),
            resamples=1000,
            seed=study,
        )
        low, high = interval(draws[1:, 0], 0.95, (int(positive.sum()), int((~positive).sum())))
        covered += low <= truth <= high
    assert 0.92 <= covered / 500 <= 0.97
