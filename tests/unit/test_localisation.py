"""Attention against ground truth, and between repeats: hand-computed and by other libraries."""

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import spearmanr, t
from sklearn.metrics import roc_auc_score

from her2.explanation.agreement import agreement_table, rank_correlation
from her2.explanation.held_out import HeldOutSlide
from her2.explanation.localisation import (
    LOCALISATION,
    inside_tiles,
    is_uniform,
    locate,
    mask_shape,
    summarise,
)
from her2.explanation.sources import spread

KIND = "held-out slide"

# A slide


def test_shares_and_pointing_are_those_computed_by_hand():
    attention = np.array([0.5, 0.2, 0.1, 0.1, 0.1])
    inside = np.array([True, False, True, False, False])
    found = locate(attention, inside)
    assert (found.tiles, found.inside_tiles, found.area_share) == (5, 2, 0.4)
    assert found.mass_share == pytest.approx(0.6)
    assert found.pointing == 1
    # Pairs: 0.5 wins 3 of 3; 0.1 loses to 0.2 and ties with two.
    assert found.auc == pytest.approx((3 + 1) / 6)
    assert locate(attention, ~inside).pointing == 0


def test_of_equally_most_attended_tiles_each_counts_alike():
    found = locate(np.array([0.4, 0.4, 0.2]), np.array([True, False, False]))
    assert found.pointing == 0.5


@given(st.integers(2, 60), st.integers(0, 10**6), st.booleans())
def test_the_auc_is_scikit_learn_s(count, seed, ties):
    generator = np.random.default_rng(seed)
    attention = generator.integers(0, 4, count) + 1.0 if ties else generator.random(count)
    inside = generator.random(count) < 0.4
    assume(0 < inside.sum() < count and np.ptp(attention) > 0)
    assert locate(attention, inside).auc == pytest.approx(roc_auc_score(inside, attention))


@given(st.integers(2, 60), st.integers(0, 10**6))
def test_attention_on_the_inside_alone_is_perfect(count, seed):
    inside = np.random.default_rng(seed).random(count) < 0.4
    assume(0 < inside.sum() < count)
    found = locate(inside / inside.sum(), inside)
    assert (found.auc, found.pointing) == (1, 1)
    assert found.mass_share == pytest.approx(1)


@pytest.mark.parametrize(("inside", "which"), [([0, 0, 0], "no tile"), ([1, 1, 1], "every tile")])
def test_a_slide_with_no_or_only_tiles_inside_has_a_reason_and_no_figures(inside, which):
    found = locate(np.array([0.2, 0.3, 0.5]), np.array(inside, bool))
    assert found.area_share == inside[0]
    assert (found.auc, found.mass_share, found.pointing) == (None, None, None)
    assert found.note == f"not defined: {which} is inside the truth"


def test_uniform_attention_is_not_half_right():
    for count in (3, 7, 1000):  # a float32 mean is not exactly the same everywhere
        attention = np.full(count, 1, np.float32) / np.float32(count)
        found = locate(attention, np.arange(count) < 2)
        assert (found.auc, found.mass_share, found.pointing) == (None, None, None)
        assert "same attention" in found.note
    assert not is_uniform(np.array([0.2, 0.2001], np.float32))


def test_a_tile_at_the_edge_of_the_slide_and_a_coarse_mask_are_handled():
    truth = np.array([[True, False]])  # the left half
    coords = np.array([[0, 0], [40, 0], [60, 0]])
    assert inside_tiles(truth, coords, (20.0, 50.0), (100, 50)).tolist() == [True, True, False]


def test_a_huge_slide_has_a_mask_of_bounded_size():
    height, width = mask_shape((400_000, 200_000), (100.0, 100.0))
    assert height * width <= 1.01 * 2**26
    assert width / height == pytest.approx(2, rel=0.01)
    assert mask_shape((1000, 500), (100.0, 50.0)) == (160, 160)


# The cohort


def table(rows: list[tuple[str, str, str, float | None, float]]) -> pl.DataFrame:
    """Rows of (slide, patient, label, auc, share of mass); a tenth of the tiles is inside."""
    records = [
        {
            "slide_id": slide, "patient_id": patient, "label": label, "tiles": 10,
            "inside_tiles": 1, "area_share": 0.1, "auc": value,
            "mass_share": None if value is None else mass,
            "pointing": None if value is None else 1.0,
            "note": "broken" if value is None else "",
        }
        for slide, patient, label, value, mass in rows
    ]  # fmt: skip
    return pl.DataFrame(records, schema=LOCALISATION)


ROWS = [
    ("a1", "a", "0", 0.6, 0.2), ("a2", "a", "0", 0.8, 0.4), ("b1", "b", "0", 1.0, 0.8),
    ("c1", "c", "3+", 0.5, 0.1), ("d1", "d", "3+", 0.9, 0.3), ("e1", "e", "3+", None, 0.0),
]  # fmt: skip


def cell(found: pl.DataFrame, name: str, measure: str) -> dict:
    return found.filter((pl.col("class") == name) & (pl.col("measure") == measure)).row(
        0, named=True
    )


def test_the_mean_is_over_patients_and_not_over_slides():
    found = summarise(table(ROWS), ("0", "3+"), 0.95, kind=KIND)
    row = cell(found, "0", "auc")
    assert row["value"] == pytest.approx((0.7 + 1.0) / 2)
    assert (row["patients"], row["slides"]) == (2, 3)
    assert cell(found, "0", "enrichment")["value"] == pytest.approx((3 + 8) / 2)
    whole = cell(found, "all", "mass_share")
    assert whole["value"] == pytest.approx((0.3 + 0.8 + 0.1 + 0.3) / 4)
    assert (whole["patients"], whole["slides"]) == (4, 5)  # e1 counts nowhere
    assert cell(found, "all", "area_share")["value"] == pytest.approx(0.1)


def test_an_interval_comes_from_patients():
    row = cell(summarise(table(ROWS), ("0", "3+"), 0.95, kind=KIND), "0", "auc")
    # Patients with 0.7 and 1.0, on the logit scale: the standard error is half their difference.
    reach = t.ppf(0.975, 1) * 0.15 / (0.85 * 0.15)
    assert row["low"] == pytest.approx(expit(logit(0.85) - reach))
    assert row["high"] == pytest.approx(expit(logit(0.85) + reach))


def test_a_class_without_held_out_slides_is_a_row_with_its_reason():
    found = summarise(table(ROWS), ("0", "2+", "3+"), 0.95, kind=KIND)
    row = cell(found, "2+", "auc")
    assert (row["value"], row["slides"]) == (None, 0)
    assert row["note"] == "not defined: no held-out slide has a ground truth"


def test_when_no_slide_of_a_class_counts_their_common_reason_is_given():
    row = cell(summarise(table(ROWS[5:]), ("3+",), 0.95, kind=KIND), "3+", "auc")
    assert (row["value"], row["note"]) == (None, "broken")


def test_one_patient_has_a_value_and_no_interval():
    row = cell(summarise(table(ROWS[:2]), ("0",), 0.95, kind=KIND), "0", "auc")
    assert row["value"] == pytest.approx(0.7)
    assert (row["low"], row["high"]) == (None, None)
    assert row["note"] == "interval not defined: 1 patient"


# Which slides


def held(slide_id: str, label: str = "0") -> HeldOutSlide:
    return HeldOutSlide(slide_id, f"p-{slide_id}", label, 0, 0)


@given(st.integers(0, 12), st.integers(0, 100))
def test_slides_are_spread_over_the_classes_as_far_as_they_go(count, seed):
    slides = [held(f"a{i}", "0") for i in range(6)] + [held(f"b{i}", "3+") for i in range(3)]
    chosen = spread(slides, count, seed=seed)
    assert len(chosen) == min(count, 9)
    rare = sum(slide.label == "3+" for slide in chosen)
    assert rare == min(3, count // 2)
    assert chosen == spread(slides, count, seed=seed)


def test_another_seed_draws_other_slides():
    slides = [held(f"a{i}") for i in range(20)]
    assert len({tuple(spread(slides, 3, seed=seed)) for seed in range(5)}) > 1


# Between repeats


@given(st.integers(3, 40), st.integers(0, 10**6), st.booleans())
def test_agreement_is_scipy_s_spearman_averaged_over_pairs(count, seed, ties):
    generator = np.random.default_rng(seed)
    maps = [
        generator.integers(0, 4, count) + 1.0 if ties else generator.random(count) for _ in "123"
    ]
    assume(all(np.ptp(values) > 0 for values in maps))
    expected = np.mean([spearmanr(maps[i], maps[j])[0] for i, j in ((0, 1), (0, 2), (1, 2))])
    assert rank_correlation(maps) == pytest.approx(expected)


def test_the_order_counts_and_not_the_size():
    values = np.random.default_rng(0).random(30)
    assert rank_correlation([values, np.exp(9 * values)]) == pytest.approx(1)
    assert rank_correlation([values, -values]) == pytest.approx(-1)


def test_a_constant_agrees_with_nothing():
    varied = np.array([0.1, 0.4, 0.5])
    assert rank_correlation([varied, np.full(3, 1 / 3)]) is None
    assert rank_correlation([varied]) is None
    # Of three maps the pair that vary is still compared.
    assert rank_correlation([varied, np.full(3, 1 / 3), varied]) == pytest.approx(1)


def test_agreement_is_a_mean_over_patients():
    slides = [HeldOutSlide(f"s{i}", patient, "0", 0, 0) for i, patient in enumerate("aab")]
    found = agreement_table(slides, [0.2, 0.4, 0.9], 0.95, maps=3, why_none="").row(0, named=True)
    assert found["value"] == pytest.approx((0.3 + 0.9) / 2)
    assert (found["slides"], found["pairs"], found["note"]) == (3, 3, "")
    assert found["low"] <= found["value"] <= found["high"]


def test_without_a_second_repeat_or_with_uniform_attention_agreement_says_why():
    one = agreement_table([], [], 0.95, maps=1, why_none="one repeat").row(0, named=True)
    assert (one["value"], one["pairs"]) == (None, 0)
    assert one["note"] == "one repeat"
    flat = agreement_table([held("s")], [None], 0.95, maps=2, why_none="").row(0, named=True)
    assert (flat["value"], flat["slides"]) == (None, 0)
    assert "same attention" in flat["note"]
