"""Operating points and decision curves: thresholds from tuning sets, counts from test sets."""

import time

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import confusion_matrix
from statsmodels.stats.proportion import proportion_confint

from her2.config import EvaluationSection, parse_config
from her2.core.errors import UserError
from her2.evaluation.bootstrap import weight_blocks
from her2.evaluation.decision_curves import THRESHOLDS, decision_table, net_benefit
from her2.evaluation.groupings import side_missing
from her2.evaluation.operating_points import operating_table
from her2.evaluation.predictions import out_of_fold
from her2.evaluation.shares import predictive_value, ratio_limits, wilson
from her2.evaluation.thresholds import Applied, Choices, choice_variances
from tests.unit.prediction_makers import SCORE, predictions

SECTION = EvaluationSection(bootstrap=100)
GROUPING = "0/1+ vs 2+/3+"


def row(table: pl.DataFrame, fixed: str, level: str = "patient", name: str = GROUPING) -> dict:
    found = operating_table(table, SCORE, SECTION, level=level, seed=1)
    return found.row(
        by_predicate=(pl.col("fixed") == fixed) & (pl.col("grouping") == name), named=True
    )


def score(table: pl.DataFrame) -> np.ndarray:
    return (table["prob_2+"] + table["prob_3+"]).to_numpy()


def threshold(positive: np.ndarray, scores: np.ndarray, fixed: str, asked: float) -> float:
    return Choices.of(positive, scores).threshold(fixed, asked)


@st.composite
def tuned(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, float]:
    n = draw(st.integers(2, 25))
    positive = draw(hnp.arrays(bool, n))
    positive[:2] = [True, False]
    scores = draw(hnp.arrays(float, n, elements=st.sampled_from([0, 0.1, 0.3, 0.5, 0.8, 1.0])))
    return positive, scores, draw(st.sampled_from([0.5, 0.8, 0.9, 0.95]))


@settings(max_examples=100)
@given(tuned())
def test_a_threshold_holds_what_was_asked_and_gives_the_most_of_the_other(
    case: tuple[np.ndarray, np.ndarray, float],
) -> None:
    positive, scores, asked = case
    candidates = np.unique([*scores, np.nextafter(scores.max(), 2)])
    rates = {
        at: ((scores[positive] >= at).mean(), (scores[~positive] < at).mean()) for at in candidates
    }
    at = threshold(positive, scores, "specificity", asked)
    legal = {at: rate for at, rate in rates.items() if rate[1] >= asked}
    assert at in legal
    assert legal[at][0] == max(rate[0] for rate in legal.values())
    at = threshold(positive, scores, "sensitivity", asked)
    legal = {at: rate for at, rate in rates.items() if rate[0] >= asked}
    assert at in legal
    assert legal[at][1] == max(rate[1] for rate in legal.values())


def test_thresholds_come_from_the_tuning_set_and_counts_from_the_test_set() -> None:
    table = predictions(160)
    counts, thresholds = np.zeros((2, 2)), []
    for fold in range(4):
        parts = {
            role: table.filter((pl.col("fold") == fold) & (pl.col("role") == role))
            for role in ("tune", "test")
        }
        at = threshold(parts["tune"]["target"].to_numpy() >= 2, score(parts["tune"]),
                       "specificity", 0.9)  # fmt: skip
        thresholds.append(at)
        counts += confusion_matrix(
            parts["test"]["target"].to_numpy() >= 2, score(parts["test"]) >= at
        )
    (tn, fp), (fn, tp) = counts
    found = row(table, "specificity")
    assert found["asked"] == 0.9
    assert found["sensitivity"] == pytest.approx(tp / (tp + fn))
    assert found["specificity"] == pytest.approx(tn / (tn + fp))
    assert found["ppv"] == pytest.approx(tp / (tp + fp))
    assert found["npv"] == pytest.approx(tn / (tn + fn))
    assert (found["n_positive"], found["n_negative"]) == (tp + fn, tn + fp)
    assert (found["threshold_min"], found["threshold_max"]) == (min(thresholds), max(thresholds))
    for name, hits, n in (
        ("sensitivity", tp, tp + fn), ("specificity", tn, tn + fp),
        ("ppv", tp, tp + fp), ("npv", tn, tn + fn),
    ):  # fmt: skip
        low, high = proportion_confint(hits, n, method="wilson")
        assert found[f"{name}_low"] < low < high < found[f"{name}_high"]
    assert found["note"] == ""
    assert found["stated_ppv"] is None


def test_what_is_asked_is_met_on_the_tuning_set_itself() -> None:
    """With a test set that copies the tuning set, the required figure is met exactly."""
    table = predictions(160).filter(pl.col("role") == "tune")
    copied = pl.concat([table, table.with_columns(role=pl.lit("test"))])
    assert row(copied, "specificity")["specificity"] >= 0.9
    assert row(copied, "sensitivity")["sensitivity"] >= 0.9


def test_other_test_predictions_leave_the_thresholds_alone() -> None:
    table = predictions()
    other = table.with_columns(
        pl.when(pl.col("role") == "test").then(pl.lit(0.25)).otherwise(name).alias(name)
        for name in (f"prob_{one}" for one in SCORE.class_names)
    )
    for column in ("threshold_min", "threshold_max"):
        assert row(table, "specificity")[column] == row(other, "specificity")[column]


def test_repeats_and_slides_add_no_patients_to_the_interval() -> None:
    """Repeating the same predictions changes neither the rates nor the number of patients."""
    table = predictions(80)
    again = table.with_columns(repeat=pl.lit(1, pl.Int32))
    twin = table.with_columns(slide_id=pl.col("slide_id") + "-twin")
    once = row(table, "specificity")
    assert row(pl.concat([table, again]), "specificity") == pytest.approx(once)
    assert row(pl.concat([table, twin]), "specificity") == pytest.approx(once)
    by_slide = row(pl.concat([table, twin]), "specificity", level="slide")
    assert by_slide["n_positive"] == 2 * once["n_positive"]
    for name in ("sensitivity", "sensitivity_low", "sensitivity_high"):
        assert by_slide[name] == pytest.approx(once[name])


def test_a_fold_whose_tuning_set_lacks_a_side_is_left_out_and_named() -> None:
    table = predictions().filter(
        (pl.col("fold") != 2) | (pl.col("role") == "test") | (pl.col("target") < 2)
    )
    found = row(table, "sensitivity")
    assert found["note"].startswith("test sets of r0f2 left out: no threshold")
    tested = table.filter((pl.col("role") == "test") & (pl.col("fold") != 2))
    assert found["n_positive"] + found["n_negative"] == len(tested)


def test_without_a_tuning_set_there_is_no_operating_point() -> None:
    found = operating_table(predictions(tuned=False), SCORE, SECTION, level="patient", seed=1)
    assert found["sensitivity"].null_count() == len(found) == 6
    assert all("test sets of r0f0, r0f1" in note for note in found["note"])


def test_a_side_that_was_not_tested_has_no_rate() -> None:
    table = predictions().filter((pl.col("role") == "tune") | (pl.col("target") < 2))
    found = row(table, "specificity")
    assert found["sensitivity"] is None
    assert found["specificity"] is not None
    assert found["note"] == "sensitivity not defined: no patient on the positive side"


# The choice of a threshold, in resamples


@settings(max_examples=100)
@given(tuned(), st.sampled_from(["specificity", "sensitivity"]), st.data())
def test_a_resample_has_the_threshold_of_its_own_rows(
    case: tuple[np.ndarray, np.ndarray, float], fixed: str, data: st.DataObject
) -> None:
    """A weight counts like as many copies of the row, also where it is 0."""
    positive, scores, asked = case
    weights = data.draw(hnp.arrays(int, len(scores), elements=st.integers(0, 3)))
    found = Choices.of(positive, scores).choose(weights[None].astype(float), fixed, asked)[0]
    copies = np.repeat(np.arange(len(scores)), weights)
    if side_missing(positive[copies]):
        assert found == -1
        return
    at = Choices.of(positive, scores).thresholds[found]
    assert at == threshold(positive[copies], scores[copies], fixed, asked)


def study(
    seed: int, patients: int = 100, folds: int = 5
) -> tuple[np.ndarray, np.ndarray, list[Applied]]:
    """Return sides, calls at a specificity of 0.9, and models that all score alike."""
    generator = np.random.default_rng(seed)
    positive = np.arange(patients) % 2 == 0
    scores = generator.normal(size=patients) + 1.2 * positive
    place = generator.permutation(patients // 2).repeat(2) % folds
    called, models = np.zeros(patients, bool), []
    for fold in range(folds):
        test, tune = place == fold, np.flatnonzero(place == (fold + 1) % folds)
        part = (positive[tune], scores[tune])
        called[test] = scores[test] >= threshold(*part, "specificity", 0.9)
        models.append(Applied.of((*part, tune), (positive[test], scores[test]), (0, 0)))
    return positive, called, models


def test_the_variance_of_a_choice_is_that_of_choosing_again() -> None:
    """Drawn by hand, with the patients of all tuning sets together, as copies of rows."""
    positive, _, models = study(3, patients=60)
    (weights,) = weight_blocks(np.arange(60), positive.astype(int), resamples=150, seed=4)
    rates = []
    for own in weights:
        hits, false = 0.0, 0.0
        for model in models:
            rows = np.empty(len(model.patients), int)
            rows[model.choices.order] = np.arange(len(rows))
            scores, side = model.choices.thresholds[1::2][rows], model.choices.positive[rows]
            copies = np.repeat(np.arange(len(rows)), own[model.patients].astype(int))
            if side_missing(side[copies]):
                hits = np.nan  # such a resample defines no rates
                break
            at = threshold(side[copies], scores[copies], "specificity", 0.9)
            index = model.choices.thresholds.tolist().index(at)
            hits += model.called[0][index]
            false += model.called[1][index]
        if not np.isnan(hits):
            rates.append((hits / 30, 1 - false / 30, hits / max(hits + false, 1)))
    found = choice_variances(
        models, positive.astype(int), "specificity", 0.9, resamples=150, seed=4
    )
    fewest = min(int((~model.choices.positive).sum()) for model in models)
    expected = np.var(rates, axis=0, ddof=1) * (fewest + 1) / (fewest - 1)
    assert found[:3] == pytest.approx(expected)


def test_an_interval_holds_what_the_procedure_gives_on_average() -> None:
    """Of 200 studies 190 at 95 % on average; Wilson's alone leaves the choice out."""
    studies = [study(seed) for seed in range(200)]
    truth = np.mean([called[positive].mean() for positive, called, _ in studies])
    covered = np.zeros(2)
    for positive, called, models in studies:
        added = choice_variances(
            models, positive.astype(int), "specificity", 0.9, resamples=100, seed=1
        )[0]
        for index, extra in enumerate((0.0, added)):
            low, high = wilson(called[positive].sum(), positive.sum(), 0.95, added=extra)
            covered[index] += low <= truth <= high
    assert covered[0] < 180
    assert covered[1] >= 182


def test_ten_thousand_patients_take_seconds() -> None:
    positive, _, models = study(0, patients=10_000)
    start = time.process_time()
    found = choice_variances(
        models, positive.astype(int), "specificity", 0.9, resamples=2000, seed=1
    )
    assert time.process_time() - start < 15
    assert (found > 0).all()


def test_a_tuning_set_with_one_patient_on_a_side_gives_no_interval() -> None:
    table = predictions(32, folds=8).filter((pl.col("role") == "test") | (pl.col("target") != 1))
    found = row(table, "sensitivity", name="0 vs 1+")
    assert found["threshold_min"] is None
    one = predictions(32, folds=8)
    found = row(one, "sensitivity", name="0/1+/2+ vs 3+")
    if found["sensitivity"] is not None:
        assert found["sensitivity_low"] is None
        assert "too few patients to choose their thresholds again" in found["note"]


def test_a_variance_that_is_added_is_that_of_fewer_trials() -> None:
    """As many as halve at equal variances: of 20 of 40, Wilson's interval is that of 10 of 20."""
    centre = (20 + 1.959964**2 / 2) / (40 + 1.959964**2)
    found = wilson(20, 40, 0.95, added=centre * (1 - centre) / 40)
    assert found == pytest.approx(proportion_confint(10, 20, method="wilson"), rel=1e-6)
    low, high = wilson(40, 40, 0.95, added=0.002)
    assert low < proportion_confint(40, 40, method="wilson")[0]
    assert high == 1


# Predictive values


def test_predictive_values_count_who_was_called() -> None:
    """A patient who was called in one of two repeats is half a patient, in the interval too."""
    table = predictions(120, repeats=2, signal=2.0)
    found = row(table, "specificity")
    pooled: dict[str, list[float]] = {}
    for repeat in range(2):
        for fold in range(4):
            own = table.filter((pl.col("repeat") == repeat) & (pl.col("fold") == fold))
            tune, test = (own.filter(pl.col("role") == role) for role in ("tune", "test"))
            at = threshold(tune["target"].to_numpy() >= 2, score(tune), "specificity", 0.9)
            for name, called in zip(test["patient_id"], score(test) >= at, strict=True):
                pooled.setdefault(name, []).append(float(called))
    labels = dict(table.select("patient_id", "target").unique().iter_rows())
    called = {name: np.mean(values) for name, values in pooled.items()}
    hits = sum(share for name, share in called.items() if labels[name] >= 2)
    assert found["ppv"] == pytest.approx(hits / sum(called.values()))
    misses = sum(1 - share for name, share in called.items() if labels[name] >= 2)
    assert found["npv"] == pytest.approx(1 - misses / (len(called) - sum(called.values())))
    low, high = proportion_confint(hits, sum(called.values()), method="wilson")
    assert found["ppv_low"] < low < high < found["ppv_high"]


def test_values_at_the_prevalence_of_the_study_are_those_of_its_counts() -> None:
    table = predictions(160, signal=2.0)
    stated = EvaluationSection(bootstrap=100, prevalence={GROUPING: 0.5})
    found = operating_table(table, SCORE, stated, level="patient", seed=1).row(
        by_predicate=(pl.col("grouping") == GROUPING) & (pl.col("fixed") == "specificity"),
        named=True,
    )
    assert found["stated_prevalence"] == 0.5
    for rate in ("ppv", "npv"):
        assert found[f"stated_{rate}"] == pytest.approx(found[rate])
        low, high = found[f"stated_{rate}_low"], found[f"stated_{rate}_high"]
        assert low < found[rate] < high
    others = operating_table(table, SCORE, stated, level="patient", seed=1).filter(
        pl.col("grouping") != GROUPING
    )
    assert others["stated_ppv"].null_count() == len(others) == 4


@given(st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.floats(0.01, 0.99))
def test_a_predictive_value_is_bayes_rule(hit: float, miss: float, prevalence: float) -> None:
    own, other = ((one, *wilson(60 * one, 60, 0.95)) for one in (hit, miss))
    value, low, high = predictive_value(own, other, prevalence)
    assert value == pytest.approx(hit * prevalence / (hit * prevalence + miss * (1 - prevalence)))
    assert 0 <= low < value < high <= 1


@given(st.floats(0.3, 0.9), st.floats(0.3, 0.9))
def test_the_interval_of_a_ratio_is_the_published_formula(one: float, two: float) -> None:
    """Newcombe 2016 (Donner and Zou 2012), as printed."""
    (l1, u1), (l2, u2) = (wilson(80 * value, 80, 0.95) for value in (one, two))
    low = (one * two - np.sqrt((one * two) ** 2 - l1 * u2 * (2 * one - l1) * (2 * two - u2))) / (
        u2 * (2 * two - u2)
    )
    high = (one * two + np.sqrt((one * two) ** 2 - u1 * l2 * (2 * one - u1) * (2 * two - l2))) / (
        l2 * (2 * two - l2)
    )
    assert ratio_limits((one, l1, u1), (two, l2, u2)) == pytest.approx((low, high), rel=1e-6)


def test_a_perfect_specificity_leaves_a_lower_limit() -> None:
    """Where no negative is called, the positive value is 1, but 100 negatives do not prove it."""
    value, low, high = predictive_value(
        (0.8, *wilson(40, 50, 0.95)), (0.0, *wilson(0, 100, 0.95)), 0.1
    )
    assert (value, high) == (1, 1)
    assert 0.5 < low < 0.8
    value, low, high = predictive_value((0.0, 0.0, 0.1), (0.0, 0.0, 0.1), 0.1)
    assert np.isnan(value)


def test_the_interval_at_a_prevalence_holds_the_truth() -> None:
    """Of 1,000 studies, 950 at 95 % on average; below 928 has a chance of 0.1 %."""
    generator, truth, covered = np.random.default_rng(2), (0.8, 0.9), 0
    expected = 0.8 * 0.15 / (0.8 * 0.15 + 0.1 * 0.85)
    for _ in range(1000):
        hit, false = generator.binomial(40, truth[0]), generator.binomial(80, 1 - truth[1])
        _, low, high = predictive_value(
            (hit / 40, *wilson(hit, 40, 0.95)), (false / 80, *wilson(false, 80, 0.95)), 0.15
        )
        covered += low <= expected <= high
    assert covered >= 928


def test_a_prevalence_of_a_grouping_that_no_task_has_is_refused() -> None:
    values = {
        "cohort": {"slides": "slides.csv"},
        "tasks": {"two": {"label": "her2", "classes": {"a": ["0"], "b": ["3"]}}},
        "encoders": {"e": {"source": "random", "model": "timm/resnet18", "mpp": 0.5, "size": 224}},
        "heads": {"abmil": {}},
    }
    kept = parse_config(values | {"evaluation": {"prevalence": {"a vs b": 0.2}}})
    assert kept.evaluation.prevalence == {"a vs b": 0.2}
    with pytest.raises(
        UserError, match=r"prevalence\.0 vs 1\+: no task has this grouping; .* a vs b"
    ):
        parse_config(values | {"evaluation": {"prevalence": {"0 vs 1+": 0.2}}})
    with pytest.raises(UserError, match=r"prevalence\.a vs b: 1\.0: must be less than 1"):
        parse_config(values | {"evaluation": {"prevalence": {"a vs b": 1.0}}})


def test_net_benefit_is_the_published_formula() -> None:
    """The formula of Vickers and Elkin 2006 is computed by hand for 4 patients."""
    positive = np.array([True, True, False, False])
    scores = np.array([0.9, 0.3, 0.6, 0.1])
    found = net_benefit(positive, scores, np.array([0.05, 0.25, 0.5, 0.95]))
    expected = [
        2 / 4 - 2 / 4 * 0.05 / 0.95,
        2 / 4 - 1 / 4 * 0.25 / 0.75,
        1 / 4 - 1 / 4 * 1,
        0,
    ]
    assert found == pytest.approx(expected)


def test_treating_all_depends_on_the_prevalence_alone() -> None:
    table = predictions(80)
    states = {"as predicted": (table, ""), "temperature": (None, "not defined")}
    found = decision_table(states, SCORE, SECTION, level="patient")
    assert set(found["state"]) == {"as predicted"}
    for name, prevalence in (("0/1+ vs 2+/3+", 0.5), ("0 vs 1+", 0.5), ("0/1+/2+ vs 3+", 0.25)):
        own = found.filter(pl.col("grouping") == name)
        assert own["threshold"].to_list() == pytest.approx([i / 100 for i in range(1, 100)])
        expected = prevalence - (1 - prevalence) * THRESHOLDS / (1 - THRESHOLDS)
        assert own["treat_all"].to_list() == pytest.approx(expected)
    pooled = out_of_fold(table, SCORE.class_names, by="patient_id")
    truth, called = pooled["target"].to_numpy() >= 2, score(pooled) >= 0.4
    benefit = (truth & called).mean() - (~truth & called).mean() * 0.4 / 0.6
    at = found.row(
        by_predicate=(pl.col("grouping") == GROUPING) & (pl.col("threshold") == 0.4), named=True
    )
    assert at["net_benefit"] == pytest.approx(benefit)


def test_a_grouping_that_lacks_a_side_has_no_curve() -> None:
    table = predictions().filter(pl.col("target") != 1)
    found = decision_table({"as predicted": (table, "")}, SCORE, SECTION, level="patient")
    assert "0 vs 1+" not in set(found["grouping"])
