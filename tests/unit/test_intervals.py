"""Intervals and p values of AUCs: their formulas, and what has none, with the reason."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, t

from benchmarks.coverage import pooled_estimates, sites
from benchmarks.studies import class_estimates, cross_validated, held, patients, places
from her2.core.types import Bools, Floats, Ints
from her2.evaluation.areas import Area, class_area, combined, macro_area
from her2.evaluation.intervals import (
    ASSUMED_FACTOR,
    ASSUMED_MISPLACED,
    LEAST_COMPARED,
    SHARED_BY_DIFFERENCES,
    Estimate,
    added_reach,
    area_estimate,
    difference_estimate,
    mean_estimate,
    newcombe,
    newcombe_variance,
    spread,
    trained_variance,
    useless,
)

QUICK = settings(max_examples=50)


def fixed_set(positive: Bools, scores: Floats) -> Area:
    """The AUC on one fixed test set, a row per patient."""
    both = np.stack([-scores, scores], axis=-1)[None, None]
    return class_area(held(positive.astype(int), both, np.zeros((1, 1, len(scores)), int)), 1)


def moderate(*, folds: int = 1, rounds: int = 1, seed: int = 0) -> Area:
    """An AUC of about 0.76 with 20 patients against 30."""
    generator = np.random.default_rng(seed)
    target = np.repeat([1, 0], (20, 30))
    scores = generator.normal(size=50) + target
    both = np.repeat(np.stack([-scores, scores], axis=-1)[None, None], rounds, axis=1)
    place = places(target, (1, rounds), generator) if folds > 1 else np.zeros((1, rounds, 50), int)
    return class_area(held(target, both, place), 1)


def separated(up: int, down: int) -> Area:
    """An AUC of 1."""
    return fixed_set(np.arange(up + down) < up, -np.arange(up + down, dtype=float))


def test_a_limit_is_where_newcombes_variance_times_the_factor_reaches_the_value() -> None:
    area = moderate()
    sides = [area.influence[0, area.groups == group] for group in (0, 1)]
    parts = [len(own) * own.var(ddof=1) for own in sides]
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(own) - 1) for part, own in zip(parts, sides, strict=True)
    )
    assert spread(area) == pytest.approx((sum(parts), freedom))
    value = area.value
    seen = sum(parts) / newcombe_variance(value, 20, 30)
    misplaced = 12 * (1 - value)  # 20 x 30 / 50
    mean = (misplaced * seen + ASSUMED_MISPLACED * ASSUMED_FACTOR) / (misplaced + ASSUMED_MISPLACED)
    found = area_estimate(area, 0.95)
    for limit, factor in ((found.low, mean), (found.high, max(mean, seen))):
        reach = norm.ppf(0.975) * math.sqrt(factor * newcombe_variance(limit, 20, 30))
        assert abs(limit - value) == pytest.approx(reach)
    assert found.low < value < found.high
    assert (found.value, found.note) == (value, "")


@pytest.mark.parametrize(("level", "part"), [(0.3, 1), (0.5, 1), (0.75, 0.5), (0.9, 0.2), (1, 0)])
def test_models_are_useless_at_chance_and_below_and_not_at_all_at_an_auc_of_1(
    level: float, part: float
) -> None:
    assert useless(level) == pytest.approx(part)


def test_shared_patients_double_the_variance_of_useless_models_in_several_folds() -> None:
    area = moderate(folds=5)
    assert trained_variance(area, 1.0) == pytest.approx(2 * spread(area)[0])
    assert trained_variance(area, 0.0) == pytest.approx(spread(area)[0])
    assert trained_variance(replace(area, folds=1), 1.0) == pytest.approx(spread(area)[0])


def test_the_interval_of_several_folds_is_wider_by_what_patients_share() -> None:
    area = moderate(folds=5)
    shared = useless(area.value) ** 2
    alone = replace(area, folds=1, influence=math.sqrt(1 + shared) * area.influence)
    found, expected = (area_estimate(one, 0.95) for one in (area, alone))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def with_rounds(area: Area, *influence: Floats) -> Area:
    """The AUC with rounds of the same value, each with its influence."""
    rounds = np.full(len(influence), area.rounds[0])
    return replace(area, rounds=rounds, levels=rounds, influence=np.stack(influence))


def test_repeats_that_agree_do_not_change_the_variance() -> None:
    area = moderate(folds=5)
    found = with_rounds(area, *[area.influence[0]] * 10)
    for shared in (0.0, 0.3, 1.0):
        assert trained_variance(found, shared) == pytest.approx(trained_variance(area, shared))


def test_repeats_never_narrow_the_variance_below_that_of_one_round() -> None:
    """Of two rounds, one has all of the variance: its mean over the rounds is 1/4 of that."""
    area = moderate(folds=5)
    own = area.influence[0]
    found = with_rounds(area, own, np.zeros_like(own))
    assert spread(found)[0] == pytest.approx(spread(area)[0] / 4)
    assert trained_variance(found, 1.0) == pytest.approx(spread(area)[0] / 2)


def test_seeds_on_one_fixed_test_set_have_delongs_variance_of_their_mean() -> None:
    area = moderate(rounds=1)
    twice = replace(
        area,
        rounds=np.repeat(area.rounds, 2),
        levels=np.repeat(area.rounds, 2),
        influence=np.concatenate([area.influence, 3 * area.influence]),
    )
    assert spread(twice)[0] == pytest.approx(4 * spread(area)[0])


def test_the_range_is_that_of_the_rounds() -> None:
    area = moderate(folds=5, rounds=4)
    found = area_estimate(area, 0.95)
    assert (found.lowest, found.highest) == (area.rounds.min(), area.rounds.max())
    assert found.lowest < found.value < found.highest


@pytest.mark.parametrize(("value", "first", "second"), [(0.7, 12, 36), (0.9, 6, 90), (0.2, 50, 8)])
def test_newcombes_limits_are_where_his_standard_error_reaches_the_observed_value(
    value: float, first: int, second: int
) -> None:
    """Method 5: the root of |A - true| = z SE(true), Hanley and McNeil's SE with n* for m and n."""
    low, high = newcombe(value, first, second, 0.95)
    assert low < value < high
    for limit in (low, high):
        mean = (first + second) / 2
        extra = (mean - 1) * ((1 - limit) / (2 - limit) + limit / (1 + limit))
        error = math.sqrt(limit * (1 - limit) * (1 + extra) / (first * second))
        assert abs(value - limit) == pytest.approx(1.959964 * error, abs=1e-6)


@QUICK
@given(st.floats(0, 1), st.integers(2, 60), st.integers(2, 60))
def test_newcombes_interval_contains_the_value_and_mirrors(
    value: float, first: int, second: int
) -> None:
    low, high = newcombe(value, first, second, 0.95)
    assert 0 <= low <= value + 1e-9
    assert value - 1e-9 <= high <= 1
    other = newcombe(1 - value, first, second, 0.95)
    assert other == pytest.approx((1 - high, 1 - low), abs=1e-6)
    wider = newcombe(value, first, second, 0.99)
    assert wider[0] <= low + 1e-9


def test_newcombe_at_a_perfect_separation_narrows_with_more_patients() -> None:
    ends = [newcombe(1.0, n, n, 0.95) for n in (5, 20, 80)]
    assert [high for _, high in ends] == [1, 1, 1]
    lows = [low for low, _ in ends]
    assert lows == sorted(lows)
    assert 0.5 < lows[0] < 0.8 < lows[1] < 0.95 < lows[2]


def test_a_perfect_separation_has_newcombes_interval_with_the_assumed_factor() -> None:
    found = area_estimate(separated(10, 30), 0.95)
    assert (found.value, found.high) == (1, 1)
    variance = newcombe_variance(found.low, 10, 30)
    assert 1 - found.low == pytest.approx(norm.ppf(0.975) * math.sqrt(ASSUMED_FACTOR * variance))
    assert found.note == ""
    turned = area_estimate(separated(30, 10), 0.95)
    assert (turned.low, turned.high) == pytest.approx((found.low, found.high))


def test_an_auc_of_0_has_an_interval_from_0() -> None:
    found = area_estimate(fixed_set(np.arange(40) >= 10, -np.arange(40.0)), 0.95)
    assert (found.value, found.low) == (0, 0)
    assert 0 < found.high < 0.5


def in_folds(order: Ints, target: Ints, folds: int) -> Area:
    """The AUC of patients (n,) in ascending order of their scores."""
    scores = np.empty(len(target))
    scores[order] = np.arange(len(target))
    place = np.concatenate([np.arange(n) % folds for n in np.bincount(target)])
    both = np.stack([-scores, scores], axis=-1)[None, None]
    return class_area(held(target, both, place[None, None]), 1)


@pytest.mark.parametrize("one_patient", [False, True])
@pytest.mark.parametrize(
    ("down", "up", "folds"), [(36, 12, 5), (90, 6, 5), (30, 20, 1), (12, 40, 5), (20, 2, 1)]
)
def test_more_pairs_in_the_wrong_order_never_raise_the_lower_limit(
    down: int, up: int, folds: int, *, one_patient: bool
) -> None:
    """Wherever the next pair is: at random, or nearly always the same patient's."""
    generator = np.random.default_rng([down, one_patient])
    target = np.repeat([0, 1], (down, up))
    for _ in range(4):
        order = np.concatenate([generator.permutation(down), down + generator.permutation(up)])
        value = low = 1.0
        for _ in range(30):
            area = in_folds(order, target, folds)
            found = area_estimate(area, 0.95)
            assert found.low <= low + 1e-9
            assert (area.value < value) or found.low == low or value == 1
            value, low = area.value, found.low
            sorted_pairs = np.flatnonzero((target[order][:-1] == 0) & (target[order][1:] == 1))
            same = one_patient and generator.random() < 0.9
            at = sorted_pairs[0] if same else generator.choice(sorted_pairs)
            order[[at, at + 1]] = order[[at + 1, at]]


def test_an_interval_near_1_widens_step_by_step_with_pairs_in_the_wrong_order() -> None:
    """12 against 36 in five folds; on the logit scale the lower limits were 0.69, 0.63, 0.49."""
    target = np.repeat([0, 1], (36, 12))
    place = np.concatenate([np.arange(36) % 5, np.arange(12) % 5])
    found = []
    for wrong in (0, 1, 2, 4):
        scores = target.astype(float)
        # A patient of each class in each of the first folds: the two change places.
        scores[36 : 36 + wrong], scores[:wrong] = 0.4, 0.6
        both = np.stack([-scores, scores], axis=-1)[None, None]
        found.append(area_estimate(class_area(held(target, both, place[None, None]), 1), 0.95))
    assert [round(one.value, 3) for one in found] == [1.0, 0.989, 0.977, 0.954]
    assert [round(one.low, 2) for one in found] == [0.81, 0.80, 0.79, 0.77]
    widths = [one.high - one.low for one in found]
    assert widths == sorted(widths)


def test_a_patient_of_six_who_is_far_off_keeps_the_upper_limit_high() -> None:
    """The variance that was seen is not made smaller on the side of the nearer bound."""
    scores = np.r_[np.full(5, 2.0), -2.0, np.linspace(-1, 1, 90)]
    area = fixed_set(np.arange(96) < 6, scores)
    assert area.value == pytest.approx(5 / 6)
    seen = spread(area)[0] / newcombe_variance(area.value, 6, 90)
    assert seen > ASSUMED_FACTOR
    found = area_estimate(area, 0.95)
    assert found.high == pytest.approx(newcombe(area.value, 6, 90, 0.95, (seen, seen))[1])
    assert found.low > newcombe(area.value, 6, 90, 0.95, (seen, seen))[0]
    turned = area_estimate(fixed_set(np.arange(96) >= 6, scores), 0.95)
    assert (turned.low, turned.high) == pytest.approx((1 - found.high, 1 - found.low))


@pytest.mark.parametrize("up", [1, 19])
def test_a_side_of_1_patient_has_a_value_and_a_reason_for_no_interval(up: int) -> None:
    found = area_estimate(separated(up, 20 - up), 0.95)
    assert (found.value, found.note) == (1, "interval not defined: a side has 1 patient")
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_a_class_of_1_patient_gives_the_macro_auc_no_interval() -> None:
    target = np.array([0, 0, 0, 1, 1, 1, 2])
    scores = np.random.default_rng(0).random((1, 1, 7, 3))
    rows = held(target, scores, np.zeros((1, 1, 7), int))
    parts = [class_area(rows, index) for index in range(3)]
    found = mean_estimate(macro_area(rows, parts), parts, 0.95)
    assert 0 < found.value < 1
    assert math.isnan(found.low)
    assert found.note == "interval not defined: a class has 1 patient"


def test_constant_predictions_are_0_5_without_an_interval() -> None:
    area = fixed_set(np.arange(30) < 10, np.zeros(30))
    found = area_estimate(area, 0.95)
    assert (found.value, found.note) == (0.5, "interval not defined: the predictions do not vary")
    assert math.isnan(found.low)


def test_an_auc_without_pairs_keeps_its_reason() -> None:
    area = fixed_set(np.zeros(10, bool), np.arange(10.0))
    assert area.reason
    for found in (
        area_estimate(area, 0.95),
        mean_estimate(area, [area], 0.95),
        difference_estimate(area, 0.95),
    ):
        assert math.isnan(found.value)
        assert found.note == area.reason


def test_perfect_classes_have_a_macro_interval_narrower_than_their_own() -> None:
    """Four classes err less alike than four copies of one."""
    target = np.repeat(np.arange(4), 12)
    rows = held(target, np.eye(4)[target][None, None], np.zeros((1, 1, 48), int))
    parts = [class_area(rows, index) for index in range(4)]
    found = mean_estimate(macro_area(rows, parts), parts, 0.95)
    own = area_estimate(parts[0], 0.95)
    assert (found.value, found.high) == (1, 1)
    assert own.low < found.low < 1
    # Four equal reaches with a correlation of 1/3: (4 + 12 / 3) / 16 of the square of one.
    assert 1 - found.low == pytest.approx((1 - own.low) / math.sqrt(2))


def test_the_macro_auc_of_two_classes_has_the_interval_of_its_class() -> None:
    area = separated(10, 30)
    found = mean_estimate(area, [area, area], 0.95)
    own = area_estimate(area, 0.95)
    assert (found.low, found.high) == pytest.approx((own.low, own.high))


def test_the_macro_interval_adds_up_the_classes_by_their_correlations() -> None:
    generator = np.random.default_rng(3)
    target = np.repeat(np.arange(3), (20, 15, 10))
    scores = generator.normal(size=(1, 1, 45, 3)) + 1.5 * np.eye(3)[target]
    rows = held(target, scores, np.zeros((1, 1, 45), int))
    parts = [class_area(rows, index) for index in range(3)]
    area = macro_area(rows, parts)
    covariance = sum(
        size * np.cov(np.stack([part.influence[0, target == index] for part in parts]))
        for index, size in enumerate((20, 15, 10))
    )
    errors = np.sqrt(np.diag(covariance))
    correlations = covariance / np.outer(errors, errors)
    assert 0.01 < abs(correlations[0, 1]) < 0.9
    own = [area_estimate(part, 0.95) for part in parts]
    found = mean_estimate(area, parts, 0.95)
    for limit, reaches in (
        (found.low, [one.value - one.low for one in own]),
        (found.high, [one.high - one.value for one in own]),
    ):
        expected = math.sqrt(np.array(reaches) @ correlations @ reaches) / 3
        assert abs(limit - area.value) == pytest.approx(expected)


@QUICK
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0, 1))
def test_a_sum_reaches_between_the_root_of_squares_and_the_sum(
    reaches: list[float], correlation: float
) -> None:
    count = len(reaches)
    correlations = np.full((count, count), correlation) + (1 - correlation) * np.eye(count)
    found = added_reach(np.array(reaches), correlations)
    assert math.sqrt(sum(one**2 for one in reaches)) - 1e-9 <= found <= sum(reaches) + 1e-9


def test_the_weighted_mean_adds_the_limits_with_its_own_weights() -> None:
    """A class of weight 1 alone has its own interval."""
    area, other = separated(10, 30), separated(4, 36)
    found = mean_estimate(area, [area, other], 0.95, np.array([1.0, 0.0]))
    own = area_estimate(area, 0.95)
    assert found.low == pytest.approx(own.low)


def test_a_difference_has_students_interval_and_the_p_value_that_belongs_to_it() -> None:
    first, second = moderate(folds=5), moderate(folds=5, seed=1)
    area = combined([first, second], [1, -1], groups=first.groups)
    variance, freedom = spread(area)
    assert area.level == pytest.approx((first.value + second.value) / 2)
    shared = SHARED_BY_DIFFERENCES * useless(area.level)
    error = math.sqrt((1 + shared) * variance)
    found = difference_estimate(area, 0.95)
    assert found.p == pytest.approx(2 * t.sf(abs(area.value) / error, freedom))
    assert found.high - found.value == pytest.approx(t.ppf(0.975, freedom) * error)
    assert found.value - found.low == pytest.approx(found.high - found.value)
    # The interval at the confidence 1 - p ends at 0.
    edge = difference_estimate(area, 1 - found.p)
    assert min(abs(edge.low), abs(edge.high)) == pytest.approx(0, abs=1e-9)


def test_perfect_against_constant_predictions_has_no_interval_and_no_p_value() -> None:
    """No resample of the patients could change this difference of 0.5."""
    perfect, constant = separated(10, 30), fixed_set(np.arange(40) < 10, np.zeros(40))
    area = combined([perfect, constant], [1, -1], groups=perfect.groups)
    found = difference_estimate(area, 0.95)
    assert found.value == 0.5
    assert np.isnan([found.low, found.high, found.p]).all()
    assert found.note == "no interval or p value: the difference is the same for every patient"


def test_a_model_against_itself_has_no_p_value() -> None:
    area = moderate()
    found = difference_estimate(combined([area, area], [1, -1], groups=area.groups), 0.95)
    assert found.value == 0
    assert math.isnan(found.p)
    assert found.note


@pytest.mark.parametrize("fewest", [LEAST_COMPARED - 1, LEAST_COMPARED])
def test_fewer_than_5_patients_of_a_side_have_no_p_value(fewest: int) -> None:
    generator = np.random.default_rng(0)
    positive = np.arange(40) < fewest
    first, second = (fixed_set(positive, generator.random(40)) for _ in range(2))
    found = difference_estimate(combined([first, second], [1, -1], groups=first.groups), 0.95)
    assert math.isnan(found.p) == (fewest < 5)
    assert found.note == (
        "no interval or p value: fewer than 5 patients of a class or side" if fewest < 5 else ""
    )


def null_study(
    sizes: tuple[int, ...], repeats: int, seed: int, site: Ints | None
) -> tuple[Estimate, Estimate]:
    """Models of useless features: the macro AUC within folds, and that of pooled folds."""
    generator = np.random.default_rng(seed)
    target = np.repeat(np.arange(len(sizes)), sizes)
    made = patients(target, 0.0, generator.normal(size=(1, len(target), 6)))
    place = places(target, (1, repeats), generator) if site is None else site[None, None]
    models = cross_validated(target, made, place, 0.0, generator)
    within = class_estimates(held(target, models.scores, place), 1)[0][-1]
    return within, pooled_estimates(target, models.scores[0].mean(axis=0), seed)[-1]


@pytest.mark.parametrize(("seed", "value"), [(9, 0.137), (18, 0.161)])
def test_averaging_the_probabilities_of_ten_repeats_sharpens_what_means_nothing(
    seed: int, value: float
) -> None:
    """The two lowest of 200 null studies; the figure within folds is much nearer to 0.5."""
    within, pooled = null_study((24, 24), 10, seed, None)
    assert pooled.value == pytest.approx(value, abs=0.001)
    assert pooled.high < 0.35
    assert within.value > pooled.value + 0.1
    assert within.high > pooled.high + 0.1
    assert within.lowest < within.value < within.highest


def test_leaving_out_sites_does_not_push_a_null_study_below_half() -> None:
    """A fold's model learns that the class of the left-out site is rare; pooling counts that."""
    found = [null_study((12, 12, 12, 12), 1, seed, sites((12, 12, 12, 12))) for seed in range(40)]
    assert np.mean([pooled.high < 0.5 for _, pooled in found]) > 0.9
    assert np.mean([within.high < 0.5 for within, _ in found]) <= 0.1
    assert np.mean([pooled.value for _, pooled in found]) < 0.35
    # The standard error of this mean is 0.015.
    assert np.mean([within.value for within, _ in found]) == pytest.approx(0.5, abs=0.045)
