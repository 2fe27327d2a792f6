"""The best of several models is worth less than its figure, and the correction says how much."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from benchmarks.selection import simulated
from her2.config import EvaluationSection
from her2.config.jobs import CompareSpec
from her2.core.types import Floats
from her2.evaluation import bootstrap
from her2.evaluation.areas import HeldOut, class_area, held_out, macro_area
from her2.evaluation.bootstrap import weight_blocks
from her2.evaluation.compare import compare
from her2.evaluation.paired import Model
from her2.evaluation.selection import (
    CORRECTED,
    HIGHEST,
    NESTED,
    Resampled,
    corrected,
    corrected_estimate,
    ranked_pairs,
    selection_records,
    weighted_macro,
)
from tests.unit.prediction_makers import SCORE, predictions

SECTION = EvaluationSection(bootstrap=200, groupings={})


def rows_of(seed: int, **options: float) -> HeldOut:
    return held_out(predictions(seed=seed, **options), SCORE, level="patient")


def models(count: int, **options: float) -> dict[Model, pl.DataFrame]:
    """Return equally good models of the same folds."""
    first = predictions(seed=0, **options)
    generator = np.random.default_rng(1)
    found = {}
    for index in range(count):
        logits = generator.normal(size=(len(first), 4))
        logits[np.arange(len(first)), first["target"].to_numpy()] += options.get("signal", 1.0)
        found[f"e{index}", "h"] = with_scores(first, np.exp(logits))
    return found


def with_scores(table: pl.DataFrame, scores: Floats) -> pl.DataFrame:
    scores = scores / scores.sum(axis=1, keepdims=True)
    return table.with_columns(
        pl.Series(f"prob_{name}", scores[:, index]) for index, name in enumerate(SCORE.class_names)
    )


def records(tables: dict[Model, pl.DataFrame], section: EvaluationSection = SECTION) -> dict:
    return {row["method"]: row for row in selection_records(tables, SCORE, section, seed=1)[0]}


# The macro AUC with weights


@given(st.integers(0, 50), st.integers(1, 3), st.sampled_from([1, 10]))
def test_weights_of_one_give_the_macro_auc_of_the_tables(
    seed: int, repeats: int, decimals: int
) -> None:
    table = predictions(40, seed=seed, repeats=repeats)
    columns = [f"prob_{name}" for name in SCORE.class_names]
    rows = held_out(table.with_columns(pl.col(columns).round(decimals)), SCORE, level="patient")
    expected = macro_area(rows, [class_area(rows, index) for index in range(4)]).value
    found = weighted_macro(ranked_pairs(rows), np.ones((40, 1)), classes=4)
    assert found == pytest.approx([expected], nan_ok=True)


def test_a_weight_counts_a_patient_so_often() -> None:
    rows = rows_of(3, folds=1, tuned=False)
    weights = np.random.default_rng(2).integers(0, 4, (80, 5)).astype(float)
    expected = [
        np.mean(
            [
                roc_auc_score(rows.target == index, rows.probabilities[:, index], sample_weight=own)
                for index in range(4)
            ]
        )
        for own in weights.T
    ]
    assert weighted_macro(ranked_pairs(rows), weights, classes=4) == pytest.approx(expected)


def test_a_round_without_patients_of_a_class_does_not_count() -> None:
    rows = rows_of(3, repeats=2)
    weights = np.ones((80, 2))
    weights[rows.classes == 1, 1] = 0
    found = weighted_macro(ranked_pairs(rows), weights, classes=4)
    assert np.isnan(found).tolist() == [False, True]


# BBC-CV


def test_each_resample_selects_on_the_drawn_and_measures_on_the_others() -> None:
    """Follow Tsamardinos 2018 with scikit-learn, a resample at a time."""
    several = [rows_of(seed, folds=1, tuned=False, signal=0.4) for seed in range(3)]
    classes = several[0].classes
    found = corrected(several, resamples=8, seed=9)
    draws = np.concatenate(
        list(weight_blocks(np.arange(len(classes)), classes, resamples=8, seed=9))
    )
    for draw, value, chosen in zip(draws, found.values, found.chosen, strict=True):
        inside = [_macro(rows, np.repeat(np.arange(len(draw)), draw.astype(int)))
                  for rows in several]  # fmt: skip
        assert chosen == int(np.argmax(inside))
        assert value == pytest.approx(_macro(several[chosen], np.flatnonzero(draw == 0)))


def _macro(rows: HeldOut, members: np.ndarray) -> float:
    target, scores = rows.target[members], rows.probabilities[members]
    return float(np.mean([roc_auc_score(target == i, scores[:, i]) for i in range(4)]))


def test_the_draws_do_not_depend_on_the_memory_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    several = [rows_of(seed) for seed in range(2)]
    whole = corrected(several, resamples=50, seed=1)
    monkeypatch.setattr(bootstrap, "BLOCK_VALUES", 80 * 7)
    parts = corrected(several, resamples=50, seed=1)
    assert whole.values.tolist() == parts.values.tolist()
    assert whole.chosen.tolist() == parts.chosen.tolist()


def test_a_model_that_is_always_right_is_always_selected() -> None:
    tables = models(3)
    target = tables["e0", "h"]["target"].to_numpy()
    tables["e1", "h"] = with_scores(tables["e1", "h"], 0.1 + np.eye(4)[target])
    found = records(tables)
    assert (found[HIGHEST]["encoder"], found[HIGHEST]["value"]) == ("e1", 1)
    assert found[CORRECTED]["value"] == 1
    assert found[CORRECTED]["low"] is None
    assert found[CORRECTED]["note"] == (
        "interval not defined: all resamples give the same value; "
        "selected most often: e1 / h (100 %)"
    )


def test_of_equal_models_the_first_is_selected() -> None:
    one = predictions(seed=4)
    found = records({("b", "h"): one, ("a", "h"): one})
    assert found[HIGHEST]["encoder"] == "b"
    assert "b / h (100 %)" in found[CORRECTED]["note"]


def test_a_class_of_one_patient_is_never_left_out_so_nothing_is_measured() -> None:
    tables = models(2, patients=41)
    lone = {f"p{index:03d}" for index in range(7, 41, 4)}
    tables = {
        model: table.filter(~pl.col("patient_id").is_in(lone)) for model, table in tables.items()
    }
    found = records(tables)
    assert found[CORRECTED]["value"] is None
    assert found[CORRECTED]["note"] == (
        "not defined: in no resample are patients of every class left out"
    )


def test_resamples_that_leave_a_class_out_are_counted_in_the_note() -> None:
    values = np.array([0.5, np.nan, 0.7, 0.6])
    found = corrected_estimate(Resampled(values, np.array([1, 1, 0, 1])), [("a", "h"), ("b", "h")],
                               0.9)  # fmt: skip
    assert found.value == pytest.approx(0.6)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(values[[0, 2, 3]],
                                                                      [0.05, 0.95])))  # fmt: skip
    assert found.note == (
        "selected most often: b / h (75 %); 1 of 4 resamples are without patients of every class "
        "to measure on"
    )


def test_the_correction_is_below_the_highest_of_equal_models() -> None:
    found = records(models(10, signal=0.3))
    assert found[CORRECTED]["value"] < found[HIGHEST]["value"]
    assert found[CORRECTED]["low"] < found[CORRECTED]["value"] < found[CORRECTED]["high"]


def test_bbc_cv_takes_out_the_optimism_of_the_highest() -> None:
    """Ten models with a true AUC of 0.625: the highest reads higher, the corrected does not."""
    rows = simulated(studies=12, patients=100, models=10, resamples=200)
    found = {row.method: row.value for row in rows}
    assert {row.truth for row in rows} == {0.625}
    assert found[HIGHEST] > 0.645
    # The standard error of a mean of 12 studies is 0.01.
    assert found[CORRECTED] == pytest.approx(0.625, abs=0.02)
    assert found[NESTED] == pytest.approx(0.625, abs=0.02)


@pytest.mark.nightly
@pytest.mark.simulation
@pytest.mark.parametrize(("patients", "count"), [(48, 10), (100, 10), (100, 50)])
def test_what_the_best_of_several_is_worth_is_right_on_average(patients: int, count: int) -> None:
    rows = {row.method: row for row in simulated(studies=100, patients=patients, models=count)}
    assert rows[HIGHEST].value > 0.655
    for method in (CORRECTED, NESTED):
        assert rows[method].value == pytest.approx(0.625, abs=0.015), rows
        assert rows[method].coverage >= 0.93, rows


@pytest.mark.nightly
@pytest.mark.simulation
def test_what_the_best_is_worth_follows_the_model_that_is_better() -> None:
    rows = {
        row.method: row
        for row in simulated(studies=100, patients=100, models=10, auc=0.6, better=0.1)
    }
    assert rows[HIGHEST].truth > 0.67
    assert rows[CORRECTED].value == pytest.approx(rows[HIGHEST].truth, abs=0.02)


# The table


def test_a_single_model_has_its_figure_and_the_reason_why_it_is_not_corrected() -> None:
    section = SECTION.model_copy(update={"selection": "nested"})
    found = records(models(1), section)
    assert found[HIGHEST]["value"] is not None
    for method in (CORRECTED, NESTED):
        assert found[method]["value"] is None
        assert found[method]["note"] == "not defined: a single model, so none was chosen"


def test_all_figures_are_of_the_patients_that_all_models_tested() -> None:
    tables = models(2)
    tables["e1", "h"] = tables["e1", "h"].filter(pl.col("patient_id") != "p007")
    found = records(tables)
    assert {row["n"] for row in found.values()} == {79}
    assert {row["models"] for row in found.values()} == {2}
    lost = "patients left out because not all models tested them: 1"
    assert all(lost in row["note"] for row in found.values())


def test_nobody_tested_is_a_reason_and_no_error() -> None:
    empty = predictions(seed=1).filter(pl.col("role") == "none")
    found = records({("a", "h"): empty})
    assert found[HIGHEST]["value"] is None
    assert found[HIGHEST]["note"].startswith("not defined")


@pytest.mark.parametrize("selection", ["none", "nested"])
def test_the_job_writes_the_tables_of_all_tasks(tmp_path: Path, selection: str) -> None:
    for task in ("one", "two"):
        for (encoder, head), table in models(2).items():
            folder = tmp_path / task / encoder / head
            folder.mkdir(parents=True)
            table.write_parquet(folder / "predictions.parquet")
    spec = CompareSpec(
        tasks={"one": SCORE, "two": SCORE},
        encoders=("e0", "e1"),
        domains={"e0": "none", "e1": "none"},
        heads=("h",),
        evaluation=SECTION.model_copy(update={"selection": selection}),
        seed=1,
    )
    compare(spec, tmp_path, tmp_path)
    found = pl.read_parquet(tmp_path / "selection.parquet")
    methods = [HIGHEST, CORRECTED] + [NESTED] * (selection == "nested")
    assert found.select("task", "method").rows() == [
        (task, method) for task in ("one", "two") for method in methods
    ]
    picks = pl.read_parquet(tmp_path / "picks.parquet")
    runs = [f"r0f{fold}" for fold in range(4)] * 2 if selection == "nested" else []
    assert picks["run"].to_list() == runs
    assert not any(math.isnan(value) for value in found["value"].to_list())
