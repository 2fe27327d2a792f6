"""`final: refit`: the model of all patients, calibrated by what the folds found."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from her2.config.jobs import EvaluateSpec, dump
from her2.core.errors import UserError
from her2.core.stamps import writing_stamp
from her2.mil.bags import Bag
from her2.mil.fold import load_model
from her2.mil.model import predict
from her2.storage.entries import FoldEntry, write_entries
from her2.storage.features import open_store
from tests.unit.bag_makers import CPU
from tests.unit.frozen_makers import CHUNK, NAMES, SECTION, Results, folders, make
from tests.unit.test_train_folds import cohort

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Return results of 12 negative and 4 positive patients, whose training drew them evenly."""
    slides = cohort(12)
    spare = {f"p{index}" for index in range(4, 12)}
    rows = tuple(row for row in slides.rows if row.patient_id not in spare)
    found = make(tmp_path_factory.mktemp("refit"), replace(slides, rows=rows))
    found.refit()
    return found


def expected(results: Results, bag: Bag) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities before and after the temperature, by hand."""
    given = predict(load_model(results.models / "refit", CPU).model, bag).probabilities
    before = given * np.array([12 / 16, 4 / 16]) / np.array([0.5, 0.5])
    before /= before.sum()
    temperatures = pl.read_parquet(results.evaluation / "temperatures.parquet")["temperature"]
    powers = before ** (1 / np.prod(temperatures.to_numpy()) ** (1 / len(temperatures)))
    return before, powers / powers.sum()


def bag_of(results: Results) -> Bag:
    entry = results.world.entries()["u0-a"]
    return Bag("u0-a", "", "", open_store(results.world.cache.path("features", entry.key)), None)


def test_it_is_corrected_by_its_own_patients_and_the_folds_mean_temperature(results):
    bag = bag_of(results)
    model = results.frozen(final="refit")
    assert [fold.run for fold in model.folds] == ["refit"]
    before, after = expected(results, bag)
    found = model.predict(bag)
    np.testing.assert_allclose(found.uncalibrated, before, rtol=1e-6)
    np.testing.assert_allclose(found.probabilities, after, rtol=1e-6)
    assert model.thresholds == results.frozen().thresholds != ()


def test_an_external_cohort_is_predicted_by_that_one_model(results):
    results.embed(["x", "y"])
    table = results.apply(final="refit")
    assert table["models"].to_list() == [1, 1]
    assert table["spread_positive"].to_list() == [0, 0]
    each = pl.read_parquet(results.output / "each.parquet")
    assert each["run"].to_list() == ["refit", "refit"]
    assert each["prob_positive"].to_list() == table["prob_positive"].to_list()
    folds = results.apply()
    assert folds["models"].to_list() == [3, 3]
    assert (folds["prob_positive"] != table["prob_positive"]).all()


def test_the_folder_of_that_model_alone_predicts_the_same(results, tmp_path):
    bag = bag_of(results)
    model, notes = folders([results.models / "refit"], threads=1)
    assert notes == ()
    np.testing.assert_array_equal(
        model.predict(bag).probabilities, results.frozen(final="refit").predict(bag).probabilities
    )
    assert [fold.run for fold in folders([results.models], threads=1)[0].folds] == [
        "r0f0", "r0f1", "r0f2",
    ]  # fmt: skip
    shutil.copytree(results.models / "refit", tmp_path / "refit")
    moved, notes = folders([tmp_path / "refit"], threads=1)
    assert notes == ("no temperature is known of refit",)
    np.testing.assert_allclose(
        moved.predict(bag).probabilities, expected(results, bag)[0], rtol=1e-6
    )


def test_the_folder_of_that_model_has_the_folds_thresholds(results):
    spec = EvaluateSpec(task=results.world.spec.task, chunks=(CHUNK,), evaluation=SECTION, seed=1)
    stamp = results.root.joinpath("stamps", "evaluate", *NAMES[:2], f"{NAMES[2]}.json")
    with writing_stamp(stamp, dump(spec)):
        pass
    model, _ = folders([results.models / "refit"], threads=1)
    stamp.unlink()
    assert model.thresholds == results.frozen().thresholds


@pytest.mark.parametrize("lacking", ["file", "model"])
def test_without_that_model_the_error_names_both_ways_out(results, tmp_path: Path, lacking):
    copy = Results(replace(results.world, root=tmp_path))
    shutil.copytree(results.root, copy.root)
    if lacking == "model":
        none = FoldEntry("", 3, 0, 0, 0, 0, None, reason="a class is gone")
        write_entries(copy.models / "refit.json", {"refit": none})
        words = r"lists no trained model `refit`: a class is gone. Run .* or set `final: folds`"
    else:
        (copy.models / "refit.json").unlink()
        words = r"refit.json: does not exist"
    with pytest.raises(UserError, match=words):
        copy.frozen(final="refit")


def test_a_refitted_model_that_was_changed_is_refused(results, tmp_path: Path):
    copy = Results(replace(results.world, root=tmp_path))
    shutil.copytree(results.root, copy.root)
    identity = copy.models / "refit" / "identity.json"
    text = identity.read_text()
    identity.unlink()
    identity.write_text(text.replace('"n1"', '"n2"'))
    with pytest.raises(UserError, match="has a changed file identity.json"):
        copy.frozen(final="refit")
