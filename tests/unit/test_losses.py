import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from her2.mil.losses import bag_loss, class_logits, members, output_count, output_names

SCORES = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=6)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_a_head_has_an_output_for_each_class_or_each_threshold_between_classes() -> None:
    assert output_count("cross_entropy", 4) == 4
    assert output_count("ordinal", 4) == 3
    assert output_names("cross_entropy", ["0", "1+", "2+"]) == ("0", "1+", "2+")
    assert output_names("ordinal", ["0", "1+", "2+"]) == ("at least 1+", "at least 2+")


def test_ordinal_probabilities_are_products_of_conditional_ones() -> None:
    scores = [0.5, -1.0, 2.0]
    f = [sigmoid(s) for s in scores]
    expected = [1 - f[0], f[0] * (1 - f[1]), f[0] * f[1] * (1 - f[2]), f[0] * f[1] * f[2]]
    logits = class_logits(torch.tensor([scores]), "ordinal")
    np.testing.assert_allclose(logits.exp()[0], expected, rtol=1e-6)  # normalised as they are
    np.testing.assert_allclose(logits.softmax(1)[0], expected, rtol=1e-6)


@settings(max_examples=100)
@given(SCORES)
def test_ordinal_probabilities_sum_to_one_and_passing_never_gets_likelier(
    scores: list[float],
) -> None:
    probabilities = class_logits(torch.tensor([scores]).double(), "ordinal").softmax(1)[0]
    assert len(probabilities) == len(scores) + 1
    assert probabilities.sum().item() == pytest.approx(1)
    assert (probabilities >= 0).all()
    passing = 1 - probabilities.cumsum(0)  # P(y > k)
    assert (passing.diff() <= 1e-12).all()


@settings(max_examples=50)
@given(SCORES, st.data())
def test_a_higher_output_moves_probability_to_higher_classes_only(
    scores: list[float], data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(scores) - 1))
    raised = [*scores[:index], scores[index] + 1, *scores[index + 1 :]]
    before, after = (
        1 - class_logits(torch.tensor([s]).double(), "ordinal").softmax(1)[0].cumsum(0)
        for s in (scores, raised)
    )
    assert (after - before >= -1e-9).all()


def test_the_ordinal_loss_is_the_corn_loss_by_hand() -> None:
    """Return the binary cross-entropies of bags that reach each threshold, per bag."""
    scores = [[0.3, -0.7, 1.1], [-0.2, 0.4, 0.9], [1.5, 0.1, -2.0], [0.8, 0.6, 0.2]]
    labels = [0, 1, 2, 3]
    total = 0.0
    for row, label in zip(scores, labels, strict=True):
        for k in range(3):
            if label >= k:
                f = sigmoid(row[k])
                total -= math.log(f if label > k else 1 - f)
    loss = bag_loss(torch.tensor(scores), torch.tensor(labels), loss="ordinal")
    assert loss.item() == pytest.approx(total / len(labels), rel=1e-6)


def test_the_ordinal_loss_is_the_value_that_coral_pytorch_documents() -> None:
    """The docstring of coral_pytorch.losses.corn_loss has this example, with the value 0.7127.

    There the sum is divided by the number of bag-threshold pairs.
    """
    torch.manual_seed(123)
    features = torch.rand(8, 99)
    labels = torch.tensor([0, 1, 2, 2, 2, 3, 4, 4])
    scores = torch.nn.Linear(99, 4)(features).detach()
    pairs = (labels + 1).clamp(max=4).sum()
    loss = bag_loss(scores, labels, loss="ordinal") * len(labels) / pairs
    assert loss.item() == pytest.approx(0.7127, abs=5e-5)


def test_two_ordered_classes_are_logistic_regression() -> None:
    scores, labels = torch.tensor([[0.4], [-1.3], [2.2]]), torch.tensor([1, 0, 0])
    expected = functional.binary_cross_entropy_with_logits(scores[:, 0], labels.float())
    torch.testing.assert_close(bag_loss(scores, labels, loss="ordinal"), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothing_spreads_a_share_of_the_label_over_all_classes(smoothing: float) -> None:
    torch.manual_seed(0)
    scores, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 2])
    smoothed = bag_loss(scores, labels, loss="cross_entropy", smoothing=smoothing)
    torch.testing.assert_close(
        smoothed, torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(scores, labels)
    )
    log_p = scores.log_softmax(1)
    target = (1 - smoothing) * functional.one_hot(labels, 4) + smoothing / 4
    torch.testing.assert_close(smoothed, -(target * log_p).sum(1).mean())


def test_smoothing_of_ordered_classes_smooths_the_same_probabilities() -> None:
    torch.manual_seed(0)
    scores, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 3])
    log_p = class_logits(scores, "ordinal")
    target = 0.9 * functional.one_hot(labels, 4) + 0.1 / 4
    torch.testing.assert_close(
        bag_loss(scores, labels, loss="ordinal", smoothing=0.1), -(target * log_p).sum(1).mean()
    )


def test_class_weights_weigh_bags_by_their_class() -> None:
    torch.manual_seed(0)
    scores, labels = torch.randn(4, 2), torch.tensor([0, 1, 2, 2])
    weights = torch.tensor([1.0, 4.0, 2.0])
    each = -class_logits(scores, "ordinal")[range(4), labels]
    torch.testing.assert_close(
        bag_loss(scores, labels, loss="ordinal", weights=weights),
        (each * weights[labels]).sum() / weights[labels].sum(),
    )


def test_a_bag_is_a_member_of_its_class_or_of_each_threshold_it_passes() -> None:
    labels = torch.tensor([0, 2, 3])
    assert members(labels, "cross_entropy", 4).int().tolist() == [
        [1, 0, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
    ]
    assert members(labels, "ordinal", 3).int().tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("loss", ["cross_entropy", "ordinal"])
def test_extreme_and_half_precision_outputs_give_a_finite_loss_and_gradient(loss: str) -> None:
    scores = torch.tensor([[300.0, -300.0, 300.0]], dtype=torch.bfloat16, requires_grad=True)
    value = bag_loss(scores, torch.tensor([2]), loss=loss, smoothing=0.1)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(scores.grad).all()
