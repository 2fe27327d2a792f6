"""AUCs over pairs of one test set, and their influences, agree with scikit-learn, DeLong and brute
force."""

import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from her2.evaluation.areas import (
    Area,
    HeldOut,
    area,
    class_area,
    combined,
    grouping_area,
    held_out,
    macro_area,
)
from her2.evaluation.groupings import Grouping
from her2.evaluation.intervals import difference_estimate, spread
from tests.unit.prediction_makers import SCORE, predictions

QUICK = settings(max_examples=60)
FEW = st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0])

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
PRINTED = {  # area, standard error
    "albumin": (0.7366, 0.0927),
    "kg": (0.7258, 0.1028),
    "protein": (0.6478, 0.1000),
}
PRINTED_DIFFERENCES = {  # minus the K-G score: difference, standard error, p
    "albumin": (0.0108, 0.0953, 0.9102),
    "protein": (-0.0780, 0.1046, 0.4561),
}


def two_sided(
    positive: np.ndarray,
    scores: np.ndarray,
    *,
    models: np.ndarray | None = None,
    rounds: np.ndarray | None = None,
    patients: np.ndarray | None = None,
) -> Area:
    """The AUC of rows; one model, and each row a patient of its own, if not said."""
    n = len(positive)
    own = np.arange(n) if patients is None else patients
    of = np.zeros(n, np.int64) if models is None else models
    groups = np.zeros(int(own.max()) + 1, np.int64)
    groups[own] = positive
    each = np.zeros(int(of.max()) + 1, np.int64) if rounds is None else rounds
    rows = HeldOut(
        target=positive.astype(np.int64),
        probabilities=np.column_stack([-scores, scores]),
        patients=own,
        models=of,
        rounds=each,
        folds=int(np.bincount(each).max()),
        names=tuple(str(index) for index in range(len(groups))),
        classes=groups,
    )
    return area(rows, positive, scores, np.full(n, True), groups)


def by_definition(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas and covariance from all pairs, by equations 3 to 6 of DeLong's paper."""
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
        for i, j in itertools.product(range(len(scores)), repeat=2):
            products = (parts[i] - areas[i]) * (parts[j] - areas[j])
            total[i, j] += products.sum() / (n - 1) / n
    return areas, total


@st.composite
def studies(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """At least two rows of each side, and scores of two models with many ties."""
    n = draw(st.integers(4, 20))
    positive = draw(hnp.arrays(bool, n))
    positive[:4] = [True, True, False, False]
    return positive, draw(hnp.arrays(float, (2, n), elements=FEW))


@pytest.mark.parametrize("name", PRINTED)
def test_area_and_standard_error_are_those_that_sas_prints(name: str) -> None:
    value, error = PRINTED[name]
    found = two_sided(POSITIVE, SCORES[name])
    assert found.value == pytest.approx(value, abs=5e-5)
    assert np.sqrt(spread(found)[0]) == pytest.approx(error, abs=5e-5)


@pytest.mark.parametrize("name", PRINTED_DIFFERENCES)
def test_the_paired_difference_is_that_which_sas_prints(name: str) -> None:
    """SAS takes the normal distribution, the package Student's t: p agrees in its statistic."""
    value, error, p = PRINTED_DIFFERENCES[name]
    first, second = (two_sided(POSITIVE, SCORES[one]) for one in (name, "kg"))
    found = combined([first, second], [1, -1], groups=first.groups)
    assert found.value == pytest.approx(value, abs=6e-5)
    assert np.sqrt(spread(found)[0]) == pytest.approx(error, abs=5e-5)
    statistic = abs(found.value) / np.sqrt(spread(found)[0])
    assert 2 * norm.sf(statistic) == pytest.approx(p, abs=6e-5)
    assert difference_estimate(found, 0.95).p == pytest.approx(p, abs=0.01)


@QUICK
@given(studies())
def test_with_one_test_set_it_is_scikit_learns_auc_with_delongs_covariance(
    study: tuple[np.ndarray, np.ndarray],
) -> None:
    positive, scores = study
    values, covariance = by_definition(positive, scores)
    first, second = (two_sided(positive, row) for row in scores)
    assert first.value == pytest.approx(roc_auc_score(positive, scores[0]))
    assert [first.value, second.value] == pytest.approx(values.tolist())
    assert spread(first)[0] == pytest.approx(covariance[0, 0], abs=1e-12)
    gap = combined([first, second], [1, -1], groups=first.groups)
    expected = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert spread(gap)[0] == pytest.approx(expected, abs=1e-12)


@st.composite
def validations(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sides of patients, their folds in two repeats, scores, and slides of patients."""
    n = draw(st.integers(2, 8))
    positive = draw(hnp.arrays(bool, n))
    of = np.repeat(np.arange(n), draw(hnp.arrays(int, n, elements=st.integers(1, 3))))
    folds = draw(hnp.arrays(int, (2, n), elements=st.integers(0, 1)))
    scores = draw(hnp.arrays(float, (2, len(of)), elements=FEW))
    return positive, folds, scores, of


def brute(
    positive: np.ndarray, folds: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> float:
    """The weighted share of concordant pairs of one repeat, over pairs of the same fold."""
    won = met = 0.0
    for up, down in itertools.product(np.flatnonzero(positive), np.flatnonzero(~positive)):
        if folds[up] == folds[down]:
            weight = weights[up] * weights[down]
            met += weight
            won += weight * (
                float(scores[up] > scores[down]) + float(scores[up] == scores[down]) / 2
            )
    return won / met if met else np.nan


@QUICK
@given(validations())
def test_only_pairs_of_the_same_test_set_count_and_influence_is_the_derivative_by_weight(
    study: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    positive, folds, scores, of = study
    slides = len(of)
    found = two_sided(
        np.tile(positive[of], 2),
        scores.ravel(),
        models=np.concatenate([folds[0][of], 2 + folds[1][of]]),
        # Without rows a model has a round all the same.
        rounds=np.array([0, 0, 1, 1])[: 3 + int(folds[1].max())],
        patients=np.tile(of, 2),
    )
    for round_ in range(2):
        sides, fold = positive[of], folds[round_][of]
        expected = brute(sides, fold, scores[round_], np.ones(slides))
        assert found.rounds[round_] == pytest.approx(expected, nan_ok=True)
        if np.isnan(expected):
            assert not found.influence[round_].any()
            continue
        for patient in range(len(positive)):
            step = 1e-6
            ends = [
                brute(sides, fold, scores[round_], 1 + sign * step * (of == patient))
                for sign in (-1, 1)
            ]
            slope = (ends[1] - ends[0]) / (2 * step)
            assert found.influence[round_, patient] == pytest.approx(slope, abs=1e-6)
    assert found.influence.sum(axis=1) == pytest.approx([0, 0], abs=1e-9)
    assert bool(found.reason) == np.isnan(found.rounds).all()


def test_scores_that_differ_in_the_last_bit_are_ties() -> None:
    positive = np.array([True, False])
    scores = np.array([(0.1 + 0.2) / 3, 0.3 / 3])
    assert scores[0] != scores[1]
    assert two_sided(positive, scores).value == 0.5
    assert two_sided(positive, np.array([0.1 + 1e-9, 0.1])).value == 1


def test_folds_of_other_scales_are_not_compared() -> None:
    """Each fold is in perfect order; pooled, the order of the folds would decide."""
    positive = np.array([True, False, True, False])
    scores = np.array([0.9, 0.8, 0.2, 0.1])
    models = np.array([0, 0, 1, 1])
    assert two_sided(positive, scores, models=models).value == 1
    assert roc_auc_score(positive, scores) == 0.75


def test_a_fold_counts_by_its_pairs_and_one_without_a_side_not_at_all() -> None:
    positive = np.array([True, False, False, True, False, False])
    scores = np.array([0.5, 0.1, 0.9, 0.9, 0.1, 0.99])
    models = np.array([0, 0, 0, 1, 1, 2])
    found = two_sided(positive, scores, models=models)
    assert found.value == pytest.approx((1 + 0 + 1) / 3)
    assert found.influence[0, 5] == 0
    assert found.folds == 3


def test_without_any_pair_there_is_a_reason() -> None:
    scores = np.array([0.1, 0.2])
    apart = two_sided(np.array([True, False]), scores, models=np.array([0, 1]))
    assert np.isnan(apart.value)
    assert apart.reason == "not defined: no test set has patients of both sides"
    absent = two_sided(np.array([False, False]), scores)
    assert absent.reason == "not defined: no patient on the positive side"
    assert two_sided(np.array([True, True]), scores).reason.endswith("on the negative side")


def test_a_round_without_pairs_does_not_count_in_the_mean() -> None:
    found = two_sided(
        np.array([True, False, True, False]),
        np.array([0.9, 0.1, 0.9, 0.1]),
        models=np.array([0, 0, 1, 2]),
        rounds=np.array([0, 1, 1]),
        patients=np.array([0, 1, 0, 1]),
    )
    assert found.defined.tolist() == [True, False]
    assert found.value == 1


def test_repeats_are_averaged_after_their_aucs_not_before() -> None:
    """Probabilities of two repeats that contradict each other: 1 and 0 give 0.5."""
    found = two_sided(
        np.array([True, False] * 2),
        np.array([0.9, 0.1, 0.4, 0.45]),
        models=np.array([0, 0, 1, 1]),
        rounds=np.array([0, 1]),
        patients=np.array([0, 1, 0, 1]),
    )
    assert found.rounds.tolist() == [1, 0]
    assert found.value == 0.5


def test_slides_of_a_patient_share_one_influence() -> None:
    """Each slide twice changes neither the AUC nor its variance, unless slides were patients."""
    generator = np.random.default_rng(2)
    positive = np.arange(12) % 2 == 0
    scores = generator.normal(size=12)
    once = two_sided(positive, scores)
    twice = two_sided(np.tile(positive, 2), np.tile(scores, 2), patients=np.tile(np.arange(12), 2))
    assert twice.value == pytest.approx(once.value)
    np.testing.assert_allclose(twice.influence, once.influence)
    apart = two_sided(np.tile(positive, 2), np.tile(scores, 2))
    assert spread(apart)[0] < 0.6 * spread(once)[0]


def test_the_table_gives_the_mean_over_repeats_of_the_pairs_within_folds() -> None:
    table = predictions(48, slides=2, repeats=2)
    rows = held_out(table, SCORE, level="patient")
    tested = (
        table.filter(pl.col("role") == "test")
        .group_by("repeat", "fold", "patient_id")
        .agg(pl.col("target").first(), pl.col("prob_3+").mean())
    )
    expected = [
        brute(
            (part["target"] == 3).to_numpy(),
            part["fold"].to_numpy(),
            part["prob_3+"].to_numpy(),
            np.ones(len(part)),
        )
        for _, part in sorted(tested.group_by("repeat"))
    ]
    found = class_area(rows, 3)
    assert found.rounds == pytest.approx(expected)
    assert found.folds == 4
    assert found.sizes.tolist() == [36, 12]


def test_the_macro_auc_and_its_influence_are_the_means_over_the_classes() -> None:
    rows = held_out(predictions(48), SCORE, level="patient")
    parts = [class_area(rows, index) for index in range(4)]
    found = macro_area(rows, parts)
    assert found.value == pytest.approx(np.mean([part.value for part in parts]))
    np.testing.assert_allclose(found.influence, np.mean([p.influence for p in parts], axis=0))
    assert found.sizes.tolist() == [12, 12, 12, 12]


def test_a_grouping_of_some_classes_leaves_out_the_other_patients() -> None:
    rows = held_out(predictions(48), SCORE, level="patient")
    found = grouping_area(rows, Grouping("low", (0,), (1,)))
    assert found.sizes.tolist() == [12, 12]
    assert not found.influence[:, np.isin(rows.classes, (2, 3))].any()
    binary = grouping_area(rows, Grouping("all", (0, 1), (2, 3)))
    assert binary.sizes.tolist() == [24, 24]
