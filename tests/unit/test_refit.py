"""One model more, of all development patients, for what the folds chose."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from her2.config import HeadSection, TrainingSection
from her2.config.external_jobs import RefitSpec
from her2.config.jobs import ClassBalance, dump, load
from her2.core.errors import UserError
from her2.core.files import file_digest
from her2.frozen.predict import predict_slides
from her2.heads import SearchSection
from her2.heads.abmil import AttentionSection
from her2.heads.logistic import LogisticSection
from her2.mil import refit, stage
from her2.mil.fold import load_model
from her2.mil.priors import seen_shares
from her2.mil.refit import chosen, refit_model, refit_shares, to_learn
from her2.storage.entries import FeatureEntry, FoldEntry, read_entries, write_entries
from her2.storage.features import open_store
from her2.storage.upkeep import unused_products
from her2.storage.verify import broken_products
from her2.training.checkpoint import Checkpoint
from tests.unit.bag_makers import CPU
from tests.unit.test_train_folds import BUCKET, World, build, refuse

pytestmark = pytest.mark.usefixtures("one_thread")

HEAD = AttentionSection(head="abmil", attention=4)
SEARCHED = AttentionSection(
    head="abmil", search=SearchSection(trials=2, options={"attention": [4, 8]})
)
TRAINING = TrainingSection(bag_size=4, bags_per_batch=4, epochs=6, learning_rate=1e-2)
LABELLED = sorted(
    f"{c}{i}-{letter}" for c in "np" for i in range(6) for letter in "ab"[: 1 + (i == 0)]
)


def spec_of(world: World, **changed: object) -> RefitSpec:
    own = world.spec
    values = {"task": own.task, "head": own.head, "training": own.training, "seed": own.seed}
    return RefitSpec(**values | {"chunks": ("chunk",), "buckets": (BUCKET,)} | changed)


def fit(world: World, **changed: object) -> FoldEntry:
    return refit_model(
        spec_of(world, **changed),
        world.cache,
        folds=world.folds,
        models=world.output.parent,
        features=world.features,
        output=world.output.parent / "refit.json",
    )


def entry(best: int = 0, loss: float | None = 0.5, options: str = "") -> FoldEntry:
    return FoldEntry("k", 8, 2, 3, best, best + 1, loss, options=options)


def with_folds(world: World, *best: int) -> World:
    """Write the entries of folds that chose these epochs, without training them."""
    write_entries(world.output, {f"r0f{i}": entry(epoch) for i, epoch in enumerate(best)})
    return world


@pytest.fixture
def world(tmp_path: Path) -> World:
    return with_folds(build(tmp_path, training=TRAINING), 0, 1, 3)


def identity(world: World) -> dict:
    text = (world.output.parent / "refit" / "identity.json").read_text()
    return json.loads(text)["identity"]


def model_digest(world: World) -> str:
    return file_digest(world.output.parent / "refit" / "model.safetensors")


# What it learns from


def test_every_labelled_patient_is_learnt_from_and_nobody_else(world: World) -> None:
    found = fit(world)
    assert [slide for slide, *_ in identity(world)["learn"]] == LABELLED
    assert (found.train_slides, found.tune_slides, found.test_slides) == (len(LABELLED), 0, 0)
    assert read_entries(world.output.parent / "refit.json", FoldEntry) == {"refit": found}


def test_the_test_part_of_a_fixed_split_is_not_learnt_from(world: World) -> None:
    world.table().filter(pl.col("fold") == 0).write_parquet(world.folds)
    fit(world)
    learnt = {slide for slide, *_ in identity(world)["learn"]}
    assert learnt == {*world.part("train"), *world.part("tune")}
    assert learnt.isdisjoint(world.part("test"))


def test_repeats_of_a_cross_validation_are_the_same_slides_once(world: World) -> None:
    once = world.table()
    twice = pl.concat([once, once.with_columns(repeat=pl.lit(1, pl.Int32))])
    assert sorted(set(to_learn(twice)["slide_id"])) == LABELLED
    world.set_entries(world.entries())
    twice.write_parquet(world.folds)
    assert fit(world).train_slides == len(LABELLED)


def test_a_slide_without_features_is_left_out(world: World) -> None:
    world.set_entries(world.entries() | {"n1-a": FeatureEntry("failed", "decoder died")})
    assert fit(world).train_slides == len(LABELLED) - 1


# What the folds chose


@pytest.mark.parametrize(
    ("best", "epochs"), [((0,), 1), ((0, 1, 3), 2), ((0, 0, 9), 1), ((2, 5), 5), ((3, 3, 4, 4), 5)]
)
def test_it_is_trained_for_the_median_of_the_folds_epochs(best, epochs: int) -> None:
    folds = {f"r0f{i}": entry(one) for i, one in enumerate(best)}
    assert chosen(HEAD, folds).kept == epochs - 1


def test_no_epoch_is_picked_and_the_last_is_kept(world: World) -> None:
    found = fit(world)
    history = pl.read_parquet(world.output.parent / "refit" / "history.parquet")
    assert (found.epochs, found.best_epoch, len(history)) == (2, 1, 2)
    assert history["tune_loss"].is_nan().all()
    assert found.tune_loss is None


def test_the_learning_rate_is_that_of_the_folds_at_the_same_epochs(tmp_path: Path) -> None:
    """A fold's best epoch belongs to a schedule over all epochs, not to one that ends with it."""
    training = TRAINING.model_copy(update={"schedule": "cosine"})
    world = with_folds(build(tmp_path, training=training), 2)
    fit(world)
    first = pl.read_parquet(world.output.parent / "refit" / "history.parquet")["learning_rate"]
    with_folds(world, 5)
    fit(world)
    whole = pl.read_parquet(world.output.parent / "refit" / "history.parquet")["learning_rate"]
    assert first.to_list() == whole.to_list()[:3]
    assert first[-1] > 0.5 * first.max()


def test_the_options_of_a_search_are_those_that_most_folds_chose() -> None:
    four, eight = '{"attention":4}', '{"attention":8}'
    folds = {
        "r0f0": entry(4, 0.1, four),
        "r0f1": entry(1, 0.9, eight),
        "r0f2": entry(2, 0.9, eight),
    }
    found = chosen(SEARCHED, folds)
    assert isinstance(found.head, AttentionSection)
    assert (found.head.attention, found.head.search, found.options) == (8, None, eight)
    assert found.kept == 2


@pytest.mark.parametrize(("losses", "attention"), [((0.4, 0.5), 4), ((0.5, 0.4), 8), ((1, 1), 4)])
def test_of_options_that_equally_many_folds_chose_the_loss_decides(losses, attention: int) -> None:
    options = '{"attention":4}', '{"attention":8}'
    pairs = zip(losses, options, strict=True)
    folds = {f"r0f{i}": entry(0, loss, text) for i, (loss, text) in enumerate(pairs)}
    for order in (folds, dict(reversed(folds.items()))):
        head = chosen(SEARCHED, order).head
        assert isinstance(head, AttentionSection)
        assert head.attention == attention


def test_a_searched_head_is_trained_once_with_the_chosen_options(tmp_path: Path) -> None:
    world = build(tmp_path, head=SEARCHED, training=TRAINING)
    options = '{"attention":8}'
    write_entries(world.output, {"r0f0": replace(entry(options=options), trials=2)})
    found = fit(world)
    assert (found.options, found.trials) == (options, 1)
    assert read_entries(world.output.parent / "refit.json", FoldEntry)["refit"] == found
    saved = load_model(world.output.parent / "refit", CPU)
    assert isinstance(saved.head, AttentionSection)
    assert (saved.head.attention, saved.head.search) == (8, None)
    assert not (world.output.parent / "refit" / "trials.parquet").exists()


def test_a_fitted_head_is_the_estimator_of_most_folds_fitted_to_all(tmp_path: Path) -> None:
    """Estimators have no order, so a median would be an estimator that no fold may have chosen."""
    head = LogisticSection(strengths=(1e-3, 1e-2, 0.3))
    training = TRAINING.model_copy(update={"balance": "none"})
    world = with_folds(build(tmp_path, head=head, training=training), 0, 0, 2, 2, 2)
    found = fit(world)
    assert found.best_epoch == 2
    entries = world.entries()
    means = np.stack(
        [
            open_store(world.cache.path("features", entries[slide].key)).features.mean(
                0, np.float64
            )
            for slide in LABELLED
        ]
    )
    x = StandardScaler().fit_transform(means)
    y = [slide.startswith("p") for slide in LABELLED]
    expected = LogisticRegression(C=0.3, max_iter=1000).fit(x, y)
    state = safetensors.torch.load_file(world.output.parent / "refit" / "model.safetensors")
    (weight,) = (value for name, value in state.items() if name.endswith("classifier.weight"))
    assert weight[1].numpy() == pytest.approx(expected.coef_[0], rel=1e-4, abs=1e-6)


# The cache


def test_the_second_call_trains_nothing_and_writes_the_same_bytes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(world)
    output = world.output.parent / "refit.json"
    before = output.read_bytes()
    output.unlink()
    monkeypatch.setattr(refit, "train_fold", refuse)
    fit(world)
    assert output.read_bytes() == before


def test_it_does_not_depend_on_other_folds_with_the_same_median(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = fit(world).key
    monkeypatch.setattr(refit, "train_fold", refuse)
    with_folds(world, 1, 1, 1, 0, 5)
    assert fit(world).key == key


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 8},
        {"head": AttentionSection(head="abmil", attention=4, gated=False)},
        {"training": TRAINING.model_copy(update={"learning_rate": 2e-2})},
    ],
    ids=["seed", "head", "training"],
)
def test_what_determines_it_is_in_its_key(world: World, change: dict[str, object]) -> None:
    assert fit(world).key != fit(world, **change).key


def test_other_epochs_and_other_slides_are_another_model(world: World) -> None:
    keys = [fit(world).key]
    with_folds(world, 2)
    keys.append(fit(world).key)
    world.set_entries(world.entries() | {"n1-a": world.add_store("n1-a", tiles=20)})
    keys.append(fit(world).key)
    assert len(set(keys)) == 3


def test_it_is_a_sound_product_that_a_used_cache_keeps(world: World) -> None:
    found = fit(world)
    assert broken_products(world.cache)[1] == []
    unused = unused_products(world.cache, [world.root])
    assert found.key not in {product.key for product in unused}


def test_a_killed_refit_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = (
        with_folds(build(tmp_path / name, training=TRAINING), 4) for name in ("a", "b")
    )
    key, real, calls = fit(whole).key, Checkpoint.save, 0

    def dying(*arguments: object) -> None:
        nonlocal calls
        real(*arguments)
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        fit(killed)
    assert stage.checkpoint_path(killed.cache, key).exists()
    assert not (killed.output.parent / "refit.json").exists()
    assert fit(killed).key == key
    assert calls == 5
    assert model_digest(killed) == model_digest(whole)
    assert not stage.checkpoint_path(killed.cache, key).exists()


def test_the_job_is_asked_for_by_its_spec(world: World) -> None:
    spec = spec_of(world)
    assert load(RefitSpec, dump(spec)) == spec


# Beside the folds


def test_a_head_s_folder_stands_for_its_folds_and_not_for_the_refit(tmp_path: Path) -> None:
    world = build(tmp_path)
    world.train()
    without, beside, alone = (tmp_path / f"{name}.csv" for name in ("without", "beside", "alone"))
    links = tmp_path / "links"
    links.mkdir()
    for name, one in world.entries().items():
        (links / f"{name}.zarr.zip").symlink_to(world.cache.path("features", one.key))
    head = world.output.parent
    predict_slides([head], links, without, threads=1)
    fit(world)
    predict_slides([head], links, beside, threads=1)
    assert beside.read_bytes() == without.read_bytes()
    table = predict_slides([head / "refit"], links, alone, threads=1)
    assert table["models"].unique().to_list() == [1]


def test_folds_trained_before_and_after_are_the_same(tmp_path: Path) -> None:
    world = build(tmp_path)
    before = world.train()
    fit(world)
    assert world.train() == before


@pytest.mark.parametrize("balance", ["none", "sampling", "loss"])
def test_its_classes_are_as_frequent_as_among_its_patients(tmp_path: Path, balance: str) -> None:
    training = TRAINING.model_copy(update={"balance": balance})
    world = with_folds(build(tmp_path, training=training), 0)
    lost = dict.fromkeys(("n1-a", "n2-a", "n3-a"), FeatureEntry("failed", "decoder died"))
    world.set_entries(world.entries() | lost)
    fit(world)
    share, seen = refit_shares(world.output.parent / "refit")
    assert share == pytest.approx([3 / 9, 6 / 9])  # patients; slides are 4 and 7
    asked = ClassBalance(balance=balance, bags_per_batch=4)
    assert seen == pytest.approx(seen_shares(np.array([4, 7]), asked))


def test_a_fitted_head_saw_classes_as_it_weighed_them(tmp_path: Path) -> None:
    training = TRAINING.model_copy(update={"balance": "loss", "label_smoothing": 0.1})
    world = with_folds(build(tmp_path, head=LogisticSection(), training=training), 0)
    fit(world)
    assert refit_shares(world.output.parent / "refit")[1] == pytest.approx([0.5, 0.5])


# What stops it


def test_without_a_trained_fold_there_is_nothing_to_go_by(world: World) -> None:
    lost = replace(entry(), key="", reason="no usable slide of class positive")
    write_entries(world.output, {"r0f0": lost})
    with pytest.raises(UserError, match="no fold could be trained") as caught:
        fit(world)
    assert "r0f0: no usable slide of class positive" in str(caught.value)


def test_a_class_that_lost_all_slides_is_named(world: World) -> None:
    failed = FeatureEntry("failed", "decoder died")
    lost = {name: failed for name in world.entries() if name.startswith("p")}
    world.set_entries(world.entries() | lost)
    with pytest.raises(UserError, match="refit: no usable slide of class positive"):
        fit(world)
    assert not (world.output.parent / "refit.json").exists()


def test_absent_entries_of_the_folds_are_an_error_with_the_fix(world: World) -> None:
    with pytest.raises(UserError, match="other.json: does not exist"):
        fit(world, chunks=("other",))


def test_features_of_two_encoders_are_refused(world: World) -> None:
    world.set_entries(world.entries() | {"n1-a": world.add_store("n1-a", encoder="other")})
    with pytest.raises(UserError, match="different encoders"):
        fit(world)


def test_a_loss_that_is_not_finite_names_the_slides(world: World) -> None:
    training = TRAINING.model_copy(update={"learning_rate": 1e30, "clip_norm": None})
    with pytest.raises(UserError, match="loss is nan in epoch"):
        fit(world, training=training)


@pytest.mark.parametrize("head", [HEAD, LogisticSection()], ids=["abmil", "logistic"])
def test_a_changed_identity_is_not_read(tmp_path: Path, head: HeadSection) -> None:
    world = with_folds(build(tmp_path, head=head, training=TRAINING), 0)
    fit(world)
    path = world.output.parent / "refit" / "identity.json"
    text = path.read_text()
    path.unlink()  # a link to the cache
    path.write_text(text.replace("p0-a", "p9-a"))
    with pytest.raises(UserError, match=r"has a changed file identity\.json"):
        refit_shares(path.parent)
