"""Intervals contain the true AUC, and tests err, as often as they say (docs/coverage.md).

Of 200 studies 95 % are 190, give or take 3.1; so limits of a few studies here are wide.
"""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from benchmarks import cohorts, coverage
from benchmarks.coverage import COMPARED, LEARNERS, NULL_SIZES, PARTS, SIZES, STRENGTHS, sites
from benchmarks.studies import SHAPES, cross_validated, held, patients, places, shaped, split
from her2.evaluation.areas import class_area

SEED = 11
FEW, MANY = 100, 500
TRUTHS = (0.6, 0.75, 0.9, 0.97)


# The simulation itself.


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_of_each_shape_have_the_auc_that_they_are_made_for(shape: str, truth: float) -> None:
    scores = shaped(shape, truth, (40_000, 40_000), 1, np.random.default_rng(0))[0]
    # The standard error is below 0.002.
    assert roc_auc_score(np.repeat([1, 0], 40_000), scores) == pytest.approx(truth, abs=0.008)


def test_the_true_auc_of_a_model_is_that_of_many_new_patients() -> None:
    """Trained again by scikit-learn on the patients that the model saw, and tested on new ones."""
    target = np.repeat(np.arange(4), (12, 10, 8, 6))
    generator = np.random.default_rng(1)
    made = patients(target, 1.5, generator.normal(size=(1, 36, 7)))
    place = places(target, (1, 1), generator)
    models = cross_validated(target, made, place, 1.5, np.random.default_rng(2))
    again = np.random.default_rng(2)
    new = np.repeat(target, 1000)
    unseen = patients(new, 1.5, generator.normal(size=(1, len(new), 7)))[0]
    found = []
    for fold in range(5):
        test = place[0, 0] == fold
        seen = ~test & (again.random((1, 36))[0] >= 1 / 8)
        ridge = Ridge(alpha=5.0).fit(made[0][seen], np.eye(4)[target[seen]])
        np.testing.assert_allclose(models.scores[0, 0][test], ridge.predict(made[0][test]))
        scores = ridge.predict(unseen)
        found.append([roc_auc_score(new == index, scores[:, index]) for index in range(4)])
    assert models.truth[0] == pytest.approx(np.mean(found, axis=0), abs=0.01)


def test_folds_of_a_simulated_study_are_stratified_and_differ_between_repeats() -> None:
    target = np.repeat(np.arange(4), (40, 30, 20, 10))
    place = places(target, (2, 3), np.random.default_rng(0))
    for fold in range(5):
        for index, size in enumerate((40, 30, 20, 10)):
            assert ((place == fold) & (target == index)).sum(axis=-1).tolist() == [
                [size // 5] * 3
            ] * 2
    assert len(np.unique(place.reshape(6, -1), axis=0)) == 6


def test_a_batch_gives_each_study_what_it_has_alone() -> None:
    generator = np.random.default_rng(0)
    target = np.repeat([0, 1], 15)
    scores, place = generator.random((3, 2, 30, 2)), places(target, (3, 2), generator)
    batch = split(class_area(held(target, scores, place), 1), 3)
    for study in range(3):
        alone = class_area(held(target, scores[study : study + 1], place[study : study + 1]), 1)
        np.testing.assert_allclose(batch[study].rounds, alone.rounds)
        np.testing.assert_allclose(batch[study].influence, alone.influence)


def test_sites_have_every_class_and_most_of_one() -> None:
    target, site = np.repeat(np.arange(4), 12), sites((12, 12, 12, 12))
    counts = np.array([[((site == s) & (target == c)).sum() for c in range(4)] for s in range(4)])
    assert counts.tolist() == (np.ones((4, 4), int) + 8 * np.eye(4, dtype=int)).tolist()


def test_the_corrected_t_test_is_that_of_nadeau_and_bengio() -> None:
    """Their statistic with J = 15 and a test set of 1/5, worked by hand: t = 2.7815."""
    differences = np.arange(15.0)
    statistic = 7 / np.sqrt((1 / 15 + 0.25) * 20)
    assert statistic == pytest.approx(2.7815, abs=1e-3)
    # Student's two-sided 2 % and 1 % points with 14 degrees of freedom are 2.624 and 2.977.
    assert 0.01 < coverage.corrected_p(differences, 5) < 0.02


# In small.


@pytest.mark.parametrize(("shape", "truth"), [("normal", 0.75), ("skewed", 0.9), ("mixture", 0.97)])
def test_intervals_of_given_scores_cover_in_small(shape: str, truth: float) -> None:
    found, alone = coverage.fixed(shape, truth, 10, 1, FEW, SEED)
    assert found.covered >= 0.88
    assert found.covered >= alone.covered - 0.02


def test_intervals_of_trained_models_cover_in_small_and_pooled_ones_do_not() -> None:
    sizes = SIZES["40/30/20/10"]
    found = coverage.trained(sizes, 60, 1.2, 1, FEW, SEED)
    assert min(one.covered for one in found.within) >= 0.88
    assert abs(found.within[-1].bias) < 0.02
    by_site = coverage.trained(sizes, 20, 0.0, 1, 60, SEED, pooled=30, by_site=True)
    assert by_site.within[-1].below_half <= 0.1
    assert by_site.pooled[-1].below_half >= 0.5


def test_two_equally_good_encoders_seldom_differ_in_small() -> None:
    found = coverage.compared(COMPARED[48], (1.0, 1.0), 5, FEW, SEED)
    assert found.rejected <= 0.12
    assert found.covered == pytest.approx(1 - found.rejected, abs=0.011)
    assert coverage.compared(COMPARED[200], (1.7, 1.0), 1, 20, SEED).rejected >= 0.8


@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_two_cohorts_with_the_same_scores_seldom_differ_in_small(shape: str) -> None:
    """Of 300 studies 95 % are 285, give or take 3.8."""
    for sizes in (cohorts.ALIKE["100 / 50"], cohorts.ALIKE["400 / 260"]):
        assert 0.92 <= cohorts.alike(shape, 0.75, sizes, 300, SEED)[0] <= 0.99


def test_single_models_are_as_good_elsewhere_and_their_mean_is_better() -> None:
    sizes = cohorts.SIZES["40/30/20/10 / 24/18/12/6"]
    found = cohorts.across(sizes, 60, 1.2, 1, FEW, SEED)
    assert found.gain > 0.02
    assert min(*found.single, *found.mean) >= 0.9


@pytest.mark.parametrize("part", PARTS)
def test_each_part_prints_a_table(
    part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["coverage.py", "--part", part, "--studies", "2"])
    monkeypatch.setattr(coverage, "SIZES", {"4 x 12": (12, 12, 12, 12)})
    monkeypatch.setattr(coverage, "NULL_SIZES", {"4 x 12": (12, 12, 12, 12)})
    monkeypatch.setattr(coverage, "COMPARED", {48: (12, 12, 12, 12)})
    monkeypatch.setattr(coverage, "SHAPES", ("normal",))
    monkeypatch.setattr(coverage, "RESAMPLES", 10)
    monkeypatch.setattr(cohorts, "SHAPES", ("normal",))
    monkeypatch.setattr(cohorts, "SIZES", {"4 x 12 / 4 x 6": ((12,) * 4, (6,) * 4)})
    coverage.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) >= 4
    assert len({line.count("|") for line in lines}) == 1


# The tables, with limits that allow for 500 studies (a standard error of 1 % at 95 %).


@pytest.mark.nightly
@pytest.mark.simulation
@pytest.mark.parametrize("size", [6, 10, 20, 40])
@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_intervals_of_given_scores_cover_92_to_100_percent(
    shape: str, truth: float, size: int
) -> None:
    for repeats in (1, 5):
        assert coverage.fixed(shape, truth, size, repeats, MANY, SEED)[0].covered >= 0.92


@pytest.mark.nightly
@pytest.mark.simulation
@pytest.mark.parametrize("slides", [1, 3])
@pytest.mark.parametrize("sizes", SIZES)
def test_intervals_of_four_classes_cover_at_both_levels(sizes: str, slides: int) -> None:
    for shift in (0.4, 1.0, 2.0, 2.7):
        for repeats in (1, 5):
            found = coverage.classes(SIZES[sizes], shift, repeats, MANY, SEED, slides=slides)
            assert min(one.covered for one in found) >= 0.92


@pytest.mark.nightly
@pytest.mark.simulation
@pytest.mark.parametrize("repeats", [1, 5])
@pytest.mark.parametrize(
    ("learner", "strength"), [(one, s) for one in LEARNERS for s in STRENGTHS[one]]
)
@pytest.mark.parametrize("sizes", SIZES)
def test_intervals_of_trained_models_cover_their_true_auc(
    sizes: str, learner: str, strength: float, repeats: int
) -> None:
    found = coverage.trained(SIZES[sizes], LEARNERS[learner], strength, repeats, MANY, SEED)
    assert min(one.covered for one in found.within) >= 0.92
    # 98 %, and two of its standard errors.
    assert max(one.covered for one in found.within) <= 0.98 + 2 * 0.0063
    assert abs(found.within[-1].bias) <= 0.01


@pytest.mark.nightly
@pytest.mark.simulation
@pytest.mark.parametrize(
    ("sizes", "repeats", "by_site"),
    [
        *((sizes, repeats, False) for sizes in NULL_SIZES for repeats in (1, 10)),
        *((sizes, 1, True) for sizes in SIZES),
    ],
)
def test_useless_features_are_below_half_in_at_most_4_percent(
    sizes: str, repeats: int, by_site: bool
) -> None:
    few = LEARNERS["few features"]
    found = coverage.trained(NULL_SIZES[sizes], few, 0.0, repeats, MANY, SEED, by_site=by_site)
    # 4 %, and two of its standard errors.
    assert found.within[-1].below_half <= 0.04 + 2 * 0.0088


@pytest.mark.nightly
@pytest.mark.simulation
@pytest.mark.parametrize("repeats", [1, 5])
@pytest.mark.parametrize("n", COMPARED)
def test_two_equally_good_encoders_differ_in_3_to_7_and_a_half_percent(
    n: int, repeats: int
) -> None:
    for strength in (0.0, 1.0, 2.0):
        found = coverage.compared(COMPARED[n], (strength, strength), repeats, MANY, SEED)
        # 3 and 7.5 %, and two of their standard errors.
        assert 0.03 - 2 * 0.0076 <= found.rejected <= 0.075 + 2 * 0.0118


@pytest.mark.nightly
@pytest.mark.simulation
def test_the_truth_of_four_classes_is_the_auc_of_many_patients() -> None:
    found = coverage.classes((2000,) * 4, 1.0, 1, 1, SEED)
    assert found[-1].bias == pytest.approx(0, abs=0.01)
    assert norm.cdf(1 / np.sqrt(2)) == pytest.approx(0.76, abs=0.001)


@pytest.mark.nightly
@pytest.mark.simulation
@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_intervals_of_two_cohorts_difference_cover_92_to_100_percent(
    shape: str, truth: float
) -> None:
    for sizes in cohorts.ALIKE.values():
        assert cohorts.alike(shape, truth, sizes, MANY, SEED)[0] >= 0.92


@pytest.mark.nightly
@pytest.mark.simulation
@pytest.mark.parametrize("repeats", [1, 5])
@pytest.mark.parametrize("learner", cohorts.LEARNERS)
@pytest.mark.parametrize("sizes", cohorts.SIZES)
def test_intervals_of_trained_models_cover_their_change_elsewhere(
    sizes: str, learner: str, repeats: int
) -> None:
    features, strengths = cohorts.LEARNERS[learner]
    for strength in strengths:
        found = cohorts.across(cohorts.SIZES[sizes], features, strength, repeats, MANY, SEED)
        assert min(*found.single, *found.mean) >= 0.92
