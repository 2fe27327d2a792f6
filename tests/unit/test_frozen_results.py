"""The models of all folds, with their corrections, are one predictor."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from her2.config import Task
from her2.config.jobs import EvaluateSpec, dump
from her2.config.names import PUBLISHED, Run
from her2.core.errors import UserError
from her2.core.stamps import writing_stamp
from her2.evaluation.temperature import scale
from her2.frozen.folders import read_folders
from her2.frozen.results import geometric_mean
from her2.mil.bags import Bag
from her2.mil.fold import load_model
from her2.mil.model import predict
from her2.mil.priors import with_shares
from her2.storage.entries import FoldEntry, read_entries, write_entries
from her2.storage.features import open_store
from tests.unit.bag_makers import CPU
from tests.unit.frozen_makers import CHUNK, NAMES, SECTION, Results, folders, make
from tests.unit.products import reseal
from tests.unit.test_untrained_folds import lose, only_training_slide, scarce

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return make(tmp_path_factory.mktemp("frozen"))


@pytest.fixture
def results(finished: Results, tmp_path: Path) -> Results:
    """Return a copy that a test may change."""
    shutil.copytree(finished.world.root, tmp_path / "w")
    return Results(type(finished.world)(tmp_path / "w", finished.world.spec))


def rewrite(results: Results, name: str, change) -> None:
    path = results.evaluation / f"{name}.parquet"
    change(pl.read_parquet(path)).write_parquet(path)


def only_bag(results: Results, name: str = "u0-a") -> Bag:
    entry = results.world.entries()[name]
    return Bag(name, "", "", open_store(results.world.cache.path("features", entry.key)), None)


def test_a_frozen_model_is_the_mean_of_the_folds_calibrated_probabilities(finished):
    model, bag = finished.frozen(), only_bag(finished)
    priors = pl.read_parquet(finished.evaluation / "priors.parquet")
    temperatures = dict(
        pl.read_parquet(finished.evaluation / "temperatures.parquet")
        .select("run", "temperature")
        .iter_rows()
    )
    before, after, attention = [], [], []
    for run in ("r0f0", "r0f1", "r0f2"):
        found = predict(load_model(finished.models / run, CPU).model, bag)
        share, seen = priors.filter(run=run).select("share", "seen").to_numpy().T
        before.append(with_shares(found.probabilities[None], share, seen)[0])
        logits = np.log(before[-1]) / temperatures[run]
        after.append(np.exp(logits) / np.exp(logits).sum())
        attention.append(found.attention)
    given = model.predict(bag)
    np.testing.assert_allclose(given.probabilities, np.mean(after, axis=0), rtol=1e-9)
    np.testing.assert_allclose(given.uncalibrated, np.mean(before, axis=0), rtol=1e-9)
    np.testing.assert_allclose(given.attention, np.mean(attention, axis=0), rtol=1e-6)
    assert [fold.run for fold in model.folds] == ["r0f0", "r0f1", "r0f2"]
    assert (model.name, model.task) == ("score / plain / abmil", finished.world.spec.task)


def test_it_predicts_unlabelled_slides_as_the_evaluation_did(finished):
    """Every fold predicted them in development, so that both ways must agree."""
    own = finished.table.filter(slide_id="u1-a").sort("fold")
    model = finished.frozen()
    each = scale(
        own.select("prob_negative", "prob_positive").to_numpy(),
        np.array([[fold.temperature] for fold in model.folds]),
    )
    found = model.predict(only_bag(finished, "u1-a"))
    np.testing.assert_allclose(found.each, each, rtol=1e-5)
    np.testing.assert_allclose(found.spread, each.std(axis=0), rtol=1e-3, atol=1e-7)


def test_every_repeat_and_training_seed_counts(results):
    results.train(chunk="more", runs=(Run(0, 0, 1), Run(0, 2, 1)))
    results.evaluate(CHUNK, "more")
    model = results.frozen(chunks=(CHUNK, "more"))
    runs = ["r0f0", "r0f0s1", "r0f1", "r0f2", "r0f2s1"]
    assert [fold.run for fold in model.folds] == runs
    assert [fold.run for fold in results.frozen(chunks=None).folds] == runs
    assert {fold.saved.card["key"] for fold in model.folds} == set(
        pl.read_parquet(results.evaluation / "priors.parquet")["key"]
    )


def test_a_fold_without_a_model_is_left_out_and_said(tmp_path, caplog):
    world = scarce(tmp_path)
    lose(world, only_training_slide(world))
    results = Results(world)
    results.train()
    results.evaluate()
    model = results.frozen()
    assert [fold.run for fold in model.folds] == ["r0f1", "r0f2"]
    assert "r0f0 has no model and is left out: no usable slide of class positive" in caplog.text


def test_a_fold_without_a_tuning_set_keeps_a_temperature_of_one_and_it_is_said(results, caplog):
    rewrite(results, "temperatures", lambda table: table.with_columns(
        temperature=pl.when(pl.col("run") == "r0f1").then(None).otherwise("temperature")
    ))  # fmt: skip
    model = results.frozen()
    assert [fold.temperature == 1 for fold in model.folds] == [False, True, False]
    assert "r0f1 has no tuning set; its temperature stays 1" in caplog.text


@pytest.mark.parametrize("chunks", [(CHUNK,), None])
def test_heads_of_the_published_protocol_are_refused(finished, chunks):
    with pytest.raises(UserError, match=rf"{PUBLISHED}: was trained by the published protocol"):
        finished.frozen(head=f"abmil{PUBLISHED}", chunks=chunks)


def test_a_model_of_the_published_protocol_under_another_name_is_refused(results):
    reseal(results.models / "r0f1", protocol="published")
    with pytest.raises(UserError, match=r"was trained by the published protocol"):
        results.frozen()
    with pytest.raises(UserError, match=r"was trained by the published protocol"):
        read_folders([results.models], threads=1)


def drop(run: str):
    return lambda table: table.filter(pl.col("run") != run)


def other_key(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(
        key=pl.when(pl.col("run") == "r0f1").then(pl.lit("f" * 64)).otherwise("key")
    )


WRONG = {
    "a prior is missing": ("priors", drop("r0f1"), r"r0f1: is not in priors.parquet"),
    "a temperature is missing": (
        "temperatures", drop("r0f2"), r"r0f2: is not in temperatures.parquet",
    ),
    "another model was evaluated": (
        "priors", other_key, r"r0f1: the model is \w+, the evaluated one was f{12}",
    ),
    "a class is called otherwise": (
        "priors",
        lambda table: table.with_columns(pl.col("class").replace({"negative": "low"})),
        r"has other classes than the models \(negative, positive\)(.|\n)*r0f0: low, positive",
    ),
    "classes in another order": (
        "priors",
        lambda table: table.reverse(),
        r"has other classes than the models",
    ),
    "a share is not a number": (
        "priors",
        lambda table: table.with_columns(share=pl.lit(float("nan"))),
        r"r0f0: its shares in priors.parquet are none",
    ),
    "a temperature is negative": (
        "temperatures",
        lambda table: table.with_columns(temperature=pl.lit(-1.0)),
        r"r0f2: its temperature is -1.0",
    ),
    "no temperatures at all": (
        "temperatures", lambda table: table.drop("temperature"), r"is not a table `temperatures`",
    ),
    "no priors at all": (
        "priors", lambda table: table.drop("seen"), r"is not a table `priors`",
    ),
    "predictions of other models": (
        "predictions",
        lambda table: table.filter(pl.col("fold") != 1),
        r"has predictions of other models",
    ),
    "predictions of other classes": (
        "predictions",
        lambda table: table.rename({"prob_negative": "prob_low"}),
        r"lacks the columns prob_negative",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_tables_that_do_not_fit_the_models_are_refused_by_name(results, case):
    name, change, words = WRONG[case]
    rewrite(results, name, change)
    with pytest.raises(UserError, match=words) as caught:
        results.frozen()
    assert "snakemake again" in str(caught.value) or "give the priors.parquet" in str(caught.value)


def damage_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)


MODELS = {
    "weights": (damage_weights, r"model.safetensors does not match its card"),
    "card": (lambda folder: rewrite_text(folder / "card.json"), r"is not a trained model"),
    "absent": (shutil.rmtree, r"r0f1: is not a trained model"),
    "encoder": (lambda folder: reseal(folder, encoder_digest="other"), r"differ in encoder"),
    "grid": (lambda folder: reseal(folder, tiles={"mpp": 1, "px": 5}), r"differ in grid"),
    "another": (lambda folder: reseal(folder, key="0" * 64), r"model of another training"),
}


def rewrite_text(path: Path) -> None:
    path.unlink()
    path.write_text("{")


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_was_changed_is_refused_by_name(results, case):
    change, words = MODELS[case]
    change(results.models / "r0f1")
    with pytest.raises(UserError, match=words) as caught:
        results.frozen()
    assert "r0f1" in str(caught.value)


def test_a_model_that_is_not_evaluated_and_one_that_is_gone_are_both_named(results):
    path = results.models / f"{CHUNK}.json"
    entries = read_entries(path, FoldEntry)
    entries["r1f0"] = entries.pop("r0f1")
    write_entries(path, entries)
    with pytest.raises(UserError) as caught:
        results.frozen()
    assert "r0f1: is evaluated and has no model" in str(caught.value)
    assert "r1f0: has a model and is not evaluated" in str(caught.value)


# Any folders


def test_the_folder_of_a_head_has_the_corrections_of_its_evaluation(finished):
    frozen, bag = finished.frozen(), only_bag(finished)
    model, notes = folders([finished.models], threads=1)
    assert notes == ()
    np.testing.assert_array_equal(model.predict(bag).each, frozen.predict(bag).each)
    assert model.name == frozen.name
    assert model.thresholds == ()  # without the stamp of the evaluation nobody knows the groupings


def test_all_folds_of_a_head_have_the_thresholds_that_its_evaluation_was_asked_for(results):
    spec = EvaluateSpec(task=results.world.spec.task, chunks=(CHUNK,), evaluation=SECTION, seed=1)
    stamp = results.root.joinpath("stamps", "evaluate", *NAMES[:2], f"{NAMES[2]}.json")
    with writing_stamp(stamp, dump(spec)):
        pass
    model, _ = folders([results.models], threads=1)
    assert model.thresholds == results.frozen().thresholds
    assert len(model.thresholds) == 4  # two levels, two demands
    some, _ = folders([results.models / "r0f0", results.models / "r0f2"], threads=1)
    assert some.thresholds == ()
    assert [fold.run for fold in some.folds] == ["r0f0", "r0f2"]


def test_folders_without_an_evaluation_predict_as_trained_and_it_is_said(finished, tmp_path):
    bag = only_bag(finished)
    for run in ("r0f0", "r0f1"):
        shutil.copytree(finished.models / run, tmp_path / "moved" / run)
    model, notes = folders([tmp_path / "moved"], threads=1)
    assert len(notes) == 1
    assert "as the training weighed them" in notes[0]
    found = model.predict(bag)
    raw = [predict(load_model(finished.models / run, CPU).model, bag).probabilities
           for run in ("r0f0", "r0f1")]  # fmt: skip
    np.testing.assert_allclose(found.each, raw, rtol=1e-6)
    given, notes = folders(
        [tmp_path / "moved"], threads=1, priors=finished.evaluation / "priors.parquet"
    )
    assert notes == ()
    np.testing.assert_array_equal(given.predict(bag).each, finished.frozen().predict(bag).each[:2])


def test_a_table_of_priors_alone_corrects_without_temperatures(finished, tmp_path):
    table = tmp_path / "mine.parquet"
    shutil.copy(finished.evaluation / "priors.parquet", table)
    model, notes = folders([finished.models / "r0f0"], threads=1, priors=table)
    assert notes == ("no temperature is known of r0f0",)
    own = finished.table.filter(slide_id="u0-a", fold=0).select("prob_negative", "prob_positive")
    np.testing.assert_allclose(model.predict(only_bag(finished)).each, own.to_numpy(), rtol=1e-5)
    empty = pl.read_parquet(table).clear()
    empty.write_parquet(table)
    with pytest.raises(UserError, match=r"--priors .*: does not have the model"):
        read_folders([finished.models / "r0f0"], threads=1, priors=table)


def test_folds_of_a_head_that_are_left_over_from_before_are_left_out_and_said(results):
    """As after `folds.repeats: 1`, which had been 2: their folders stay."""
    results.train(chunk="old", runs=(Run(0, 0, 1), Run(0, 1, 1)))
    model, notes = folders([results.models], threads=1)
    assert notes == ("left out, as they were not evaluated: r0f0s1, r0f1s1",)
    bag = only_bag(results)
    np.testing.assert_array_equal(model.predict(bag).each, results.frozen().predict(bag).each)
    asked, notes = folders([results.models / "r0f0s1"], threads=1)
    assert [fold.run for fold in asked.folds] == ["r0f0s1"]
    assert "as the training weighed them" in notes[0]
    both, notes = folders([results.models / "r0f0", results.models / "r0f0s1"], threads=1)
    assert all((fold.share == fold.seen).all() and fold.temperature == 1 for fold in both.folds)
    assert "as the training weighed them" in notes[0]


def test_an_evaluated_fold_whose_folder_is_gone_is_said(results):
    shutil.rmtree(results.models / "r0f1")
    model, notes = folders([results.models], threads=1)
    assert notes == ("evaluated, but not in the folder: r0f1",)
    assert [fold.run for fold in model.folds] == ["r0f0", "r0f2"]
    assert model.thresholds == ()


def test_models_of_different_tasks_are_not_averaged(results):
    other = Task(label="her2", classes={"low": ["0"], "high": ["3+"]})
    folder = results.models / "r0f1"
    reseal(folder, task=other.model_dump(mode="json", context="keep order"))
    with pytest.raises(UserError, match=r"r0f1 and r0f0: differ in task or classes"):
        read_folders([results.models], threads=1)


def test_folds_of_two_heads_keep_names_of_their_own(finished, tmp_path):
    for head in ("a", "b"):
        shutil.copytree(finished.models / "r0f0", tmp_path / head / "r0f0")
    model, _ = folders([tmp_path / "a" / "r0f0", tmp_path / "b" / "r0f0"], threads=1)
    assert [fold.run for fold in model.folds] == ["a/r0f0", "b/r0f0"]


@pytest.mark.parametrize(
    ("given", "mean"), [((2.0, 8.0), 4.0), ((None, 3.0), 3.0), ((None,), 1.0), ((), 1.0)]
)
def test_the_mean_temperature_is_that_of_its_logarithms(given, mean):
    assert geometric_mean(given) == pytest.approx(mean)
