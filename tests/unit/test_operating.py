"""Operating points and decision curves: thresholds from tuning sets, counts from test sets."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import confusion_matrix
from statsmodels.stats.proportion import proportion_confint

from her2.config import EvaluationSection
from her2.evaluation.decision_curves import THRESHOLDS, decision_table, net_benefit
from her2.evaluation.operating_points import operating_table, threshold
from her2.evaluation.predictions import out_of_fold
from tests.unit.prediction_makers import SCORE, predictions

SECTION = EvaluationSection(bootstrap=100)
GROUPING = "0/1+ vs 2+/3+"


def row(table: pl.DataFrame, fixed: str, level: str = "patient", name: str = GROUPING) -> dict:
    found = operating_table(table, SCORE, SECTION, level=level)
    return found.row(
        by_predicate=(pl.col("fixed") == fixed) & (pl.col("grouping") == name), named=True
    )


def score(table: pl.DataFrame) -> np.ndarray:
    return (table["prob_2+"] + table["prob_3+"]).to_numpy()


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
    wilson = proportion_confint(tp, tp + fn, method="wilson")
    assert (found["sensitivity_low"], found["sensitivity_high"]) == pytest.approx(wilson)
    assert found["note"] == ""


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
    found = operating_table(predictions(tuned=False), SCORE, SECTION, level="patient")
    assert found["sensitivity"].null_count() == len(found) == 6
    assert all("test sets of r0f0, r0f1" in note for note in found["note"])


def test_a_side_that_was_not_tested_has_no_rate() -> None:
    table = predictions().filter((pl.col("role") == "tune") | (pl.col("target") < 2))
    found = row(table, "specificity")
    assert found["sensitivity"] is None
    assert found["specificity"] is not None
    assert found["note"] == "sensitivity not defined: no patient on the positive side"


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
