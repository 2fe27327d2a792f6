from statistics import fmean

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from her2.config.heads import HEADS as SECTIONS
from her2.heads import HeadOptions
from her2.heads.abmil import AttentionSection
from her2.heads.clam import ClamMBSection, ClamSBSection, smooth_top1_svm
from her2.heads.dsmil import DualStreamSection
from her2.heads.layers import (
    FeatureDropout,
    InstanceSupervised,
    NystromAttention,
    Output,
    nystrom,
    pseudo_inverse,
    segment_means,
    tanh,
)
from her2.heads.max import MaxSection
from her2.heads.mean import MeanSection
from her2.heads.multibranch import MultiBranchSection
from her2.heads.transmil import TransMILSection
from her2.mil.losses import members

D, C = 6, 3
SMALL = {
    "attention": 8, "classifier": 7, "dropout": 0.0, "hidden": 16, "instances": 3, "query": 4,
    "subtyping": True,
}  # fmt: skip
"""Values of heads' options that make tests quick and free of randomness."""


def small(name: str) -> HeadOptions:
    """Build a head with small options; without a projection where the default is none."""
    fields = SECTIONS[name].model_fields
    options = {key: value for key, value in SMALL.items() if key in fields}
    if "hidden" in fields and fields["hidden"].default == 0:
        options["hidden"] = 0
    return SECTIONS[name].model_validate({"head": name, **options})


HEADS: dict[str, HeadOptions] = {name: small(name) for name in SECTIONS} | {
    "mean_projected": MeanSection(hidden=8, dropout=0.0),
    "max_projected": MaxSection(hidden=16, dropout=0.0),
    "multibranch_tanh": MultiBranchSection(attention=8, gated=False, hidden=16, dropout=0.0),
    "dsmil_projected": DualStreamSection(query=4, hidden=16, dropout=0.0),
    "transmil_nystrom": TransMILSection(hidden=16, landmarks=4),
}
ORDER_FREE = [name for name, options in HEADS.items() if not options.reads_order]

every_head = pytest.mark.parametrize("name", HEADS)


pytestmark = pytest.mark.usefixtures("one_thread")


def build(name: str, d: int = D, o: int = C, seed: int = 0, **changed: object) -> nn.Module:
    torch.manual_seed(seed)
    return HEADS[name].model_copy(update=changed).build(d, o).eval()


def bags(*counts: int, seed: int = 0, width: int = 0) -> tuple[Tensor, Tensor]:
    """Return bags of these sizes, padded with a value that would be noticed."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(*counts, width))[None] < torch.tensor(counts)[:, None]
    features = torch.randn(*mask.shape, D, generator=generator)
    return features.masked_fill(~mask[:, :, None], 1e4), mask


def maps(output: Output) -> Tensor:
    """Return the attention as (b, n, m)."""
    return output.attention if output.attention.ndim == 3 else output.attention[:, :, None]


# What every head promises


@every_head
def test_shapes_are_those_of_the_contract(name: str) -> None:
    output = build(name)(*bags(5, 9))
    assert output.logits.shape == (2, C)
    assert output.attention.shape in {(2, 9), (2, 9, C)}


@pytest.mark.parametrize("name", ORDER_FREE)
@settings(max_examples=10)
@given(order=st.permutations(range(7)))
def test_the_order_of_instances_changes_no_logit(name: str, order: list[int]) -> None:
    model, (features, mask) = build(name), bags(7, 7)
    straight, shuffled = model(features, mask), model(features[:, order], mask)
    torch.testing.assert_close(shuffled.logits, straight.logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        shuffled.attention, straight.attention[:, order], rtol=1e-5, atol=1e-6
    )


@every_head
def test_padding_with_masked_instances_changes_nothing(name: str) -> None:
    model = build(name)
    features, mask = bags(5, 8)
    plain = model(features, mask)
    for width, filling in [(9, 0.0), (17, -3e4), (30, 1e6)]:
        wide, wide_mask = bags(5, 8, width=width)
        wide[:, :8], wide[:, 8:] = features, filling
        padded = model(wide, wide_mask)
        torch.testing.assert_close(padded.logits, plain.logits, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(padded.attention[:, :8], plain.attention, rtol=1e-5, atol=1e-6)


@every_head
def test_where_the_masked_instances_stand_does_not_matter(name: str) -> None:
    model, (features, mask) = build(name), bags(6, 6)
    plain = model(features, mask)
    places = [0, 3, 4, 7, 8, 10]
    sparse, sparse_mask = torch.full((2, 11, D), 50.0), torch.zeros(2, 11, dtype=torch.bool)
    sparse[:, places], sparse_mask[:, places] = features, True
    torch.testing.assert_close(
        model(sparse, sparse_mask).logits, plain.logits, rtol=1e-5, atol=1e-6
    )


@every_head
def test_attention_sums_to_one_and_is_zero_where_masked(name: str) -> None:
    features, mask = bags(1, 2, 5, 12)
    for scale in (1.0, 100.0):
        weights = maps(build(name)(scale * features, mask))
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(4, weights.shape[2]))
        assert (weights[~mask] == 0).all()
        assert (weights >= 0).all()


@every_head
def test_bags_of_a_batch_do_not_see_each_other(name: str) -> None:
    model, (features, mask) = build(name), bags(4, 7, 3)
    together = model(features, mask)
    for index in range(3):
        alone = model(features[index : index + 1], mask[index : index + 1])
        torch.testing.assert_close(alone.logits[0], together.logits[index], rtol=1e-5, atol=1e-6)


@every_head
def test_a_bag_of_one_tile_is_classified_and_trains(name: str) -> None:
    model, (features, mask) = build(name).train(), bags(1)
    output = model(features, mask)
    torch.testing.assert_close(maps(output)[0, 0], torch.ones(maps(output).shape[2]))
    loss(model, output, mask, torch.tensor([1])).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@every_head
def test_gradients_reach_all_parameters(name: str) -> None:
    model, (features, mask) = build(name).train(), bags(9, 12, 10, 7)
    loss(model, model(features, mask), mask, torch.tensor([0, 1, 2, 1])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        if not shifts_all_scores_alike(parameter_name):
            assert parameter.grad.abs().sum() > 0, parameter_name


def shifts_all_scores_alike(parameter: str) -> bool:
    """A softmax over instances does not depend on the bias of its scores."""
    return parameter.endswith("score.bias")


@every_head
def test_mixed_precision_gives_no_nan_and_about_the_same_logits(name: str) -> None:
    model, (features, mask) = build(name), bags(9, 12, 1, seed=3)
    exact = model(features.masked_fill(~mask[:, :, None], 0), mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(features, mask)
        total = loss(model, output, mask, torch.tensor([0, 1, 2]))
    total.backward()
    assert torch.isfinite(output.logits).all()
    assert torch.isfinite(output.attention).all()
    assert output.attention.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    torch.testing.assert_close(output.logits.float(), exact.logits, rtol=0.1, atol=0.1)


def loss(model: nn.Module, output: Output, mask: Tensor, labels: Tensor) -> Tensor:
    """Return the loss that the training loop minimises."""
    value = functional.cross_entropy(output.logits.float(), labels)
    if isinstance(model, InstanceSupervised):
        belongs = members(labels, "cross_entropy", output.logits.shape[1])
        w = model.instance_weight
        value = (1 - w) * value + w * model.instance_loss(output, mask, belongs)
    return value


# A problem that needs instances


def planted(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return bags (count, 12, d) of the same parts, whose combination determines the class.

    Each bag has one instance of each colour, one of which is marked, and its colour is the
    class. So the mean of a bag is that of the noise, which is removed: all bags have mean zero.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % C
    features = 0.3 * torch.randn(count, 12, D, generator=generator)
    places = torch.rand(count, 12, generator=generator).argsort(dim=1)  # of colour 0, 1, ...
    rows = torch.arange(count)
    for colour in range(C):
        features[rows, places[:, colour], 1 + colour] += 3
    key = places[rows, labels]
    features[rows, key, 0] += 3
    return features - features.mean(dim=1, keepdim=True), key, labels


def everything(features: Tensor) -> Tensor:
    return torch.ones(features.shape[:2], dtype=torch.bool)


def trained(name: str) -> nn.Module:
    model = build(name, seed=1).train()
    features, _, labels = planted(120, seed=0)
    mask = everything(features)
    steps, size = (60, 8) if name.startswith("transmil") else (200, 16)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(labels), (size,), generator=generator)
        output = model(features[batch], mask[batch])
        optimiser.zero_grad()
        loss(model, output, mask[batch], labels[batch]).backward()
        optimiser.step()
    return model.eval().requires_grad_(False)


# So few landmarks for so few tiles blur a single one of them.
SOLVERS = [
    name for name, options in HEADS.items() if not options.even and name != "transmil_nystrom"
]


@pytest.mark.parametrize("name", SOLVERS)
def test_a_key_instance_is_found_where_the_mean_tells_nothing(name: str) -> None:
    features, _, labels = planted(90, seed=1)
    logits = trained(name)(features, everything(features)).logits
    assert (logits.argmax(1) == labels).float().mean() > 0.9


def test_mean_pooling_cannot_solve_the_planted_problem() -> None:
    """All bags have mean zero, so a linear model of the mean predicts the same for each."""
    features, _, labels = planted(90, seed=1)
    logits = trained("mean")(features, everything(features)).logits
    torch.testing.assert_close(logits, logits[:1].expand(90, C), rtol=0, atol=1e-5)
    assert (logits.argmax(1) == labels).float().mean() == pytest.approx(1 / C, abs=0.15)
    means = features.mean(dim=1).numpy().round(5)
    assert LogisticRegression().fit(means, labels).score(means, labels) == pytest.approx(1 / C)


@pytest.mark.parametrize("name", ["max", "abmil", "multibranch", "clam_sb", "clam_mb", "additive"])
def test_attention_points_at_the_key_instance_of_all_classes_but_one(name: str) -> None:
    """One class can be recognised by the absence of evidence for the others."""
    features, key, labels = planted(90, seed=1)
    weights = maps(trained(name)(features, everything(features)))
    own = weights[range(90), :, labels if weights.shape[2] == C else 0]  # the class's map
    found = (own.argmax(1) == key).float()
    assert sum(found[labels == c].mean() > 0.9 for c in range(C)) >= C - 1


def test_additive_contributions_point_at_the_key_instance_of_all_classes_but_one() -> None:
    features, key, labels = planted(90, seed=1)
    contribution = trained("additive")(features, everything(features)).contribution
    found = (contribution[range(90), :, labels].argmax(1) == key).float()
    assert sum(found[labels == c].mean() > 0.9 for c in range(C)) >= C - 1


# The equations, by hand in numpy


def numbers(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}


def softmax(scores: np.ndarray) -> np.ndarray:
    return np.exp(scores) / np.exp(scores).sum(axis=0)


def by_hand_attention(p: dict[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute instances (n, width) and weights (n, m) of gated attention."""

    def linear(name: str, values: np.ndarray) -> np.ndarray:
        return values @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    h = np.maximum(0, linear("project.0", x))
    return h, softmax(
        linear("score", np.tanh(linear("value", h)) / (1 + np.exp(-linear("gate", h))))
    )


def check(output: Output, logits: np.ndarray, attention: np.ndarray) -> None:
    np.testing.assert_allclose(output.logits[0].detach(), logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.attention[0].detach(), attention, rtol=1e-4, atol=1e-6)


def one_bag(n: int = 5) -> tuple[Tensor, Tensor, np.ndarray]:
    features, mask = bags(n)
    return features, mask, features[0].double().numpy()


def test_mean_pooling_is_the_equation() -> None:
    model, (features, mask, x) = build("mean"), one_bag()
    p = numbers(model)
    logits = p["classifier.weight"] @ x.mean(axis=0) + p["classifier.bias"]
    check(model(features, mask), logits, np.full(5, 0.2))


def test_the_perceptron_is_the_equation() -> None:
    model, (features, mask, x) = build("mlp", layers=(5, 3)), one_bag()
    p = numbers(model)
    hidden = x.mean(axis=0)
    for layer in ("hidden.0", "hidden.3"):
        hidden = np.maximum(p[f"{layer}.weight"] @ hidden + p[f"{layer}.bias"], 0)
    logits = p["classifier.weight"] @ hidden + p["classifier.bias"]
    check(model(features, mask), logits, np.full(5, 0.2))


def test_max_pooling_is_the_equation() -> None:
    model, (features, mask, x) = build("max"), one_bag()
    p = numbers(model)
    scores = x @ p["classifier.weight"].T + p["classifier.bias"]
    check(model(features, mask), scores.max(axis=0), scores == scores.max(axis=0))


@pytest.mark.parametrize("name", ["multibranch", "clam_mb"])
def test_multibranch_is_the_equation(name: str) -> None:
    model, (features, mask, x) = build(name), one_bag()
    p = numbers(model)
    h, weights = by_hand_attention(p, x)
    logits = [
        p["classifier.weight"][c] @ (weights[:, c] @ h) + p["classifier.bias"][c] for c in range(C)
    ]
    check(model(features, mask), np.array(logits), weights)


def test_single_branch_clam_is_abmil() -> None:
    model, (features, mask, x) = build("clam_sb"), one_bag()
    p = numbers(model)
    h, weights = by_hand_attention(p, x)
    logits = p["classifier.weight"] @ (weights[:, 0] @ h) + p["classifier.bias"]
    check(model(features, mask), logits, weights[:, 0])


def test_dsmil_is_the_equation() -> None:
    model, (features, mask, x) = build("dsmil"), one_bag()
    p = numbers(model)
    scores = x @ p["instance.weight"].T + p["instance.bias"]
    q = x @ p["query.weight"].T + p["query.bias"]
    v = x @ p["value.weight"].T + p["value.bias"]
    weights = softmax(q @ q[scores.argmax(axis=0)].T / np.sqrt(4))
    bag_embedding = weights.T @ v  # (o, d)
    second = p["classifier.weight"] @ bag_embedding.ravel() + p["classifier.bias"]
    check(model(features, mask), (scores.max(axis=0) + second) / 2, weights)


def test_additive_is_the_equation_and_its_contributions_are_the_logits() -> None:
    model, (features, mask, x) = build("additive"), one_bag()
    p = numbers(model)
    h, weights = by_hand_attention(p, x)
    # As in the paper, psi(a h), where psi has no bias; the bias enters once a bag.
    psi = np.maximum(0, weights * h @ p["classifier.0.weight"].T) @ p["classifier.2.weight"].T
    output = model(features, mask)
    check(output, psi.sum(axis=0) + p["classifier.2.bias"], weights[:, 0])
    torch.testing.assert_close(output.contribution.sum(dim=1), output.logits)


def test_masked_instances_contribute_nothing() -> None:
    features, mask = bags(3, 6)
    assert (build("additive")(features, mask).contribution[~mask] == 0).all()


@pytest.mark.parametrize("repeats", [2, 10])
def test_additive_logits_do_not_grow_with_the_number_of_tiles(repeats: int) -> None:
    model, (features, mask) = build("additive"), bags(5)
    many = model(features.repeat(1, repeats, 1), mask.repeat(1, repeats))
    torch.testing.assert_close(many.logits, model(features, mask).logits)


# CLAM's instance loss


def test_the_smooth_svm_is_the_formula_of_its_paper() -> None:
    scores = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)) * 5
    for label in (0, 1):
        margin = torch.tensor([float(label != 0), float(label != 1)])
        expected = (scores + margin).exp().sum(1).log() - scores[:, label]
        torch.testing.assert_close(smooth_top1_svm(scores, label), expected)


@pytest.mark.parametrize("name", ["clam_sb", "clam_mb"])
@pytest.mark.parametrize("subtyping", [False, True])
def test_the_instance_loss_is_the_one_by_hand(name: str, subtyping: bool) -> None:
    """With B = 3, bags of 9 and 5 tiles have 3 and 2 labelled at each end."""
    model = build(name, subtyping=subtyping)
    features, mask = bags(9, 5)
    output = model(features, mask)
    labels = torch.tensor([2, 0])

    def hinge(scores: np.ndarray, label: int) -> float:
        return float(np.log1p(np.exp(1 + scores[1 - label] - scores[label])))

    total = 0.0
    for index, (n, k) in enumerate([(9, 3), (5, 2)]):
        weights = maps(output)[index, :n].detach().double().numpy()
        scores = output.instances[index, :n].detach().double().numpy()  # (n, o, 2)
        terms: list[float] = []
        for c in range(C):
            order = np.argsort(-weights[:, c if weights.shape[1] == C else 0])
            first, last = scores[order[:k], c], scores[order[-k:], c]
            if c == labels[index]:
                terms.append(fmean([hinge(s, 1) for s in first] + [hinge(s, 0) for s in last]))
            elif subtyping:
                terms.append(fmean(hinge(s, 0) for s in first))
        total += (sum(terms) / C if subtyping else sum(terms)) / 2
    belongs = members(labels, "cross_entropy", C)
    assert model.instance_loss(output, mask, belongs).item() == pytest.approx(total, rel=1e-5)


def test_the_instance_loss_moves_no_attention_score_but_the_tiles_themselves() -> None:
    model, (features, mask) = build("clam_mb"), bags(9, 8)
    belongs = members(torch.tensor([1, 2]), "cross_entropy", C)
    model.instance_loss(model(features, mask), mask, belongs).backward()
    assert model.score.weight.grad is None
    assert model.project[0].weight.grad.abs().sum() > 0


def test_a_bag_below_all_thresholds_has_no_tile_in_a_class() -> None:
    model, (features, mask) = build("clam_mb", o=C - 1, subtyping=False), bags(8)
    output = model(features, mask)
    losses = [
        model.instance_loss(output, mask, members(torch.tensor([label]), "ordinal", C - 1)).item()
        for label in range(C)
    ]
    assert losses[0] == 0 < losses[1] < losses[2]


# TransMIL's parts


def test_transmil_reads_the_order_of_tiles() -> None:
    """PPEG convolves over tiles in their given order, as in the paper."""
    model, (features, mask) = build("transmil"), bags(9)
    straight, turned = model(features, mask), model(features.flip(1), mask)
    assert (straight.logits - turned.logits).abs().max() > 1e-4


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 10, 16, 17])
def test_transmil_fills_the_square_with_the_first_tiles(n: int) -> None:
    model, (features, mask) = build("transmil"), bags(n)
    side = int(np.ceil(np.sqrt(n)))
    full = torch.cat([features, features[:, : side**2 - n]], dim=1)
    output, filled = model(features, mask), model(full, torch.ones(1, side**2, dtype=torch.bool))
    torch.testing.assert_close(output.logits, filled.logits)
    folded = filled.attention[:, :n].clone()
    folded[:, : side**2 - n] += filled.attention[:, n:]
    torch.testing.assert_close(output.attention, folded)


def test_transmil_is_its_layers_in_the_order_of_the_paper() -> None:
    model, (features, mask) = build("transmil"), bags(3)
    first, second = model.layers
    assert isinstance(model.token, Tensor)
    tiles = model.project(features[0])  # (3, hidden)
    x = torch.cat([model.token, tiles, tiles[:1]])  # 1 + 2 x 2 tokens
    x = x + first(functional.layer_norm(x, [16]))[0]
    grid = x[1:].T.reshape(1, 16, 2, 2)  # row by row
    mixed = grid.clone()
    for convolution, size in zip(model.convolutions, (7, 5, 3), strict=True):
        assert convolution.weight.shape == (16, 1, size, size)
        mixed += functional.conv2d(
            grid, convolution.weight, convolution.bias, padding=size // 2, groups=16
        )
    x = torch.cat([x[:1], mixed.reshape(16, 4).T])
    x = x + second(functional.layer_norm(x, [16]))[0]
    expected = model.classifier(functional.layer_norm(x[0], [16]))
    torch.testing.assert_close(model(features, mask).logits[0], expected)


def test_short_sequences_have_exact_attention() -> None:
    q, k, v = torch.randn(3, 8, 20, 4, generator=torch.Generator().manual_seed(0))
    expected = functional.scaled_dot_product_attention(q, k, v, scale=1.0)
    torch.testing.assert_close(nystrom(q, k, v, landmarks=20), expected, rtol=1e-4, atol=1e-5)


def test_a_layer_is_multi_head_attention_beside_its_convolution() -> None:
    torch.manual_seed(0)
    layer, x = NystromAttention(16, landmarks=99).eval(), torch.randn(10, 16)
    nn.init.zeros_(layer.skip.weight)
    out, row = layer(x)
    expected, weights = functional.multi_head_attention_forward(
        *[x[:, None]] * 3,
        embed_dim_to_check=16,
        num_heads=8,
        in_proj_weight=layer.qkv.weight,
        in_proj_bias=None,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=layer.out[0].weight,
        out_proj_bias=layer.out[0].bias,
        training=False,
    )
    torch.testing.assert_close(out, expected[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(row, weights[0, 0], rtol=1e-4, atol=1e-6)


def test_the_nystrom_form_is_exact_where_segments_are_constant() -> None:
    """Where tokens repeat within each segment, the approximation by landmarks is exact."""
    few = 3 * torch.randn(3, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    q, k, v = few.repeat_interleave(5, dim=2)
    k = q  # a well conditioned middle matrix
    expected = functional.scaled_dot_product_attention(q, k, v, scale=1.0)
    torch.testing.assert_close(nystrom(q, k, v, landmarks=6), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("n", "count"), [(10, 3), (12, 4), (7, 7), (11, 10)])
def test_segments_are_those_of_array_split(n: int, count: int) -> None:
    x = torch.randn(2, n, 3, generator=torch.Generator().manual_seed(0))
    expected = np.stack([p.mean(axis=1) for p in np.array_split(x.numpy(), count, axis=1)], axis=1)
    np.testing.assert_allclose(segment_means(x, count), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("diagonal", "iterations"), [(6, 6), (4, 10)])
def test_the_iteration_finds_the_pseudo_inverse(diagonal: int, iterations: int) -> None:
    """The condition numbers are 2 and 19; the paper uses six iterations."""
    scores = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0))
    matrix = (scores + diagonal * torch.eye(16)).softmax(dim=2)
    expected = torch.linalg.pinv(matrix)
    torch.testing.assert_close(pseudo_inverse(matrix, iterations), expected, rtol=1e-3, atol=1e-3)


# Sizes of the published configurations, counted from their layers


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        # Ilse 2018, MNIST bags: 500 features, 128 hidden, one logit.
        (
            AttentionSection(gated=False, hidden=0).build(500, 1),
            (500 * 128 + 128) + (128 + 1) + (500 + 1),
        ),
        # CLAM "small": 1024 - 512, gated attention 256, two classes with two instance scores.
        (ClamSBSection().build(1024, 2), 790_791),
        (ClamMBSection().build(1024, 2), 791_048),
        # DSMIL: instance 1024 - 2, query 128, value 1024, and a convolution 2 x 2 x 1024.
        (DualStreamSection().build(1024, 2), 1_186_948),
        # TransMIL: 512 wide, 8 heads, 2 layers, kernels 7, 5, 3.
        (TransMILSection().build(1024, 2), 2_672_146),
    ],
    ids=["abmil", "clam_sb", "clam_mb", "dsmil", "transmil"],
)
def test_parameters_are_as_many_as_published(model: nn.Module, expected: int) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


# Dropout of features


@pytest.mark.parametrize("probability", [0.05, 0.25, 0.5])
def test_features_are_dropped_as_often_as_asked_and_keep_their_mean(probability: float) -> None:
    torch.manual_seed(0)
    dropout = FeatureDropout(probability)
    dropped = dropout(torch.ones(100, 999))  # not a multiple of eight
    share = (dropped == 0).float().mean().item()
    assert share == pytest.approx(probability, abs=1 / 512 + 0.005)
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    assert dropped.unique().numel() == 2
    rows, columns = (dropped == 0).float().mean(1), (dropped == 0).float().mean(0)
    assert max(rows.std(), columns.std()) < 0.08


def test_dropout_repeats_with_torchs_seed_and_rests_outside_of_training() -> None:
    dropout, x = FeatureDropout(0.5), torch.ones(4, 8)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout(x))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(dropout(x), dropout(x))
    assert dropout.eval()(x) is x
    assert FeatureDropout(0.0)(x) is x


def test_the_fast_tanh_is_tanh() -> None:
    x = torch.linspace(-30, 30, 10001, requires_grad=True)
    torch.testing.assert_close(tanh(x), torch.tanh(x), rtol=0, atol=2e-7)
    (gradient,) = torch.autograd.grad(tanh(x).sum(), x)
    torch.testing.assert_close(gradient, 1 - torch.tanh(x.detach()) ** 2, rtol=0, atol=1e-6)
