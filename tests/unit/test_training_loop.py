"""Batches, schedule, precision, class weights, clipping, best epoch, checkpoints, search."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, roc_auc_score
from torch.optim.lr_scheduler import CosineAnnealingLR

from her2.config.heads import HEADS as SECTIONS
from her2.core.errors import UserError
from her2.heads import SearchSection
from her2.heads.abmil import AttentionSection
from her2.mil import batches as feed_module
from her2.mil import model as model_module
from her2.mil import train as train_module
from her2.mil.bags import sample_batch
from her2.mil.batches import AHEAD, bag_batches
from her2.mil.losses import bag_loss
from her2.mil.model import Model, predict
from her2.mil.search import draws, search
from her2.mil.selection import TuneFigures, tune_figures
from her2.mil.train import Trained, rate_factor
from tests.unit.bag_makers import (
    HEAD,
    D,
    bag,
    fit,
    key_instances,
    noise,
    training,
    weights,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def same_bits(one: Trained, other: Trained) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


# The worker


def test_the_worker_stays_ahead_of_the_step_and_not_further(monkeypatch: pytest.MonkeyPatch):
    begun: list[str] = []

    def counted(*arguments: object, **options: object) -> object:
        begun.append(threading.current_thread().name)
        return sample_batch(*arguments, **options)

    monkeypatch.setattr(feed_module, "sample_batch", counted)
    batches = iter(bag_batches(noise(40, seed=0), training(balance="none"), seed=1, epoch=0))
    next(batches)
    deadline = time.monotonic() + 5
    while len(begun) < 1 + AHEAD and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(begun) == 1 + AHEAD  # of ten
    assert all(name.startswith("prefetch") for name in begun)
    assert len(list(batches)) == 9


def test_an_epoch_is_the_same_however_far_the_worker_is_ahead(monkeypatch: pytest.MonkeyPatch):
    bags = noise(20, seed=0, tiles=40)

    def features() -> torch.Tensor:
        return torch.cat(
            [batch.features for batch in bag_batches(bags, training(), seed=1, epoch=2)]
        )

    first = features()
    monkeypatch.setattr(feed_module, "AHEAD", 1)
    assert torch.equal(features(), first)
    other = [batch.features for batch in bag_batches(bags, training(), seed=1, epoch=3)]
    assert not torch.equal(torch.cat(other), first)


def test_what_fails_in_the_worker_reaches_the_step() -> None:
    broken = [bag("x", np.zeros((3, D)), 0), bag("y", np.zeros((3, D + 1)), 1)]
    with pytest.raises(ValueError, match="broadcast"):
        list(bag_batches(broken, training(balance="none"), seed=0, epoch=0))


def test_time_spent_waiting_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*arguments: object, **options: object) -> object:
        time.sleep(0.03)
        return sample_batch(*arguments, **options)

    monkeypatch.setattr(feed_module, "sample_batch", slow)
    trained = fit(noise(20, seed=0), noise(4, seed=1), epochs=1)
    assert 5 * 0.03 * 0.8 < trained.waited_seconds <= trained.seconds


# Whole slides in pieces


@pytest.mark.parametrize("name", [name for name in SECTIONS if SECTIONS[name].trained_by_gradient])
def test_a_slide_in_pieces_is_predicted_as_in_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = SECTIONS[name].model_validate({"head": name, "hidden": 16})
    trained = fit(noise(4, seed=0), noise(2, seed=1), epochs=1, head=head)
    slide = noise(1, seed=2, tiles=50)[0]
    whole = predict(trained.model, slide)
    monkeypatch.setattr(model_module, "PIECE_BYTES", {"cpu": 4 * D * 7})  # seven tiles a piece
    pieced = predict(trained.model, slide)
    for field in ("probabilities", "attention", "maps", "contribution"):
        one, other = getattr(whole, field), getattr(pieced, field)
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


def test_a_piece_is_all_that_is_held_of_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = fit(noise(4, seed=0), noise(2, seed=1), epochs=1)
    sizes: list[int] = []
    real = Model._encode

    def watched(self: Model, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes.append(features.shape[1])
        return real(self, features)

    monkeypatch.setattr(Model, "_encode", watched)
    monkeypatch.setattr(model_module, "PIECE_BYTES", {"cpu": 4 * D * 8})
    predict(trained.model, noise(1, seed=2, tiles=30)[0])
    assert sizes == [8, 8, 8, 6]


# The learning rate


def test_the_cosine_is_that_of_torch() -> None:
    section = training(schedule="cosine", epochs=5, warmup_epochs=0)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = CosineAnnealingLR(optimiser, T_max=5 * 7)
    for step in range(5 * 7):
        assert rate_factor(step, 7, section) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-9)
        optimiser.step()
        scheduler.step()


@settings(max_examples=50)
@given(
    steps=st.integers(1, 50),
    epochs=st.integers(1, 30),
    warmup=st.floats(0, 0.9),
    schedule=st.sampled_from(["constant", "cosine"]),
)
def test_the_rate_rises_then_never_rises_again(
    steps: int, epochs: int, warmup: float, schedule: str
) -> None:
    section = training(schedule=schedule, epochs=epochs, warmup_epochs=warmup * epochs)
    rates = [rate_factor(step, steps, section) for step in range(steps * epochs)]
    assert all(0 < rate <= 1 for rate in rates)
    top = int(np.argmax(rates))
    assert top <= math.ceil(section.warmup_epochs * steps)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    if schedule == "constant":
        assert rates[-1] == 1


def test_the_history_says_the_rate_of_each_epoch() -> None:
    options = {"schedule": "cosine", "epochs": 6, "warmup_epochs": 2, "patience": 9}
    trained = fit(noise(8, seed=0), noise(4, seed=1), **options)
    rates = [epoch.learning_rate / 3e-3 for epoch in trained.history]
    assert rates == pytest.approx(
        [rate_factor(2 * e + 1, 2, training(**options)) for e in range(6)]
    )
    assert max(rates) == rates[1] == pytest.approx(1)


def test_a_warm_up_as_long_as_the_training_is_refused() -> None:
    with pytest.raises(ValueError, match="`warmup_epochs` 4 must be less than `epochs` 4"):
        training(epochs=4, warmup_epochs=4)


# Gradients, precision, classes


def test_a_long_gradient_is_shortened_to_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    real = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *arguments: object) -> object:
        parameters = [p for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.cat([p.grad.flatten() for p in parameters]).norm()))
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    train, tune = noise(16, seed=0), noise(4, seed=1)
    fit(train, tune, epochs=1, clip_norm=1e-3)
    assert norms == pytest.approx([1e-3] * 4, rel=1e-2)
    norms.clear()
    fit(train, tune, epochs=1, clip_norm=None)
    assert min(norms) > 1e-2


@pytest.mark.parametrize("name", ["abmil", "clam_mb", "transmil", "additive"])
def test_mixed_precision_computes_products_in_bfloat16_and_keeps_weights_in_float32(
    name: str,
) -> None:
    seen: set[torch.dtype] = set()
    head = SECTIONS[name].model_validate({"head": name, "hidden": 16})
    train, tune = key_instances(8, seed=0), key_instances(4, seed=1)
    trained = fit(train, tune, head=head, precision="bfloat16", epochs=2)
    assert {tensor.dtype for tensor in weights(trained).values()} == {torch.float32}
    trained.model.head.project[0].register_forward_hook(lambda *io: seen.add(io[2].dtype))
    output = trained.model.whole(tune[0])
    assert seen == {torch.bfloat16}
    assert output.logits.dtype == output.attention.dtype == torch.float32
    assert same_bits(trained, fit(train, tune, head=head, precision="bfloat16", epochs=2))
    # The same draws in float32 end close by: eight bits of mantissa, a few steps.
    exact = fit(train, tune, head=head, epochs=2)
    for one, other in zip(tune, tune, strict=True):
        np.testing.assert_allclose(
            predict(trained.model, one).probabilities,
            predict(exact.model, other).probabilities,
            atol=0.1,
        )


def test_a_weighted_loss_makes_a_rare_class_count_as_much() -> None:
    generator = np.random.default_rng(0)
    bags = []
    for i in range(100):
        rare = int(i >= 90)
        bags.append(bag(f"s{i}", generator.normal(0.4 * rare, 1, (4, D)).astype(np.float32), rare))

    def called_rare(balance: str) -> int:
        mean = SECTIONS["mean"].model_validate({"head": "mean", "dropout": 0})
        trained = fit(bags, bags, head=mean, balance=balance, epochs=8, learning_rate=1e-2)
        return sum(predict(trained.model, b).probabilities[1] > 0.5 for b in bags)

    assert called_rare("none") < 10 < called_rare("loss")


def test_weights_of_the_classes_are_inverse_to_their_slides() -> None:
    bags = [
        *noise(6, seed=0, classes=1),
        bag("a", np.zeros((2, D)), 1),
        bag("b", np.zeros((2, D)), 1),
    ]
    section, cpu = training(balance="loss"), torch.device("cpu")
    found = train_module._class_weights(bags, section, 2, cpu)
    assert found.tolist() == pytest.approx([8 / (2 * 6), 8 / (2 * 2)])
    assert train_module._class_weights(bags, training(), 2, cpu) is None


# The best epoch


@settings(max_examples=40)
@given(data=st.data(), classes=st.integers(2, 4))
def test_figures_of_the_tuning_set_are_those_of_scikit_learn(
    data: st.DataObject, classes: int
) -> None:
    extra = data.draw(st.lists(st.integers(0, classes - 1), max_size=12))
    labels = [*range(classes), *extra]
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    scores = generator.dirichlet(np.ones(classes), len(labels))
    guess = scores.argmax(axis=1)
    found = tune_figures(scores, labels)
    assert found.loss == pytest.approx(-np.log(scores[range(len(labels)), labels]).mean())
    assert found.accuracy == pytest.approx((guess == labels).mean())
    assert found.value("balanced_accuracy") == pytest.approx(balanced_accuracy_score(labels, guess))
    expected = np.mean([roc_auc_score(np.array(labels) == c, scores[:, c]) for c in range(classes)])
    assert found.value("macro_auc") == pytest.approx(expected)
    kappa = cohen_kappa_score(labels, guess, weights="quadratic", labels=range(classes))
    assert found.value("quadratic_kappa") == pytest.approx(kappa)


def test_figures_that_need_an_absent_class_are_not_defined() -> None:
    one = tune_figures(np.array([[0.6, 0.4, 0.0]]), [0])
    assert math.isnan(one.value("macro_auc"))
    assert math.isnan(one.value("quadratic_kappa"))
    assert one.value("balanced_accuracy") == 1


@pytest.mark.parametrize("select", ["loss", "macro_auc", "balanced_accuracy", "quadratic_kappa"])
def test_the_kept_epoch_is_the_best_by_the_stated_metric(select: str) -> None:
    train, tune = key_instances(16, seed=0), noise(14, seed=1)
    trained = fit(train, tune, epochs=12, patience=12, learning_rate=0.02, select=select)
    ranks = [
        (-e.tune.loss if select == "loss" else e.tune.value(select), -e.tune.loss)
        for e in trained.history
    ]
    assert trained.best_epoch == ranks.index(max(ranks))
    scores = np.stack([predict(trained.model, b).probabilities for b in tune])
    kept = tune_figures(scores, [b.label for b in tune])
    assert kept.value(select) == pytest.approx(trained.best.tune.value(select), rel=1e-5)


def test_of_equal_epochs_the_one_of_the_lower_loss_is_better() -> None:
    low, high = (TuneFigures(loss, 0.5, {"macro_auc": 0.5}) for loss in (0.6, 0.7))
    assert low.rank("macro_auc") > high.rank("macro_auc")
    assert TuneFigures(0.9, 0.5, {"macro_auc": 0.6}).rank("macro_auc") > low.rank("macro_auc")


def test_a_metric_that_the_tuning_set_cannot_tell_is_refused_with_its_fix() -> None:
    three = ("0", "1+", "2+")
    with pytest.raises(UserError, match=r"macro_auc is not defined: .*class 2\+ in the tuning set"):
        fit(noise(9, seed=0, classes=3), noise(4, seed=1), class_names=three, select="macro_auc")
    with pytest.raises(UserError, match="the tuning set has only one class"):
        fit(noise(8, seed=0), noise(3, seed=1, classes=1), select="quadratic_kappa")


def test_a_bag_of_no_tile_is_refused_by_name() -> None:
    empty = bag("void", np.zeros((0, D), np.float16), 1)
    with pytest.raises(UserError, match="void: the feature store contains no tiles"):
        fit([*noise(4, seed=0), empty], noise(2, seed=1))


# Checkpoints


class Killed(BaseException):
    """An exception that no handler catches."""


def killed_after(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """Raise `Killed` in the middle of an epoch, like a process that is killed."""
    calls = 0

    def dying(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls > 4 * epochs + 2:  # 16 slides in batches of four, so two steps into the next
            raise Killed
        return bag_loss(*arguments, **options)

    monkeypatch.setattr(train_module, "bag_loss", dying)


@pytest.mark.parametrize(
    "changed",
    [{}, {"optimiser": "adam", "schedule": "cosine"}, {"precision": "bfloat16", "balance": "loss"}],
    ids=["default", "adam-cosine", "bfloat16-loss"],
)
def test_a_killed_run_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, object]
) -> None:
    train, tune = noise(16, seed=0, tiles=40), noise(8, seed=1)
    options = {"epochs": 9, "patience": 9, "learning_rate": 0.01, **changed}
    whole = fit(train, tune, **options)
    path = tmp_path / "c.safetensors"
    for epochs in (3, 1):  # killed twice
        with monkeypatch.context() as patch:
            killed_after(patch, epochs)
            with pytest.raises(Killed):
                fit(train, tune, checkpoint=path, **options)
    assert len(json.loads(header(path))["history"]) == 4
    resumed = fit(train, tune, checkpoint=path, **options)
    assert resumed.history == whole.history
    assert resumed.best_epoch == whole.best_epoch
    assert same_bits(resumed, whole)


def header(path: Path) -> str:
    with safetensors.safe_open(path, framework="np") as stream:
        return stream.metadata()["state"]


def test_a_finished_run_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, tune = noise(16, seed=0), noise(8, seed=1)
    path = tmp_path / "c.safetensors"
    first = fit(train, tune, checkpoint=path)
    killed_after(monkeypatch, -1)
    again = fit(train, tune, checkpoint=path)
    assert same_bits(first, again)
    assert again.seconds == 0


@pytest.mark.parametrize("damage", ["cut", "text", "torn", "other head"])
def test_a_checkpoint_that_cannot_be_used_is_said_aloud_and_changes_nothing(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    train, tune = noise(16, seed=0), noise(8, seed=1)
    path = tmp_path / "c.safetensors"
    fit(train, tune, checkpoint=path, epochs=1)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "text":
        path.write_text("x")
    elif damage == "torn":  # as a power cut leaves a file that was not synced
        path.write_bytes(path.read_bytes()[:-200] + bytes(200))
    else:
        fit(train, tune, checkpoint=tmp_path / "o", head=HEAD.model_copy(update={"attention": 4}))
        (tmp_path / "o").replace(path)
    found = fit(train, tune, checkpoint=path)
    assert "training starts over" in caplog.text
    assert same_bits(found, fit(train, tune))


def test_nothing_in_a_checkpoint_is_pickled(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    fit(noise(8, seed=0), noise(4, seed=1), checkpoint=path, epochs=1)
    with safetensors.safe_open(path, framework="np") as stream:
        names = set(stream.keys())
    assert {name.split("/")[0] for name in names} == {"model", "best", "optimiser"}
    assert b"pickle" not in path.read_bytes()


def test_a_loss_that_explodes_keeps_the_last_good_epoch_and_says_where(tmp_path: Path) -> None:
    train, tune = noise(16, seed=0), noise(4, seed=1)
    path = tmp_path / "c.safetensors"
    options = {"optimiser": "adamw", "learning_rate": 1e30, "warmup_epochs": 0}
    with pytest.raises(UserError, match="the loss is nan in epoch 0"):
        fit(train, tune, checkpoint=path, **options)
    assert not path.exists()  # there was no good epoch

    fit(train, tune, checkpoint=path, epochs=2)
    train[3].store.features[:, 1] = np.nan  # damage that comes later
    with pytest.raises(UserError) as caught:
        fit(train, tune, checkpoint=path, epochs=4, standardise=False, balance="none")
    assert "the loss is nan in epoch 2 for the slides n0-3;" in str(caught.value)
    assert f"The last good epoch (1) is kept in {path}" in str(caught.value)
    assert len(json.loads(header(path))["history"]) == 2


KILLED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.unit.bag_makers import fit, noise
fit(noise(16, seed=0, tiles=40), noise(8, seed=1), checkpoint=Path(sys.argv[1]), epochs=5000,
    patience=5000)
"""


def test_a_process_killed_for_real_leaves_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], cwd=Path.cwd())
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(json.loads(header(path))["history"])
    assert 0 < done < 5000
    train, tune = noise(16, seed=0, tiles=40), noise(8, seed=1)
    options = {"epochs": done + 2, "patience": 5000}
    assert same_bits(fit(train, tune, checkpoint=path, **options), fit(train, tune, **options))


# The search


SEARCHED = AttentionSection(
    head="abmil",
    attention=8,
    search=SearchSection(
        trials=3, options={"attention": [2, 4, 8], "gated": [True, False], "dropout": [0.0, 0.4]}
    ),
)


def test_a_fold_tries_so_many_different_combinations_of_the_listed_values() -> None:
    found = draws(SEARCHED, seed=5)
    assert len(found) == len({json.dumps(d, sort_keys=True) for d in found}) == 3
    for draw in found:
        assert draw.keys() == SEARCHED.search.options.keys()
        assert all(draw[name] in values for name, values in SEARCHED.search.options.items())
    assert found == draws(SEARCHED, seed=5) != draws(SEARCHED, seed=6)
    assert draws(HEAD, seed=5) == [{}]


def test_the_trial_that_is_best_on_the_tuning_set_is_kept() -> None:
    train, tune = key_instances(24, seed=0), key_instances(12, seed=1)
    kept, trials = search(
        SEARCHED,
        seed=5,
        select="loss",
        train=lambda head, number: fit(train, tune, head=head, epochs=3),
    )
    losses = [trial.tune_loss for trial in trials]
    assert len(trials) == 3
    assert kept.best.tune.loss == min(losses)
    best = json.loads(trials[losses.index(min(losses))].options)
    assert kept.head == SEARCHED.with_options(best)
    assert kept.head.search is None
    assert kept.model.head.value.out_features == best["attention"]


def test_a_trial_that_explodes_is_a_trial_without_figures() -> None:
    def train(head: AttentionSection, number: int) -> Trained:
        if number == 1:
            raise UserError("the loss is nan")
        return fit(noise(8, seed=0), noise(4, seed=1), head=head, epochs=1)

    kept, trials = search(SEARCHED, seed=5, select="loss", train=train)
    assert trials[1].problem == "the loss is nan"
    assert trials[1].tune_loss is None
    assert kept.best.tune.loss == min(trials[0].tune_loss, trials[2].tune_loss)

    def never(head: AttentionSection, number: int) -> Trained:
        raise UserError("the loss is nan")

    with pytest.raises(
        UserError,
        match="none of the 3 trials could be trained. The last error: the loss is",
    ):
        search(SEARCHED, seed=5, select="loss", train=never)
    with pytest.raises(UserError, match="^the loss is nan$"):
        search(HEAD, seed=5, select="loss", train=never)


@pytest.mark.parametrize(
    ("options", "trials", "problem"),
    [
        ({"width": [1, 2]}, 2, "'width' is not an option of this head; it has attention, dropout"),
        ({"dropout": [0.1, 1.5]}, 2, "search.options.dropout: 1.5: Input should be less than 1"),
        ({"hidden": [8, 16]}, 3, "trials 3 is more than the 2 combinations"),
        ({"search": [1, 2]}, 2, "'search' is not an option"),
    ],
)
def test_an_impossible_search_is_refused(
    options: dict[str, object], trials: int, problem: str
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        AttentionSection(head="abmil", search={"trials": trials, "options": options})
    assert problem in str(caught.value)


def test_a_searched_config_trains_what_a_plain_one_of_those_options_trains() -> None:
    train, tune = noise(8, seed=0), noise(4, seed=1)
    options = draws(SEARCHED, seed=5)[0]
    assert same_bits(
        fit(train, tune, head=SEARCHED.with_options(options), epochs=2),
        fit(
            train,
            tune,
            head=AttentionSection(**{"head": "abmil", "attention": 8} | options),
            epochs=2,
        ),
    )
