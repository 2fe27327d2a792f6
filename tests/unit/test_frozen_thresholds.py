"""A frozen model has the mean of the thresholds that its folds chose in development."""

import numpy as np
import polars as pl
import pytest

from her2.config import EvaluationSection
from her2.evaluation.temperature import fit_temperatures
from her2.frozen.thresholds import fold_thresholds, frozen_thresholds
from tests.unit.prediction_makers import SCORE, predictions

SECTION = EvaluationSection(specificity=0.85, sensitivity=0.75)
POSITIVE = ["2+", "3+"]
GROUPING = "0/1+ vs 2+/3+"


def tuning_scores(
    table: pl.DataFrame, temperatures: pl.DataFrame, fold: int, level: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return calibrated scores of the grouping in a fold's tuning set, and the sides."""
    rows = table.filter(fold=fold, role="tune")
    (temperature,) = temperatures.filter(run=f"r0f{fold}")["temperature"]
    columns = [f"prob_{name}" for name in SCORE.class_names]
    powers = np.log(rows.select(columns).to_numpy()) / temperature
    scaled = np.exp(powers) / np.exp(powers).sum(axis=1, keepdims=True)
    rows = rows.with_columns(pl.Series(name, scaled[:, i]) for i, name in enumerate(columns))
    rows = rows.group_by(f"{level}_id").agg(pl.col("target").first(), pl.col(columns).mean())
    score = rows.select(pl.sum_horizontal(f"prob_{name}" for name in POSITIVE)).to_series()
    return score.to_numpy(), rows["target"].to_numpy() >= 2


def chosen(scores: np.ndarray, positive: np.ndarray, fixed: str) -> float:
    """Return the best of the scores, and of one above all, that meet what is asked."""
    choices = np.unique([*scores, np.nextafter(scores.max(), 2)])
    if fixed == "sensitivity":
        return max(t for t in choices if np.mean(scores[positive] >= t) >= 0.75)
    return min(t for t in choices if np.mean(scores[~positive] < t) >= 0.85)


@pytest.mark.parametrize("level", ["patient", "slide"])
@pytest.mark.parametrize("fixed", ["sensitivity", "specificity"])
def test_the_threshold_is_the_mean_of_those_of_the_calibrated_tuning_sets(level, fixed):
    table = predictions(80, slides=2, sharpness=3.0)
    temperatures = fit_temperatures(table, SCORE)
    assert (temperatures["temperature"] > 1.5).all()  # so that uncalibrated ones would differ
    each = [chosen(*tuning_scores(table, temperatures, fold, level), fixed) for fold in range(4)]
    found = frozen_thresholds(fold_thresholds(table, temperatures, SCORE, SECTION))
    (own,) = (
        one for one in found
        if (one.level, one.grouping, one.fixed) == (level, GROUPING, fixed)
    )  # fmt: skip
    assert own.value == pytest.approx(np.mean(each), rel=1e-9)
    assert (own.lowest, own.highest) == pytest.approx((min(each), max(each)), rel=1e-9)
    assert own.asked == {"sensitivity": 0.75, "specificity": 0.85}[fixed]
    assert len(found) == 2 * 2 * len(EvaluationSection().groupings)


def test_a_fold_whose_tuning_set_lacks_a_side_is_left_out_and_said(caplog):
    table = predictions(80)
    lacking = (pl.col("fold") == 2) & (pl.col("role") == "tune") & (pl.col("target") >= 2)
    table = table.filter(~lacking)
    temperatures = fit_temperatures(table, SCORE)
    each = fold_thresholds(table, temperatures, SCORE, SECTION)
    own = each.filter(grouping=GROUPING, level="patient", fixed="specificity")
    assert own["threshold"].is_null().to_list() == [False, False, True, False]
    (found,) = (
        one for one in frozen_thresholds(each)
        if (one.level, one.grouping, one.fixed) == ("patient", GROUPING, "specificity")
    )  # fmt: skip
    assert found.value == pytest.approx(own["threshold"].drop_nulls().mean())
    assert f"{GROUPING}, by patient: no threshold of r0f2" in caplog.text


def test_without_tuning_sets_there_is_no_threshold():
    table = predictions(80, tuned=False)
    each = fold_thresholds(table, fit_temperatures(table, SCORE), SCORE, SECTION)
    assert frozen_thresholds(each) == ()


def test_a_case_is_called_when_the_folds_margins_are_positive_on_average():
    generator = np.random.default_rng(0)
    scores, thresholds = generator.uniform(size=(500, 5)), generator.uniform(size=5)
    called = scores.mean(axis=1) >= thresholds.mean()
    np.testing.assert_array_equal(called, (scores - thresholds).mean(axis=1) >= 0)
