from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from her2.core.errors import UserError
from her2.mil.bags import Bag
from her2.mil.batches import epoch_order
from her2.mil.model import predict
from her2.mil.train import Trained
from tests.unit.bag_makers import D, bag, fit, key_instances, noise, training, weights

pytestmark = pytest.mark.usefixtures("one_thread")


def tune_loss(trained: Trained, tune: Sequence[Bag], classes: int = 2) -> float:
    """Return the mean cross-entropy per slide, by scikit-learn."""
    probabilities = np.array([predict(trained.model, b).probabilities for b in tune], float)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return log_loss([b.label for b in tune], probabilities, labels=range(classes))


def test_a_key_instance_problem_is_solved_and_attention_finds_the_instances() -> None:
    trained = fit(
        key_instances(48, seed=0), key_instances(16, seed=1), epochs=25, patience=25, bag_size=30
    )
    test = key_instances(60, seed=2)
    output = [predict(trained.model, b) for b in test]
    assert roc_auc_score([b.label for b in test], [p.probabilities[1] for p in output]) > 0.95
    on_key = [p.attention[:3].sum() for b, p in zip(test, output, strict=True) if b.label == 1]
    assert np.median(on_key) > 0.5  # 3 tiles of 30 would have 0.1 by chance


def test_labels_that_mean_nothing_are_not_predicted() -> None:
    trained = fit(noise(40, seed=0), noise(20, seed=1), epochs=8)
    test = noise(300, seed=2)
    scores = [predict(trained.model, b).probabilities[1] for b in test]
    # The standard error of an AUC of 150 against 150 is 0.033.
    assert roc_auc_score([b.label for b in test], scores) == pytest.approx(0.5, abs=0.12)


def test_probabilities_and_attention_sum_to_one_and_cover_every_tile() -> None:
    trained = fit(noise(8, seed=0), noise(4, seed=1), epochs=1)
    found = predict(trained.model, noise(1, seed=2, tiles=37)[0])
    probabilities, attention = found.probabilities, found.attention
    assert probabilities.shape == (2,)
    assert attention.shape == (37,)
    assert probabilities.sum() == pytest.approx(1)
    assert attention.sum() == pytest.approx(1)


def test_the_kept_epoch_is_the_one_of_the_least_tune_loss() -> None:
    # Labels that mean nothing and a large step: the tune loss rises while the train loss falls.
    train, tune = noise(16, seed=0), noise(12, seed=1)
    trained = fit(train, tune, epochs=12, patience=12, learning_rate=0.02)
    losses = [epoch.tune.loss for epoch in trained.history]
    assert trained.best_epoch == int(np.argmin(losses))
    assert trained.best_epoch < len(losses) - 1
    assert [epoch.epoch for epoch in trained.history] == list(range(12))


def test_the_kept_weights_are_those_of_the_kept_epoch() -> None:
    train, tune = noise(16, seed=0), noise(12, seed=1)
    trained = fit(train, tune, epochs=12, patience=12, learning_rate=0.02)
    assert tune_loss(trained, tune) == pytest.approx(trained.best.tune.loss, rel=1e-5)
    # Stopped right after that epoch, the same run must end with the same weights.
    stopped = fit(train, tune, epochs=trained.best_epoch + 1, patience=12, learning_rate=0.02)
    assert stopped.best_epoch == trained.best_epoch
    for name, tensor in weights(stopped).items():
        assert torch.equal(tensor, weights(trained)[name]), name


def test_training_stops_when_patience_is_over() -> None:
    trained = fit(noise(16, seed=0), noise(12, seed=1), epochs=200, patience=3, learning_rate=0.02)
    assert len(trained.history) == trained.best_epoch + 1 + 3


def test_the_tune_accuracy_is_the_share_of_slides_predicted_right() -> None:
    tune = key_instances(12, seed=1)
    trained = fit(key_instances(24, seed=0), tune, epochs=6)
    right = [predict(trained.model, b).probabilities.argmax() == b.label for b in tune]
    assert trained.best.tune.accuracy == pytest.approx(np.mean(right))


def test_the_same_seed_gives_the_same_model_and_another_seed_another() -> None:
    train, tune = noise(12, seed=0), noise(6, seed=1)
    first, again, other = (weights(fit(train, tune, seed=s, epochs=2)) for s in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.value.weight"], other["head.value.weight"])


def test_what_ran_before_does_not_change_a_model() -> None:
    train, tune = noise(12, seed=0), noise(6, seed=1)
    first = weights(fit(train, tune, epochs=2))
    torch.manual_seed(99)
    torch.rand(1000)
    again = weights(fit(train, tune, epochs=2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_standardisation_knows_the_training_set_alone() -> None:
    train, tune = noise(12, seed=0), noise(6, seed=1)
    shifted = [bag(b.slide_id, b.store.features + 100, b.label) for b in tune]
    trained = fit(train, shifted, epochs=1)
    rows = np.concatenate([b.store.features for b in train]).astype(float)
    np.testing.assert_allclose(trained.model.mean, rows.mean(0), atol=1e-5)
    np.testing.assert_allclose(trained.model.std, rows.std(0), rtol=1e-5)


@pytest.mark.parametrize("tiles", [1, 5])
def test_slides_smaller_than_the_bag_are_trained_on(tiles: int) -> None:
    trained = fit(noise(8, seed=0, tiles=tiles), noise(4, seed=1, tiles=tiles), bag_size=64)
    assert np.isfinite([epoch.train_loss for epoch in trained.history]).all()
    assert all(torch.isfinite(tensor).all() for tensor in weights(trained).values())


def test_float16_features_train_a_float32_model() -> None:
    half = [bag(b.slide_id, b.store.features.astype(np.float16), b.label) for b in noise(8, seed=0)]
    trained = fit(half, half, epochs=1)
    assert {tensor.dtype for tensor in weights(trained).values()} == {torch.float32}


def test_nan_features_stop_training_naming_epoch_and_slides() -> None:
    train = noise(4, seed=0)
    train[2].store.features[3, 1] = np.nan
    with pytest.raises(UserError, match="n0-2: its features contain values that are not finite"):
        fit(train, noise(4, seed=1), balance="none")
    with pytest.raises(UserError, match="the loss is nan in epoch 0 for the slides n0-2; lower"):
        fit(train, noise(4, seed=1), balance="none", standardise=False)


def test_a_learning_rate_that_explodes_stops_training_naming_epoch_and_slides() -> None:
    with pytest.raises(UserError, match=r"epoch \d+ for the slides n0-.*learning_rate"):
        fit(noise(16, seed=0), noise(4, seed=1), learning_rate=1e30)


def test_a_last_step_that_explodes_is_not_kept_as_a_model() -> None:
    # One batch: the loss is computed before the step, so only the tuning set can show the damage.
    with pytest.raises(
        UserError, match=r"slide n1-0 of the tuning set .* epoch 0; lower training\.learning"
    ):
        fit(noise(4, seed=0), noise(4, seed=1), epochs=1, learning_rate=3e37)


def test_a_class_without_a_train_slide_is_an_error_that_names_it() -> None:
    with pytest.raises(UserError, match=r"no usable slide of class 2\+, 3\+ in the training set"):
        fit(
            noise(8, seed=0),
            noise(4, seed=1, classes=4),
            class_names=("0", "1+", "2+", "3+"),
        )


def test_a_tuning_set_may_lack_a_class() -> None:
    trained = fit(
        noise(12, seed=0, classes=3), noise(4, seed=1), class_names=("0", "1+", "2+"), epochs=1
    )
    assert tune_loss(trained, noise(4, seed=1), classes=3) == pytest.approx(
        trained.best.tune.loss, rel=1e-5
    )


def test_an_empty_tuning_set_is_an_error() -> None:
    with pytest.raises(UserError, match="no usable slide in the tuning set"):
        fit(noise(8, seed=0), [])


def test_sampling_draws_every_class_as_often() -> None:
    bags = [*noise(90, seed=0, classes=1), *(bag("rare", np.zeros((2, D)), 1) for _ in range(10))]
    generator = np.random.default_rng(0)
    orders = [epoch_order(bags, training(balance="sampling"), generator) for _ in range(200)]
    assert {len(order) for order in orders} == {100}
    rare = np.concatenate(orders) >= 90
    assert rare.mean() == pytest.approx(0.5, abs=0.02)


def test_without_balance_an_epoch_passes_every_slide_once() -> None:
    bags = noise(23, seed=0)
    generator = np.random.default_rng(0)
    first, second = (epoch_order(bags, training(balance="none"), generator) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(23))
    assert first.tolist() != second.tolist()
