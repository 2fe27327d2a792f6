"""What `training.balance` does to the probabilities is undone, without training again."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss

from her2.config import EvaluationSection, HeadSection, Task, TrainingSection
from her2.config.jobs import ClassBalance, ControlSpec, EvaluateSpec
from her2.core.errors import UserError
from her2.evaluation.controls.stage import control
from her2.evaluation.decision_curves import decision_table
from her2.evaluation.priors import training_priors, with_training_priors
from her2.heads.abmil import AttentionSection
from her2.heads.logistic import LogisticSection
from her2.mil.bags import Bag
from her2.mil.batches import epoch_order
from her2.mil.losses import bag_loss, class_logits
from her2.mil.model import predict
from her2.mil.priors import PRIORS, read_priors, seen_shares, with_shares
from her2.mil.train import _class_weights, train_fold
from her2.storage.entries import FoldEntry, write_entries
from tests.unit.bag_makers import CPU, bag
from tests.unit.prediction_makers import SCORE, cohort_of, predictions

SLIDES = np.array([40, 30, 20, 10])


def labelled(counts: np.ndarray) -> list[Bag]:
    labels = np.repeat(np.arange(len(counts)), counts)
    return [bag(f"s{i}", np.zeros((1, 1), np.float32), int(k)) for i, k in enumerate(labels)]


@pytest.mark.parametrize("loss", ["cross_entropy", "ordinal"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("balance", ["none", "slides", "sampling", "loss"])
def test_what_a_training_sees_is_what_a_model_without_features_learns(
    balance: str, smoothing: float, loss: str
) -> None:
    """At these probabilities the loss of the training's own batches has no gradient."""
    training = TrainingSection(balance=balance, label_smoothing=smoothing, loss=loss)
    bags = labelled(SLIDES)
    seen = torch.tensor(
        seen_shares(SLIDES, ClassBalance(balance=balance, label_smoothing=smoothing,
                                         bags_per_batch=training.bags_per_batch))
    )  # fmt: skip
    if loss == "cross_entropy":
        scores = seen.log()
    else:  # the conditional probabilities of passing each threshold
        reached = seen.flip(0).cumsum(0).flip(0)
        scores = torch.logit(reached[1:] / reached[:-1])
    np.testing.assert_allclose(class_logits(scores[None], loss).softmax(dim=1)[0], seen)
    scores.requires_grad_(True)
    weights = _class_weights(bags, training, 4, CPU)
    generator, gradients = np.random.default_rng(1), []
    for _ in range(60):
        order, size = epoch_order(bags, training, generator), training.bags_per_batch
        for start in range(0, len(order) - size + 1, size):
            labels = torch.tensor([bags[i].label for i in order[start : start + size]])
            value = bag_loss(
                scores.expand(len(labels), -1), labels, loss=loss, smoothing=smoothing,
                weights=None if weights is None else weights.double(),
            )  # fmt: skip
            gradients.append(torch.autograd.grad(value, scores)[0].numpy())
    mean, error = np.mean(gradients, axis=0), np.std(gradients, axis=0) / len(gradients) ** 0.5
    assert np.abs(mean / error).max() < 4.5
    assert error.max() < 0.015


@pytest.mark.parametrize("balanced", [True, False])
def test_a_fitted_head_sees_equal_shares_where_it_is_balanced(balanced: bool) -> None:
    (model,) = LogisticSection(head="logistic", strengths=(1e-9,)).estimators(balanced=balanced)
    target = np.repeat(np.arange(4), SLIDES)
    model.fit(np.random.default_rng(0).normal(size=(100, 2)), target)
    training = ClassBalance(
        balance="loss" if balanced else "none", label_smoothing=0.3, bags_per_batch=2, fitted=True
    )
    expected = model.predict_proba(np.zeros((1, 2)))[0]
    np.testing.assert_allclose(seen_shares(SLIDES, training), expected, atol=1e-3)


@given(
    hnp.arrays(float, (4, 3), elements=st.floats(-20, 20)),
    hnp.arrays(float, 3, elements=st.floats(0.01, 1)),
    hnp.arrays(float, 3, elements=st.floats(0.01, 1)),
)
def test_the_correction_adds_the_log_of_the_ratio_to_the_logits(
    logits: np.ndarray, share: np.ndarray, seen: np.ndarray
) -> None:
    share, seen = share / share.sum(), seen / seen.sum()
    expected = softmax(log_softmax(logits, axis=1) + np.log(share) - np.log(seen), axis=1)
    found = with_shares(softmax(logits, axis=1), share, seen)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(with_shares(found, seen, share), softmax(logits, axis=1), atol=1e-9)


def test_bayes_rule_for_a_test_of_two_outcomes() -> None:
    """With even classes a positive test of sensitivity 0.8 and specificity 0.9 means 8/9.

    Among classes of which 1 in 10 is positive it means 0.08 / (0.08 + 0.09).
    """
    found = with_shares(np.array([[1 / 9, 8 / 9]]), np.array([0.9, 0.1]), np.array([0.5, 0.5]))
    assert found[0, 1] == pytest.approx(0.08 / 0.17)


def test_an_absent_class_keeps_its_odds_and_says_so(tmp_path: Path) -> None:
    seen = seen_shares(np.array([3, 0, 1]), ClassBalance(balance="sampling"))
    assert seen.tolist() == [0.5, 0, 0.5]
    found = with_shares(np.array([[0.4, 0.2, 0.4]]), np.array([0.75, 0, 0.25]), seen)
    np.testing.assert_allclose(found, np.array([[0.6, 0.2, 0.2]]))


# From the folds table

CLASSES = Task(label="x", classes={"a": ["a"], "b": ["b"]})


def table(tmp_path: Path, rows: list[tuple[str, str, int, int, str]], **trained: int) -> Path:
    """Write folds of (slide, patient, label, fold, role), and the entries of models."""
    schema = {"slide_id": pl.String, "patient_id": pl.String, "label": pl.Int32,
              "fold": pl.Int32, "role": pl.String}  # fmt: skip
    folds = pl.DataFrame(rows, schema=schema, orient="row")
    folds.with_columns(repeat=pl.lit(0, pl.Int32)).write_parquet(tmp_path / "folds.parquet")
    entries = {
        name: FoldEntry(f"key-{name}", count, 1, 1, 0, 1, 0.5) for name, count in trained.items()
    }
    write_entries(tmp_path / "chunk.json", entries)
    return tmp_path / "folds.parquet"


def priors_of(
    tmp_path: Path, folds: Path, predicted: set[str], **changed: object
) -> dict[str, list[dict]]:
    spec = EvaluateSpec(
        task=CLASSES, chunks=("chunk",), evaluation=EvaluationSection(), seed=1,
        **({"training": ClassBalance(balance="sampling")} | changed),
    )  # fmt: skip
    found = training_priors(spec, folds=folds, models=tmp_path, predicted=predicted)
    assert found.schema == pl.Schema(PRIORS)
    return {
        str(run): own.to_dicts() for (run,), own in found.partition_by("run", as_dict=True).items()
    }


ROWS = [
    *((f"a{i}", f"p{i}", 0, fold, "test" if i % 2 == fold else "train")
      for i in range(6) for fold in (0, 1)),
    *((f"b{i}{letter}", f"q{i}", 1, fold, "test" if i % 2 == fold else "train")
      for i in range(2) for letter in "xyz" for fold in (0, 1)),
]  # fmt: skip


def test_shares_are_of_the_patients_that_a_fold_was_trained_on(tmp_path: Path) -> None:
    """Of 3 patients with a slide each and 1 with three, a quarter is b, but half of the slides."""
    folds = table(tmp_path, ROWS, r0f0=6, r0f1=6, r0f1s1=6)
    found = priors_of(tmp_path, folds, set())
    assert list(found) == ["r0f0", "r0f1", "r0f1s1"]
    for run, rows in found.items():
        assert [row["key"] for row in rows] == [f"key-{run}"] * 2
        assert [(row["slides"], row["patients"]) for row in rows] == [(3, 3), (3, 1)]
        assert [row["share"] for row in rows] == [0.75, 0.25]
        assert [row["seen"] for row in rows] == [0.5, 0.5]
        assert {row["note"] for row in rows} == {""}


def test_slides_drawn_as_they_are_still_count_a_patient_once(tmp_path: Path) -> None:
    folds = table(tmp_path, ROWS, r0f0=6)
    (rows,) = priors_of(tmp_path, folds, set(), training=ClassBalance(balance="none")).values()
    assert [(row["share"], row["seen"]) for row in rows] == [(0.75, 0.5), (0.25, 0.5)]
    (rows,) = priors_of(tmp_path, folds, set(), protocol="published").values()
    assert [row["share"] for row in rows] == [0.5, 0.5]


def test_slides_without_features_were_not_trained_on(tmp_path: Path) -> None:
    folds = table(tmp_path, ROWS, r0f0=4)
    predicted = {slide for slide, *_ in ROWS} - {"a1", "a3"}
    (rows,) = priors_of(tmp_path, folds, predicted).values()
    assert [(row["slides"], row["share"]) for row in rows] == [(1, 0.5), (3, 0.5)]


def test_a_training_set_that_is_not_known_exactly_is_noted(tmp_path: Path) -> None:
    """Under a fixed split no model predicts the training set."""
    folds = table(tmp_path, ROWS, r0f0=5)
    (rows,) = priors_of(tmp_path, folds, {"b0x"}).values()
    assert [row["slides"] for row in rows] == [3, 3]
    assert rows[0]["note"].startswith("the model was trained on 5 of the 6 slides")


def test_a_class_without_training_slides_is_noted(tmp_path: Path) -> None:
    folds = table(tmp_path, [row for row in ROWS if row[0][0] == "a"], r0f0=3)
    (rows,) = priors_of(tmp_path, folds, set()).values()
    assert [(row["share"], row["seen"], row["note"]) for row in rows] == [
        (1, 1, ""),
        (0, 0, "no slide in the training set: not corrected"),
    ]


# What the correction is for


def drawn(patients: int = 6000, signal: float = 0.7, seed: int = 0) -> tuple[pl.DataFrame, ...]:
    """Classes of 40, 30, 20 and 10 %, predicted by the posterior among even classes."""
    generator = np.random.default_rng(seed)
    target = generator.choice(4, size=patients, p=SLIDES / 100)
    logits = generator.normal(size=(patients, 4))
    logits[np.arange(patients), target] += signal
    given = softmax(signal * logits, axis=1)
    names = [f"p{i:04d}" for i in range(patients)]
    before = pl.DataFrame(
        {
            "slide_id": names, "patient_id": names, "repeat": 0, "fold": 0, "seed": 0,
            "role": "test", "target": target,
            **{f"prob_{name}": given[:, i] for i, name in enumerate(SCORE.class_names)},
        }
    )  # fmt: skip
    priors = pl.DataFrame(
        [("r0f0", "k", name, 1, 1, share / 100, 0.25, "")
         for name, share in zip(SCORE.class_names, SLIDES, strict=True)],
        schema=PRIORS, orient="row",
    )  # fmt: skip
    return before, with_training_priors(before, priors, SCORE)


def test_acting_on_3_plus_at_a_fifth_does_not_harm_once_the_prior_is_put_back() -> None:
    before, after = drawn()
    benefit = []
    for table in (before, after):
        found = decision_table(
            {"as predicted": (table, "")}, SCORE, EvaluationSection(), level="patient"
        )
        own = (pl.col("grouping") == "0/1+/2+ vs 3+") & (pl.col("threshold") == 0.2)
        benefit.append(found.filter(own)["net_benefit"].item())
    assert benefit[0] < 0 < benefit[1]
    assert before["prob_3+"].mean() > 0.2
    assert after["prob_3+"].mean() == pytest.approx((after["target"] == 3).mean(), abs=0.01)
    losses = [
        log_loss(one["target"], one.select(f"prob_{name}" for name in SCORE.class_names))
        for one in (before, after)
    ]
    assert losses[1] < losses[0] - 0.05


def test_what_the_model_gave_is_kept() -> None:
    before, after = drawn(50)
    for name in SCORE.class_names:
        assert after[f"raw_{name}"].equals(before[f"prob_{name}"])
    assert (
        after.select(before.columns)
        .drop(pl.selectors.starts_with("prob_"))
        .equals(before.drop(pl.selectors.starts_with("prob_")))
    )


CENTRES = np.array([[0.0, 0], [1.5, 0], [0, 1.5]])


def gaussian(count: int, shares: np.ndarray, seed: int) -> tuple[list[Bag], np.ndarray]:
    """Return bags of two equal tiles, normal around the mean of their class, and posteriors."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(3, size=count, p=shares)
    features = CENTRES[labels] + generator.normal(size=(count, 2))
    likelihood = np.exp(-((features[:, None] - CENTRES) ** 2).sum(axis=2) / 2) * shares
    bags = [
        bag(f"g{seed}-{i}", np.repeat(x[None], 2, axis=0).astype(np.float32), int(label))
        for i, (x, label) in enumerate(zip(features, labels, strict=True))
    ]
    return bags, likelihood / likelihood.sum(axis=1, keepdims=True)


ABMIL = AttentionSection(head="abmil", attention=2, hidden=0, dropout=0.0)


@pytest.mark.parametrize(
    ("head", "balances", "changed"),
    [
        (LogisticSection(head="logistic", strengths=(1.0,)), ("none", "sampling"), {}),
        (ABMIL, ("none", "sampling", "loss"), {}),
        (ABMIL, ("none", "sampling"), {"loss": "ordinal"}),
    ],
    ids=["fitted", "trained", "CORN"],
)
def test_trainings_with_and_without_balance_end_with_the_same_probabilities(
    head: HeadSection, balances: tuple[str, ...], changed: dict[str, object]
) -> None:
    """They end near the posterior that the features were drawn from, from which a balanced
    training alone is far.
    """
    shares = np.array([0.6, 0.3, 0.1])
    (train, _), (tune, _), (test, posterior) = (
        gaussian(n, shares, seed) for n, seed in ((450, 1), (20, 2), (200, 3))
    )
    slides = np.bincount([one.label for one in train])
    found = {}
    for balance in balances:
        training = TrainingSection(
            bag_size=2, bags_per_batch=10, epochs=6, patience=6, learning_rate=0.05,
            schedule="cosine", weight_decay=0.0, balance=balance, **changed,
        )  # fmt: skip
        trained = train_fold(
            train, tune, head=head, training=training, class_names=("a", "b", "c"), seed=5,
            device=CPU, keep_last=True,
        )  # fmt: skip
        raw = np.array([predict(trained.model, one).probabilities for one in test])
        seen = ClassBalance(
            balance=balance, bags_per_batch=10, fitted=isinstance(head, LogisticSection)
        )
        found[balance] = with_shares(raw, slides / 450, seen_shares(slides, seen))
        assert np.abs(found[balance] - posterior).mean() < 0.08
        if balance != "none":
            assert np.abs(raw - posterior).mean() > 0.1
            assert raw[:, 2].mean() > 1.7 * posterior[:, 2].mean()
            np.testing.assert_allclose(
                found[balance].mean(axis=0), found["none"].mean(axis=0), atol=0.03
            )


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "priors.parquet").write_text("not a table")
    with pytest.raises(UserError, match=r"priors\.parquet: is not a table `priors`"):
        read_priors(tmp_path / "priors.parquet")
    pl.DataFrame({"run": ["r0f0"]}).write_parquet(tmp_path / "priors.parquet")
    with pytest.raises(UserError, match=r"priors\.parquet: is not a table `priors`"):
        read_priors(tmp_path / "priors.parquet")


def test_controls_read_predictions_with_what_the_model_gave(tmp_path: Path) -> None:
    """Covariates have no such columns, and are predicted with those that both have."""
    table = predictions(60, folds=3)
    priors = pl.DataFrame(
        [(f"r0f{fold}", "k", name, 1, 1, 0.25, 0.25, "")
         for fold in range(3) for name in SCORE.class_names],
        schema=PRIORS, orient="row",
    )  # fmt: skip
    with_training_priors(table, priors, SCORE).write_parquet(tmp_path / "predictions.parquet")
    slides = table.select("slide_id", "patient_id", label="target").unique().sort("slide_id")
    roles = table.select("slide_id", "repeat", "fold", "role")
    folds = slides.join(table.select("repeat", "fold").unique(), how="cross").join(
        roles, on=["slide_id", "repeat", "fold"], how="left"
    )
    folds.with_columns(pl.col("role").fill_null("train")).write_parquet(tmp_path / "folds.parquet")
    cohort_of(table).write_parquet(tmp_path / "cohort.parquet")
    found = control(
        ControlSpec(
            task=SCORE, grid="g", seed=1,
            evaluation=EvaluationSection(bootstrap=100, permutations=100),
        ),
        predictions=tmp_path / "predictions.parquet", folds=tmp_path / "folds.parquet",
        cohort=tmp_path / "cohort.parquet", output=tmp_path / "controls",
    )  # fmt: skip
    assert found["covariates_predictions"].columns == ["by", *table.columns]
