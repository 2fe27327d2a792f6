"""The pipeline picks by the tuning sets alone, and its figure is that of what it picked."""

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from her2.config import EvaluationSection
from her2.evaluation.areas import class_area, held_out, macro_area
from her2.evaluation.intervals import mean_estimate
from her2.evaluation.nested import LOG_LOSS, MACRO_AUC, pick_models
from her2.evaluation.paired import Model, commonly_tested
from her2.evaluation.selection import NESTED, selection_records
from tests.unit.prediction_makers import SCORE, predictions

SECTION = EvaluationSection(bootstrap=100, selection="nested", groupings={})
COLUMNS = [f"prob_{name}" for name in SCORE.class_names]
Tables = dict[Model, pl.DataFrame]


def ranked(table: pl.DataFrame, good: pl.Expr) -> pl.DataFrame:
    """Return a table whose scores are right for the rows of an expression, and level for others."""
    target = pl.col("target")
    return table.with_columns(
        pl.when(good).then(0.1 + 0.6 * (target == index)).otherwise(0.25).alias(name)
        for index, name in enumerate(COLUMNS)
    )


def picked(tables: Tables) -> tuple[list[dict], pl.DataFrame, str]:
    return pick_models(tables, commonly_tested(tables), SCORE)


def nested(tables: Tables) -> dict:
    found, _ = selection_records(tables, SCORE, SECTION, seed=1)
    return next(row for row in found if row["method"] == NESTED)


def test_the_model_that_is_best_on_the_tuning_set_is_picked_whatever_its_test_set_says() -> None:
    base = predictions(seed=1)
    tuned = pl.col("role") == "tune"
    tables = {("test", "h"): ranked(base, ~tuned), ("tune", "h"): ranked(base, tuned)}
    picks, pipeline, reason = picked(tables)
    assert reason == ""
    assert {pick["encoder"] for pick in picks} == {"tune"}
    assert {(pick["value"], pick["criterion"]) for pick in picks} == {(1.0, MACRO_AUC)}
    assert pipeline.equals(tables["tune", "h"].filter(pl.col("role") == "test"))
    assert nested(tables)["value"] == 0.5


def test_each_run_picks_its_own_model() -> None:
    base = predictions(seed=2, repeats=2)
    odd = pl.col("fold") % 2 == 1
    tables = {("odd", "h"): ranked(base, odd), ("even", "h"): ranked(base, ~odd)}
    picks, _, _ = picked(tables)
    assert [(pick["run"], pick["encoder"]) for pick in picks] == [
        (f"r{repeat}f{fold}", "odd" if fold % 2 else "even")
        for repeat in range(2)
        for fold in range(4)
    ]
    row = nested(tables)
    assert row["value"] == 1
    assert row["note"] == "picked of 8 runs: even / h in 4, odd / h in 4"


def test_the_figure_is_that_of_the_picked_test_rows() -> None:
    """Where one model is picked in all runs, the pipeline is that model."""
    base = predictions(seed=3, repeats=2)
    weak = predictions(seed=3, repeats=2, signal=0.0)
    row = nested({("weak", "h"): weak, ("good", "h"): base})
    rows = held_out(base, SCORE, level="patient")
    classes = [class_area(rows, index) for index in range(4)]
    expected = mean_estimate(macro_area(rows, classes), classes, 0.95)
    assert (row["value"], row["low"], row["high"]) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )


def test_the_figures_of_a_pick_are_those_of_the_patients_of_its_tuning_set() -> None:
    table = predictions(seed=4, slides=3)
    picks, _, _ = picked({("a", "h"): table, ("b", "h"): table})
    for fold, pick in enumerate(picks):
        own = table.filter((pl.col("role") == "tune") & (pl.col("fold") == fold))
        means = own.group_by("patient_id", maintain_order=True).agg(
            pl.col("target").first(), pl.col(COLUMNS).mean()
        )
        target, scores = means["target"].to_numpy(), means.select(COLUMNS).to_numpy()
        expected = np.mean([roc_auc_score(target == i, scores[:, i]) for i in range(4)])
        assert pick["value"] == pytest.approx(expected)
        assert pick["log_loss"] == pytest.approx(log_loss(target, scores))
        assert pick["n"] == len(means)


def test_equal_aucs_are_told_apart_by_log_loss() -> None:
    table = predictions(seed=5)
    blurred = table.with_columns(pl.col(COLUMNS) * 0.5 + 0.125)
    picks, _, _ = picked({("blurred", "h"): blurred, ("sharp", "h"): table})
    loss = {"blurred": _loss(blurred), "sharp": _loss(table)}
    assert [pick["encoder"] for pick in picks] == [
        min(loss, key=lambda name, run=pick["run"]: loss[name][run]) for pick in picks
    ]


def _loss(table: pl.DataFrame) -> dict[str, float]:
    found = {}
    for (fold,), own in (
        table.filter(pl.col("role") == "tune").partition_by("fold", as_dict=True).items()
    ):
        found[f"r0f{fold}"] = log_loss(own["target"].to_numpy(), own.select(COLUMNS).to_numpy())
    return found


def test_a_tuning_set_without_a_class_picks_by_log_loss() -> None:
    """The model that ranks the two others better has the worse log loss."""
    lacking = (pl.col("role") == "tune") & (pl.col("target") == 2)
    table = predictions(seed=6).filter(~lacking)
    wrong = table.with_columns(pl.col("target").alias("own")).with_columns(
        (0.001 + (pl.col("own") == (index + 1) % 4)).alias(name)
        for index, name in enumerate(COLUMNS)
    )
    picks, _, _ = picked({("wrong", "h"): wrong.drop("own"), ("right", "h"): table})
    assert {pick["encoder"] for pick in picks} == {"right"}
    assert {(pick["criterion"], pick["value"]) for pick in picks} == {(LOG_LOSS, None)}


def test_models_are_compared_on_the_tuning_slides_that_all_have() -> None:
    table = predictions(seed=7)
    lost = (pl.col("role") == "tune") & (pl.col("patient_id") == "p003")
    picks, _, _ = picked({("a", "h"): table, ("b", "h"): table.filter(~lost)})
    fold = table.filter(lost)["fold"][0]
    whole = table.filter(pl.col("role") == "tune").group_by("fold").len().sort("fold")["len"]
    assert [pick["n"] for pick in picks] == [
        count - (index == fold) for index, count in enumerate(whole)
    ]


def test_a_run_that_a_model_does_not_have_is_picked_among_the_others_and_noted() -> None:
    table = predictions(seed=8)
    both = pl.concat([table, table.with_columns(seed=pl.lit(1, pl.Int32))])
    picks, _, _ = picked({("one", "h"): table, ("two", "h"): both, ("three", "h"): both})
    assert [pick["models"] for pick in picks] == [3, 2] * 4
    assert {pick["note"] for pick in picks if pick["run"].endswith("s1")} == {
        "1 of 3 models does not have this run"
    }


def test_without_a_tuning_set_there_is_no_pipeline() -> None:
    tables = {(name, "h"): predictions(seed=9, tuned=False) for name in "ab"}
    row = nested(tables)
    assert row["value"] is None
    assert row["note"] == "not defined: no tuning set in r0f0"


def test_test_rows_take_no_part_in_the_choice() -> None:
    generator = np.random.default_rng(0)
    table = predictions(seed=10, signal=0.3)
    tables = {}
    for name in "ab":  # two models of the same folds
        noise = generator.random((len(table), 4))
        tables[name, "h"] = table.with_columns(
            (pl.col(column) + pl.Series(noise[:, index])) / (1 + noise.sum(axis=1))
            for index, column in enumerate(COLUMNS)
        )
    noise = generator.random((len(table), 4))
    tuned = pl.col("role") == "tune"
    other = {
        model: table.with_columns(
            pl.when(tuned).then(pl.col(name)).otherwise(pl.Series(noise[:, index])).alias(name)
            for index, name in enumerate(COLUMNS)
        )
        for model, table in tables.items()
    }
    picks, pipeline, _ = picked(tables)
    assert {pick["encoder"] for pick in picks} == {"a", "b"}
    assert picked(other)[0] == picks
    assert not picked(other)[1].equals(pipeline)
