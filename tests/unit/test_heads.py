import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from her2.heads.abmil import AttentionSection

D, C = 6, 3


pytestmark = pytest.mark.usefixtures("one_thread")


def head(*, gated: bool, hidden: int = 0, dropout: float = 0.25, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    options = AttentionSection(
        head="abmil", attention=5, gated=gated, hidden=hidden, dropout=dropout
    )
    return options.build(D, C).eval().requires_grad_(False)


def bags(b: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(b, n, D), torch.ones(b, n, dtype=torch.bool)


def by_hand(model: torch.nn.Module, bag: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute equations 8 and 9 of Ilse 2018 for one bag (n, d), in float64 and without torch."""
    p = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    h = bag.astype(float)
    if "project.0.weight" in p:
        h = np.maximum(0, h @ p["project.0.weight"].T + p["project.0.bias"])
    a = np.tanh(h @ p["value.weight"].T + p["value.bias"])
    if "gate.weight" in p:
        a = a / (1 + np.exp(-(h @ p["gate.weight"].T + p["gate.bias"])))
    scores = (a @ p["score.weight"].T + p["score.bias"])[:, 0]
    weights = np.exp(scores) / np.exp(scores).sum()
    return p["classifier.weight"] @ (weights @ h) + p["classifier.bias"], weights


@pytest.mark.parametrize("hidden", [0, 7])
@pytest.mark.parametrize("gated", [True, False])
def test_abmil_is_the_equation_of_the_paper(gated: bool, hidden: int) -> None:
    model = head(gated=gated, hidden=hidden)
    features, mask = bags(2, 4)
    output = model(features, mask)
    assert output.logits.shape == (2, C)
    for index in range(2):
        logits, weights = by_hand(model, features[index].numpy())
        np.testing.assert_allclose(output.logits[index], logits, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(output.attention[index], weights, rtol=1e-4)


def test_the_gate_is_there_only_when_asked_for() -> None:
    assert "gate.weight" in head(gated=True).state_dict()
    assert "gate.weight" not in head(gated=False).state_dict()


@settings(max_examples=30)
@given(order=st.permutations(range(7)), gated=st.booleans(), hidden=st.sampled_from([0, 4]))
def test_the_order_of_instances_changes_no_logit(
    order: list[int], gated: bool, hidden: int
) -> None:
    model = head(gated=gated, hidden=hidden)
    features, mask = bags(2, 7)
    straight, shuffled = model(features, mask), model(features[:, order], mask)
    torch.testing.assert_close(shuffled.logits, straight.logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(shuffled.attention, straight.attention[:, order])


@settings(max_examples=30)
@given(
    padding=st.integers(1, 9),
    filling=st.sampled_from([0.0, 1.0, -3e4, 1e6]),
    gated=st.booleans(),
    hidden=st.sampled_from([0, 4]),
)
def test_masked_padding_changes_nothing(
    padding: int, filling: float, gated: bool, hidden: int
) -> None:
    model = head(gated=gated, hidden=hidden)
    features, mask = bags(2, 5)
    padded = torch.cat([features, torch.full((2, padding, D), filling)], dim=1)
    wide = torch.cat([mask, torch.zeros(2, padding, dtype=torch.bool)], dim=1)
    plain, output = model(features, mask), model(padded, wide)
    torch.testing.assert_close(output.logits, plain.logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.attention[:, :5], plain.attention)


@settings(max_examples=30)
@given(
    counts=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    scale=st.sampled_from([1.0, 100.0]),
    gated=st.booleans(),
)
def test_attention_sums_to_one_and_is_zero_where_masked(
    counts: list[int], scale: float, gated: bool
) -> None:
    features, _ = bags(len(counts), 8)
    mask = torch.arange(8)[None] < torch.tensor(counts)[:, None]
    attention = head(gated=gated)(scale * features, mask).attention
    torch.testing.assert_close(attention.sum(1), torch.ones(len(counts)))
    assert (attention[~mask] == 0).all()
    assert (attention >= 0).all()


def test_a_bag_of_one_instance_is_classified_by_it_alone() -> None:
    model = head(gated=True)
    features, mask = bags(1, 1)
    expected = model.classifier(features[:, 0])
    torch.testing.assert_close(model(features, mask).logits, expected)


def test_bags_of_a_batch_do_not_see_each_other() -> None:
    model = head(gated=True)
    features, mask = bags(3, 5)
    alone = model(features[1:2], mask[1:2])
    together = model(features, mask)
    torch.testing.assert_close(together.logits[1:2], alone.logits, rtol=1e-5, atol=1e-6)


def test_gradients_stay_finite_when_most_of_a_bag_is_masked() -> None:
    model = head(gated=True, dropout=0.0).requires_grad_(True)
    features, mask = bags(2, 6)
    mask[:, 1:] = False
    model(features, mask).logits.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_dropout_acts_in_training_only() -> None:
    model = head(gated=True, dropout=0.5)
    features, mask = bags(1, 4)
    still = model(features, mask).logits
    torch.testing.assert_close(model(features, mask).logits, still, rtol=0, atol=0)
    assert not torch.equal(model.train()(features, mask).logits, still)
