"""Deletion and insertion: the curves are what the model says of the tiles that are there."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import t
from torch import Tensor

from her2.config.heads import HEADS
from her2.explanation.faithfulness import (
    ORDERS,
    SHARES,
    Followed,
    area_between,
    faithfulness_tables,
    follow,
    predict_subsets,
    why_not_followed,
)
from her2.explanation.held_out import HeldOutSlide
from her2.heads.layers import Head, Output
from her2.heads.mean import MeanSection
from her2.mil.bags import Bag
from her2.mil.model import Model, predict
from tests.unit.bag_makers import D, bag

TILES = 40


class OneTile(Head):
    """Positive where any tile's first feature is large, and attends to it."""

    def __init__(self) -> None:
        super().__init__(MeanSection(dropout=0.0), D)

    def pool(self, parts: tuple[Tensor, ...], mask: Tensor) -> Output:
        evidence = parts[0][..., 0].masked_fill(~mask, -torch.inf)  # (b, n)
        most = evidence.max(dim=1).values
        return Output(torch.stack([4 - most, most - 4], dim=1), evidence.softmax(dim=1))


def model(head: Head, loss: str = "cross_entropy") -> Model:
    return Model(head, torch.zeros(D), torch.ones(D), loss).eval()


ONE_TILE = partial(predict_subsets, model(OneTile()))


def one_tile(*, seed: int = 0) -> Bag:
    """A bag whose evidence is one tile."""
    features = np.random.default_rng(seed).normal(scale=0.1, size=(TILES, D)).astype(np.float32)
    features[17, 0] = 9
    return bag("one", features, 1)


def test_evidence_in_one_tile_is_lost_at_once_by_attention_and_late_by_chance():
    whole = one_tile()
    found = predict(model(OneTile()), whole)
    curves = follow(ONE_TILE, whole, found.attention, seed=3)
    by_attention, random = curves["deletion", "attention"], curves["deletion", "random"]
    assert by_attention[0] == pytest.approx(random[0])
    assert random[0] > 0.99
    assert (by_attention[1:] < 0.01).all()
    # A random order still has the tile among the (1 - share) that stay, in so many of five.
    assert random[1] > 0.75
    assert area_between(curves, "deletion") > 0.3
    # Given first it is all that is needed, at once.
    assert (curves["insertion", "attention"] > 0.99).all()
    assert curves["insertion", "random"][0] < 0.5
    assert area_between(curves, "insertion") > 0.2


def test_attention_that_points_elsewhere_is_found_out():
    whole = one_tile()
    away = np.linspace(1, 2, TILES)
    away[17] = 0
    curves = follow(ONE_TILE, whole, away, seed=3)
    assert area_between(curves, "deletion") < 0
    assert area_between(curves, "insertion") < 0


def test_a_model_that_needs_no_tile_in_particular_gives_areas_of_zero():
    same = bag("same", np.ones((TILES, D), np.float32), 1)
    curves = follow(ONE_TILE, same, np.arange(TILES), seed=3)
    assert area_between(curves, "deletion") == pytest.approx(0)
    assert area_between(curves, "insertion") == pytest.approx(0)


@pytest.mark.parametrize("name", [name for name in HEADS if HEADS[name].trained_by_gradient])
@pytest.mark.parametrize("loss", ["cross_entropy", "ordinal"])
def test_of_every_head_a_point_is_what_it_predicts_of_the_bag_of_the_remaining_tiles(name, loss):
    torch.manual_seed(1)
    options = HEADS[name](head=name)
    of = model(options.build(D, 3 if loss == "cross_entropy" else 2), loss)
    features = np.random.default_rng(2).normal(size=(30, D)).astype(np.float32)
    whole = bag("w", features, 0)
    attention = np.random.default_rng(3).random(30)
    curves = follow(partial(predict_subsets, of), whole, attention, seed=0)
    full = predict(of, whole).probabilities
    order = np.argsort(-attention)
    for index, share in enumerate(SHARES["deletion"]):
        rest = bag("r", features[np.sort(order[round(30 * share) :])], 0)
        expected = predict(of, rest).probabilities[full.argmax()]
        assert curves["deletion", "attention"][index] == pytest.approx(expected, abs=1e-5)
    for index, share in enumerate(SHARES["insertion"]):
        given = bag("g", features[np.sort(order[: round(30 * share)])], 0)
        expected = predict(of, given).probabilities[full.argmax()]
        assert curves["insertion", "attention"][index] == pytest.approx(expected, abs=1e-5)
    for order_name in ORDERS:
        assert curves["deletion", order_name][0] == pytest.approx(full.max(), abs=1e-6)
        assert curves["insertion", order_name][-1] == pytest.approx(full.max(), abs=1e-6)


def test_a_slide_of_one_tile_keeps_it():
    single = bag("s", np.full((1, D), 9, np.float32), 1)
    curves = follow(ONE_TILE, single, np.ones(1), seed=0)
    assert all((values > 0.99).all() for values in curves.values())


def test_random_orders_are_those_of_the_seed():
    whole = one_tile()
    first, again, other = (
        follow(ONE_TILE, whole, np.arange(TILES), seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first["deletion", "random"], again["deletion", "random"])
    assert (first["deletion", "random"] != other["deletion", "random"]).any()


def test_attention_of_another_bag_is_refused():
    with pytest.raises(ValueError, match="attention of 3 tiles for a bag of 40"):
        follow(ONE_TILE, one_tile(), np.ones(3), seed=0)


# The cohort


def made(slide_id: str, patient: str, label: str, gain: float) -> Followed:
    """Attention's curves lie `gain` above (deletion: below) 0.5 everywhere, random's on it."""
    curves = {}
    for curve, shares in SHARES.items():
        sign = -1 if curve == "deletion" else 1
        curves[curve, "random"] = np.full(len(shares), 0.5)
        curves[curve, "attention"] = np.full(len(shares), 0.5 + sign * gain)
    return Followed(HeldOutSlide(slide_id, patient, label, 0, 0), curves)


FOLLOWED = [
    made("a1", "a", "0", 0.1), made("a2", "a", "0", 0.3), made("b1", "b", "0", 0.4),
    made("c1", "c", "3+", 0.0), made("d1", "d", "3+", 0.2),
]  # fmt: skip


def test_the_summary_is_the_mean_height_between_the_curves_over_patients():
    curves, summary = faithfulness_tables(FOLLOWED, 0.95, why_none="")
    for row in summary.iter_rows(named=True):
        assert row["value"] == pytest.approx((0.2 + 0.4 + 0.0 + 0.2) / 4)
        assert (row["slides"], row["patients"], row["note"]) == (5, 4, "")
        # Within both classes the two patients are 0.1 from their mean; Fisher's z of a mean of 0.2.
        reach = t.ppf(0.975, 2) * np.sqrt(4 * 0.1**2 / 2 / 4) / (1 - 0.2**2)
        assert row["low"] == pytest.approx(np.tanh(np.arctanh(0.2) - reach))
        assert row["high"] == pytest.approx(np.tanh(np.arctanh(0.2) + reach))
    assert len(curves) == 2 * sum(map(len, SHARES.values()))
    row = curves.row(0, named=True)
    assert (row["curve"], row["order"], row["share"]) == ("deletion", "attention", 0)
    assert row["value"] == pytest.approx(0.5 - 0.2)


def test_the_area_follows_the_trapezoid_rule():
    item = made("a", "a", "0", 0.0)
    shares = np.array(SHARES["deletion"])
    item.curves["deletion", "attention"] = 0.5 - shares  # a triangle of height 0.95
    assert area_between(item.curves, "deletion") == pytest.approx(0.95 / 2)


@pytest.mark.parametrize(("asked", "why"), [(3, "same attention"), (0, "faithfulness_slides")])
def test_without_a_curve_the_summary_says_why(asked, why):
    curves, summary = faithfulness_tables(
        [], 0.95, why_none=why_not_followed(asked, "held-out slide")
    )
    assert len(curves) == 0
    assert summary["value"].to_list() == [None, None]
    assert all(why in note for note in summary["note"])
