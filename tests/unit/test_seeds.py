"""Several trainings of each fold: their spread, and models compared that have different numbers."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from her2.config import EvaluationSection
from her2.evaluation.paired import MACRO, Paired, pair_models
from her2.evaluation.seeds import SEEDS, seeds_table
from her2.report.sections.seeds import seeds_note, seeds_page_table
from tests.unit.prediction_makers import SCORE, predictions

SECTION = EvaluationSection()
COLUMNS = [f"prob_{name}" for name in SCORE.class_names]
GROUPING = "0/1+ vs 2+/3+"


def trained_again(table: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Return the predictions of the same folds by models of another seed."""
    noise = np.random.default_rng(100 + seed).normal(scale=0.7, size=(len(table), len(COLUMNS)))
    raw = table.select(COLUMNS).to_numpy() * np.exp(noise if seed else 0 * noise)
    new = raw / raw.sum(axis=1, keepdims=True)
    return table.with_columns(
        pl.lit(seed, pl.Int32).alias("seed"),
        *(pl.Series(name, new[:, index]) for index, name in enumerate(COLUMNS)),
    )


def with_seeds(table: pl.DataFrame, seeds: Sequence[int]) -> pl.DataFrame:
    return pl.concat([trained_again(table, seed) for seed in seeds])


def only(table: pl.DataFrame, **values: object) -> dict[str, Any]:
    chosen = table.filter(pl.all_horizontal(pl.col(k) == v for k, v in values.items()))
    assert len(chosen) == 1, chosen
    return chosen.row(0, named=True)


def test_the_spread_is_the_standard_deviation_of_the_aucs_of_the_seeds() -> None:
    """With one test set per repeat, the AUC within folds is scikit-learn's."""
    table = with_seeds(predictions(40, folds=1, repeats=2, tuned=False), range(3))
    found = seeds_table(table, SCORE, SECTION, level="patient")
    assert dict(found.schema) == SEEDS

    def area(seed: int, repeat: int, index: int) -> float:
        own = table.filter((pl.col("seed") == seed) & (pl.col("repeat") == repeat))
        return roc_auc_score(own["target"] == index, own[COLUMNS[index]])

    each = np.array([[[area(s, r, i) for i in range(4)] for r in range(2)] for s in range(3)]).mean(
        axis=1
    )
    for name, values in zip(
        (*SCORE.class_names, "macro"), (*each.T, each.mean(axis=1)), strict=True
    ):
        row = only(found, **{"class": name})
        assert row["sd"] == pytest.approx(values.std(ddof=1))
        assert (row["lowest"], row["highest"]) == pytest.approx((values.min(), values.max()))
        assert (row["seeds"], row["note"]) == (3, "")


def test_the_spread_of_a_grouping_is_that_of_its_two_sides() -> None:
    table = with_seeds(predictions(40, folds=1, tuned=False), range(2))
    row = only(seeds_table(table, SCORE, SECTION, level="patient"), grouping=GROUPING)
    areas = []
    for seed in range(2):
        own = table.filter(pl.col("seed") == seed)
        areas.append(roc_auc_score(own["target"] >= 2, own["prob_2+"] + own["prob_3+"]))
    assert row["sd"] == pytest.approx(np.std(areas, ddof=1))


def test_one_seed_has_no_spread_and_says_so() -> None:
    found = seeds_table(predictions(), SCORE, SECTION, level="slide")
    assert found["class"].to_list() == [*SCORE.class_names, "macro", "", "", ""]
    assert set(found["note"]) == {"one training seed"}
    assert found["seeds"].unique().to_list() == [1]
    for column in ("sd", "lowest", "highest"):
        assert found[column].null_count() == len(found)


def test_seeds_that_give_one_model_have_a_spread_of_zero() -> None:
    """As a head has that is fitted without randomness."""
    table = predictions(folds=3, repeats=3)
    same = pl.concat([table.with_columns(pl.lit(s, pl.Int32).alias("seed")) for s in range(3)])
    found = seeds_table(same, SCORE, SECTION, level="patient")
    assert found["sd"].to_list() == [0] * len(found)


def test_an_auc_that_is_not_defined_has_no_spread_and_says_why() -> None:
    table = with_seeds(predictions().filter(pl.col("target") != 3), range(2))
    found = seeds_table(table, SCORE, SECTION, level="patient")
    row = only(found, **{"class": "3+"})
    assert row["sd"] is None
    assert row["note"] == "not defined: no patient on the positive side"
    assert only(found, **{"class": "0"})["sd"] > 0


def test_a_cohort_of_which_no_one_was_tested_has_reasons_alone() -> None:
    found = seeds_table(predictions().clear(), SCORE, SECTION, level="patient")
    assert found["sd"].null_count() == len(found) > 0
    assert all(note.startswith("not defined") for note in found["note"])


# Models with different numbers of seeds


def pair(first: pl.DataFrame, second: pl.DataFrame) -> Paired:
    return pair_models({("a", ""): first, ("b", ""): second}, SCORE, SECTION)


A, B = ("a", ""), ("b", "")
FEW = predictions(48, folds=3, repeats=2, signal=0.6, seed=1)
MANY = with_seeds(FEW.with_columns(pl.Series("prob_0", FEW["prob_0"][::-1])), range(3))


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_model_with_fewer_seeds_counts_with_their_mean(seeds: int) -> None:
    fewer = with_seeds(FEW, range(seeds))
    paired = pair(MANY, fewer)
    alone = [pair(MANY, MANY), pair(fewer, fewer)]
    for question in paired.questions:
        values = [one.areas[A][question].value for one in alone]
        assert paired.areas[A][question].value == pytest.approx(values[0])
        assert paired.areas[B][question].value == pytest.approx(values[1])
        assert paired.difference(A, B, question).value == pytest.approx(values[0] - values[1])
        # The model with the most seeds has the interval that it has elsewhere.
        assert paired.estimate(A, question) == alone[0].estimate(A, question)


def test_one_seed_against_several_is_that_seed_against_each_of_them() -> None:
    thrice = pl.concat([FEW.with_columns(pl.lit(s, pl.Int32).alias("seed")) for s in range(3)])
    given_once, repeated = pair(MANY, FEW), pair(MANY, thrice)
    for question in given_once.questions:
        once, each = (one.difference(A, B, question) for one in (given_once, repeated))
        assert (once.low, once.high, once.p) == pytest.approx((each.low, each.high, each.p))
        assert once.value == pytest.approx(each.value)


def test_seeds_are_averaged_within_their_repeat_alone() -> None:
    """The second repeat has perfect scores, of which nothing may reach the first."""
    perfect = FEW.with_columns(
        pl.when(pl.col("repeat") == 1)
        .then((pl.col("target") == index).cast(pl.Float64))
        .otherwise(pl.col(name))
        .alias(name)
        for index, name in enumerate(COLUMNS)
    )
    found = pair(MANY, perfect).areas[B][MACRO].rounds
    first = pair(FEW, FEW).areas[A][MACRO].rounds[0]
    assert found == pytest.approx([first] * 3 + [1.0] * 3)


@given(st.integers(1, 3), st.integers(1, 3))
def test_a_difference_only_changes_its_sign_with_the_order_of_the_models(
    seeds: int, others: int
) -> None:
    first, second = (
        with_seeds(MANY.filter(pl.col("seed") == 0), range(seeds)),
        with_seeds(FEW, range(others)),
    )
    one, two = pair(first, second), pair(second, first)
    forth, back = one.difference(A, B, MACRO), two.difference(A, B, MACRO)
    assert (forth.value, forth.low) == pytest.approx((-back.value, -back.high))
    assert forth.p == pytest.approx(back.p)


def test_a_slide_that_one_model_lacks_is_left_out_of_all_seeds() -> None:
    missing = FEW.filter(pl.col("patient_id") != "p000")
    paired = pair(MANY, missing)
    assert paired.left_out.endswith("tested them: 1")
    assert paired.counts[MACRO] == 47
    reduced = pair(MANY.filter(pl.col("patient_id") != "p000"), missing)
    assert paired.difference(A, B, MACRO) == reduced.difference(A, B, MACRO)


# The report


def results(seeds: int, *spreads: float | None) -> Any:
    """Return what the functions read of a run: encoders e0, e1, ... with their spreads."""
    models = tuple(
        SimpleNamespace(
            encoder=f"e{index}",
            head="h",
            seeds=pl.DataFrame(
                [("patient", "auc", "macro", "", sd, 0.6, 0.7, seeds, "")],
                schema=SEEDS,
                orient="row",
            ),
        )
        for index, sd in enumerate(spreads)
    )
    config = SimpleNamespace(training=SimpleNamespace(seeds=seeds), encoders={})
    return SimpleNamespace(task_models=lambda task: models, config=config, overlaps={}, external=())


def row(difference: float | None, **changed: str) -> dict[str, object]:
    return {
        "kind": "encoders", "within": "h", "first": "e0", "second": "e1", "class": "macro",
        "grouping": "", "difference": difference, **changed,
    }  # fmt: skip


@pytest.mark.parametrize("difference", [0.03, -0.03])
@pytest.mark.parametrize("spreads", [(0.04, 0.01), (0.01, 0.04)])
def test_a_difference_below_the_spread_of_either_model_is_cautioned(difference, spreads) -> None:
    found = seeds_note(results(3, *spreads), "score", row(difference))
    assert found == "smaller than the spread over training seeds (0.040)"


def test_heads_are_found_by_the_encoder_that_they_share() -> None:
    found = results(3, 0.04, 0.01)
    changed = {"kind": "heads", "within": "e0", "first": "h", "second": "other"}
    assert seeds_note(found, "score", row(0.03, **changed))
    assert not seeds_note(found, "score", row(0.03, **(changed | {"within": "e1"})))


@pytest.mark.parametrize(
    ("difference", "spreads"),
    [(0.05, (0.04, 0.01)), (-0.05, (0.04, 0.01)), (None, (0.04, 0.01)), (0.001, (None, None)),
     (0.0, (0.0, 0.0))],
)  # fmt: skip
def test_a_difference_that_is_not_below_a_known_spread_is_not_cautioned(
    difference: float | None, spreads: tuple[float | None, ...]
) -> None:
    assert seeds_note(results(3, *spreads), "score", row(difference)) == ""


def test_a_model_of_one_seed_has_no_table_of_its_spread() -> None:
    found = results(1, None)
    assert seeds_page_table(found, found.task_models("")[0]) is None


def test_the_table_of_the_spread_has_a_row_per_auc() -> None:
    found = results(3, 0.04)
    table = seeds_page_table(found, found.task_models("")[0])
    assert table is not None
    assert [cell.value for cell in table.rows[0]] == ["AUC macro", "0.040", "0.600", "0.700"]
