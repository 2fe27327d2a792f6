"""Temperatures come from tuning sets alone; calibration is measured before and after."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss
from statsmodels.api import GLM, add_constant, families
from statsmodels.stats.proportion import proportion_confint

from her2.config import EvaluationSection
from her2.evaluation.calibration import (
    PREDICTED,
    SCALED,
    calibration_table,
    reliability_table,
)
from her2.evaluation.predictions import out_of_fold
from her2.evaluation.recalibration import recalibration
from her2.evaluation.shares import wilson
from her2.evaluation.temperature import (
    BOUNDS,
    fit_temperature,
    fit_temperatures,
    scale,
    scaled_predictions,
)
from her2.metrics.calibration_error import bins_of
from tests.unit.prediction_makers import SCORE, predictions

SECTION = EvaluationSection(bootstrap=200)
PROBS = [f"prob_{name}" for name in SCORE.class_names]


def states(table: pl.DataFrame) -> dict[str, tuple[pl.DataFrame | None, str]]:
    temperatures = fit_temperatures(table, SCORE)
    return {PREDICTED: (table, ""), SCALED: scaled_predictions(table, temperatures, SCORE)}


def drawn(n: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw targets from probabilities, and apply a temperature to these probabilities."""
    generator = np.random.default_rng(seed)
    true = generator.dirichlet(np.ones(4), n)
    target = (true.cumsum(axis=1) < generator.random((n, 1))).sum(axis=1).clip(max=3)
    powers = true**temperature
    return target, powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_probabilities_too_sure_is_found(temperature: float) -> None:
    found, note = fit_temperature(*drawn(20_000, temperature))
    assert found == pytest.approx(temperature, rel=0.05)
    assert note == ""


def test_no_other_temperature_has_a_lower_log_loss() -> None:
    target, probabilities = drawn(200, 1.7)
    best, _ = fit_temperature(target, probabilities)
    losses = {
        t: log_loss(target, scale(probabilities, t), labels=range(4))
        for t in (best, *np.geomspace(*BOUNDS, 400))
    }
    assert min(losses, key=losses.__getitem__) == best


@settings(max_examples=80)
@given(
    hnp.arrays(float, (5, 4), elements=st.one_of(st.just(0.0), st.floats(1e-9, 1))),
    st.floats(*BOUNDS),
)
def test_a_temperature_never_changes_the_most_probable_class(
    raw: np.ndarray, temperature: float
) -> None:
    raw[:, 0] += 1e-6  # no row of zeros
    probabilities = raw / raw.sum(axis=1, keepdims=True)
    scaled = scale(probabilities, temperature)
    np.testing.assert_allclose(scaled.sum(axis=1), 1)
    best = probabilities.argmax(axis=1)
    np.testing.assert_array_equal(scaled[np.arange(5), best], scaled.max(axis=1))


@settings(max_examples=30)
@given(hnp.arrays(float, (5, 4), elements=st.floats(1e-6, 1)))
def test_a_temperature_of_one_changes_nothing(raw: np.ndarray) -> None:
    probabilities = raw / raw.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scale(probabilities, 1.0), probabilities)


def test_a_tuning_set_that_is_all_right_is_at_the_bound_and_says_so() -> None:
    probabilities = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1]])
    found, note = fit_temperature(np.array([0, 1]), probabilities)
    assert found == BOUNDS[0]
    assert note == "at the bound 0.05: the tuning set does not determine a temperature"
    found, note = fit_temperature(np.array([1, 0]), probabilities)
    assert found == BOUNDS[1]
    assert "at the bound 20" in note


def test_equal_probabilities_fit_every_temperature() -> None:
    assert fit_temperature(np.array([0, 1, 2]), np.full((3, 4), 0.25)) == (
        1.0,
        "every temperature fits the tuning set equally well",
    )


def test_a_fold_s_temperature_is_that_of_its_own_tuning_set() -> None:
    table = predictions(sharpness=2)
    found = fit_temperatures(table, SCORE)
    own = table.filter((pl.col("fold") == 2) & (pl.col("role") == "tune"))
    expected, _ = fit_temperature(own["target"].to_numpy(), own.select(PROBS).to_numpy())
    row = found.row(by_predicate=pl.col("run") == "r0f2", named=True)
    assert (row["temperature"], row["n_tune"]) == (expected, len(own))
    assert (found["temperature"] > 1.2).all()  # twice too sure


def test_other_test_predictions_leave_the_temperatures_alone() -> None:
    table = predictions()
    tested = pl.col("role") == "test"
    other = table.with_columns(
        pl.when(tested).then(pl.lit(0.25)).otherwise(name).alias(name) for name in PROBS
    )
    assert fit_temperatures(table, SCORE).equals(fit_temperatures(other, SCORE))


def test_each_row_is_scaled_by_its_own_model() -> None:
    table = predictions(repeats=2, sharpness=2)
    temperatures = fit_temperatures(table, SCORE)
    scaled, note = scaled_predictions(table, temperatures, SCORE)
    assert note == ""
    assert scaled is not None
    for run, temperature in temperatures.select("run", "temperature").iter_rows():
        own = (pl.col("repeat") == int(run[1])) & (pl.col("fold") == int(run[3]))
        expected = scale(table.filter(own).select(PROBS).to_numpy(), temperature)
        np.testing.assert_allclose(scaled.filter(own).select(PROBS).to_numpy(), expected)


def test_temperatures_mend_what_is_too_sure() -> None:
    found = calibration_table(
        states(predictions(400, sharpness=3)), SCORE, SECTION, level="patient", seed=1
    )
    for metric in ("ece", "brier", "log_loss"):
        before, after = (
            found.row(
                by_predicate=(pl.col("metric") == metric) & (pl.col("state") == state), named=True
            )
            for state in (PREDICTED, SCALED)
        )
        assert after["value"] < before["value"], metric
        if metric == "ece":
            assert (after["low"], after["high"]) == (None, None)
            assert after["note"].startswith("no interval: it is biased upwards")
        else:
            assert after["low"] <= after["value"] <= after["high"]
        assert after["n"] == 400


def test_folds_without_a_tuning_set_stay_as_predicted_and_are_named() -> None:
    table = predictions().filter((pl.col("fold") != 1) | (pl.col("role") == "test"))
    temperatures = fit_temperatures(table, SCORE)
    row = temperatures.row(by_predicate=pl.col("run") == "r0f1", named=True)
    assert (row["temperature"], row["n_tune"], row["note"]) == (None, 0, "no tuning set")
    scaled, note = scaled_predictions(table, temperatures, SCORE)
    assert note == "left as predicted for lack of a temperature: r0f1"
    assert scaled is not None
    own = pl.col("fold") == 1
    np.testing.assert_allclose(
        scaled.filter(own).select(PROBS).to_numpy(), table.filter(own).select(PROBS).to_numpy()
    )
    found = calibration_table(states(table), SCORE, SECTION, level="patient", seed=1)
    notes = found.filter((pl.col("state") == SCALED) & (pl.col("metric") != "ece"))["note"]
    assert set(notes) == {note}


def test_without_any_tuning_set_the_second_state_is_na() -> None:
    table = predictions(tuned=False)
    found = calibration_table(states(table), SCORE, SECTION, level="slide", seed=1)
    scaled = found.filter(pl.col("state") == SCALED)
    assert scaled["value"].null_count() == len(scaled) >= 3
    assert set(scaled["note"]) == {"not defined: no fold has a tuning set"}
    assert found.filter(pl.col("state") == PREDICTED)["value"].null_count() == 0
    reliable = reliability_table(states(table), SCORE, SECTION, level="slide")
    assert set(reliable["state"]) == {PREDICTED}


def test_the_ece_is_the_published_sum_over_ten_bins() -> None:
    """Naeini 2015; equation 3 of Guo 2017; with the bins of calibration_curve."""
    table = predictions(200, sharpness=2)
    pooled = out_of_fold(table, SCORE.class_names, by="patient_id")
    probabilities, target = pooled.select(PROBS).to_numpy(), pooled["target"].to_numpy()
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == target
    expected = 0.0
    for number in range(10):
        inside = (confidence > number / 10) & (confidence <= (number + 1) / 10)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
    found = calibration_table(states(table), SCORE, SECTION, level="patient", seed=1)
    row = found.row(
        by_predicate=(pl.col("metric") == "ece") & (pl.col("state") == PREDICTED), named=True
    )
    assert row["value"] == pytest.approx(expected)
    shares, means = calibration_curve(right, confidence, n_bins=10)
    counts = np.histogram(confidence, np.linspace(0, 1, 11))[0]
    assert row["value"] == pytest.approx(
        np.average(np.abs(shares - means), weights=counts[counts > 0])
    )


def calibrated(
    patients: int, seed: int, *, slides: int = 1, too_sure: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return outcomes, probabilities and patients; a patient's slides have one outcome."""
    generator = np.random.default_rng(seed)
    true = generator.normal(-1, 1.2, patients)
    hits = generator.random(patients) < expit(true)
    noise = generator.normal(0, 0.5, (patients, slides)) if slides > 1 else 0
    logits = too_sure * true[:, None] + noise
    rows = np.repeat(np.arange(patients), slides)
    return hits[rows], expit(logits).ravel(), rows


@pytest.mark.parametrize("slides", [1, 3])
def test_slope_and_intercept_are_those_of_a_logistic_regression(slides: int) -> None:
    """The library's variances: of the model, or of clusters where a patient has several rows."""
    hits, probabilities, patients = calibrated(150, seed=3, slides=slides, too_sure=1.6)
    found = recalibration(hits, probabilities, patients, 0.95)
    logits = logit(probabilities)
    options = {} if slides == 1 else {
        "cov_type": "cluster",
        # The correction of small samples here: clusters / (clusters - 1).
        "cov_kwds": {"groups": patients, "use_correction": False},
    }  # fmt: skip
    factor = 1.0 if slides == 1 else (150 / 149) ** 0.5
    models = {
        "slope": GLM(hits.astype(float), add_constant(logits), families.Binomial()),
        "intercept": GLM(
            hits.astype(float), np.ones(len(hits)), families.Binomial(), offset=logits
        ),
    }
    for name, model in models.items():
        fitted = model.fit(**options)
        value, error = fitted.params[-1], fitted.bse[-1] * factor
        assert found[name].value == pytest.approx(value, rel=1e-6)
        assert (found[name].low, found[name].high) == pytest.approx(
            (value - 1.959964 * error, value + 1.959964 * error), rel=1e-5
        )
    assert found["slope"].value < 1


def test_observed_over_expected_is_a_ratio_of_means() -> None:
    hits = np.array([True, False, False, False, True])
    probabilities = np.array([0.5, 0.1, 0.2, 0.3, 0.4])
    found = recalibration(hits, probabilities, np.arange(5), 0.95)["observed_expected"]
    assert found.value == pytest.approx(0.4 / 0.3)
    parts = hits - 0.4 / 0.3 * probabilities
    error = parts.std(ddof=1) / 5**0.5 / 0.4
    assert (found.low, found.high) == pytest.approx(
        (0.4 / 0.3 * np.exp(-1.959964 * error), 0.4 / 0.3 * np.exp(1.959964 * error)), rel=1e-6
    )


def test_copies_of_slides_leave_the_intervals_of_a_class_alone() -> None:
    once = recalibration(*calibrated(80, seed=1), 0.95)
    hits, probabilities, patients = calibrated(80, seed=1)
    twice = [np.concatenate([part, part]) for part in (hits, probabilities, patients)]
    found = recalibration(twice[0], twice[1], twice[2], 0.95)
    assert found["observed_expected"] == once["observed_expected"]
    for name in ("slope", "intercept"):
        assert found[name].value == pytest.approx(once[name].value)
        width = once[name].high - once[name].low
        assert found[name].high - found[name].low == pytest.approx(width, rel=0.25)


@pytest.mark.parametrize("patients", [60, 200])
def test_intervals_of_a_class_hold_the_truth(patients: int) -> None:
    """Of 400 calibrated studies, 380 at 95 % on average; below 364 has a chance of 0.1 %."""
    covered = dict.fromkeys(("observed_expected", "slope", "intercept"), 0)
    for study in range(400):
        found = recalibration(*calibrated(patients, seed=study), 0.95)
        for name, truth in zip(covered, (1, 1, 0), strict=True):
            covered[name] += found[name].low <= truth <= found[name].high
    assert min(covered.values()) >= 364, covered


@pytest.mark.parametrize(
    ("hits", "probabilities", "expected"),
    [
        ([0, 0, 0], [0.1, 0.2, 0.3], (0.0, "", "not defined: no patient is of this class")),
        ([1, 1, 1], [0.5, 0.5, 0.5], (2.0, "", "not defined: every patient is of this class")),
        ([0, 0, 1], [0.1, 0.2, 0.9], (0.8333, "", "separate the class perfectly")),
        ([1, 0, 0], [0.1, 0.2, 0.9], (0.8333, "", "separate the class perfectly")),
        ([0, 1, 0, 1, 1], [0.25, 0.251, 0.252, 0.253, 0.254], (2.381, "", "differ too little")),
        ([0, 1, 1], [0.5, 0.5, 0.5], (1.3333, "", "every probability is the same")),
        ([0, 1, 0], [0.0, 0.0, 0.0], (None, "every probability is 0", "is the same")),
    ],
)
def test_what_a_class_does_not_define_has_its_reason(
    hits: list[int], probabilities: list[float], expected: tuple[float | None, str, str]
) -> None:
    found = recalibration(
        np.array(hits, bool), np.array(probabilities), np.arange(len(hits)), 0.95
    )  # fmt: skip
    value, reason, words = expected
    ratio = found["observed_expected"]
    assert reason in ratio.note
    assert np.isnan(ratio.value) if value is None else ratio.value == pytest.approx(value, abs=1e-3)
    assert words in found["slope"].note
    assert np.isnan(found["slope"].value)


def test_a_class_that_no_patient_has_is_bounded_by_wilson() -> None:
    found = recalibration(np.zeros(20, bool), np.full(20, 0.1), np.arange(20), 0.95)
    high = proportion_confint(0, 20, method="wilson")[1] / 0.1
    ratio = found["observed_expected"]
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0, 0, high))


def test_each_class_is_in_the_table_in_both_states() -> None:
    table = predictions(200, sharpness=2)
    found = calibration_table(states(table), SCORE, SECTION, level="patient", seed=1)
    own = found.filter(pl.col("class") == "2+")
    assert own.select("state", "metric").rows() == [
        (state, metric)
        for state in (PREDICTED, SCALED)
        for metric in ("observed_expected", "slope", "intercept")
    ]
    slopes = own.filter(pl.col("metric") == "slope")["value"].to_list()
    assert slopes[0] < 0.7 < slopes[1]  # twice too sure, before the temperature
    pooled = out_of_fold(table, SCORE.class_names, by="patient_id")
    ratio = (pooled["target"] == 2).mean() / pooled["prob_2+"].mean()
    assert own["value"][0] == pytest.approx(ratio)


def test_bins_are_open_below_and_zero_is_in_the_first() -> None:
    probabilities = np.array([0.0, 1e-9, 0.1, 0.1 + 1e-9, 0.5, 0.9, 0.9 + 1e-9, 1.0])
    assert bins_of(probabilities).tolist() == [0, 0, 0, 1, 4, 8, 9, 9]


def test_reliability_counts_every_row_once_and_has_wilsons_interval() -> None:
    table = predictions(120)
    found = reliability_table(states(table), SCORE, SECTION, level="patient")
    pooled = out_of_fold(table, SCORE.class_names, by="patient_id")
    plain = found.filter(pl.col("state") == PREDICTED)
    for index, name in enumerate(SCORE.class_names):
        own = plain.filter(pl.col("class") == name)
        assert own["bin"].to_list() == list(range(10))
        assert own["n"].sum() == 120
        shares, means = calibration_curve(
            pooled["target"].to_numpy() == index, pooled[f"prob_{name}"].to_numpy(), n_bins=10
        )
        filled = own.filter(pl.col("n") > 0)
        assert filled["observed_share"].to_list() == pytest.approx(shares)
        assert filled["mean_probability"].to_list() == pytest.approx(means)
        for row in filled.to_dicts():
            count = round(row["observed_share"] * row["n"])
            assert (row["low"], row["high"]) == pytest.approx(
                proportion_confint(count, row["n"], method="wilson")
            )
        empty = own.filter(pl.col("n") == 0)
        assert empty["observed_share"].null_count() == len(empty)


def test_wilsons_interval_is_the_formula() -> None:
    """(p + z^2/2n -+ z sqrt(p q / n + z^2/4n^2)) / (1 + z^2/n) (Wilson 1927), for 7 of 10."""
    z, n, p = 1.959963984540054, 10, 0.7
    middle, reach = p + z * z / 2 / n, z * np.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    expected = (middle - reach) / (1 + z * z / n), (middle + reach) / (1 + z * z / n)
    assert wilson(7, 10, 0.95) == pytest.approx(expected)


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0.51, 0.999))
def test_wilsons_interval_is_that_of_statsmodels(n: int, share: float, confidence: float) -> None:
    expected = proportion_confint(share * n, n, alpha=1 - confidence, method="wilson")
    assert wilson(share * n, n, confidence) == pytest.approx(expected, rel=1e-12, abs=1e-15)
