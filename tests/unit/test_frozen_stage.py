"""An external cohort is predicted by the frozen models; its labels are not read."""

import polars as pl
import pytest

from her2.config import Task
from her2.core.errors import UserError
from her2.core.files import file_digest
from her2.mil.bags import Bag
from her2.storage.entries import FeatureEntry, read_entries, write_entries
from her2.storage.features import open_store
from tests.unit.frozen_makers import Results, make
from tests.unit.test_train_folds import BUCKET, D, cohort

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return make(tmp_path_factory.mktemp("frozen"))


def tables(results: Results) -> dict[str, pl.DataFrame]:
    return {path.stem: pl.read_parquet(path) for path in results.output.glob("*.parquet")}


def test_every_slide_with_features_has_the_mean_of_all_models_and_each_of_them(results):
    results.embed(["x", "y", "z"], lost={"w": "decoder died"})
    given = results.apply()
    found = tables(results)
    assert sorted(found) == ["attention", "each", "predictions"]
    assert given.equals(found["predictions"])
    assert given.columns == [
        "slide_id", "tiles", "models", "prob_negative", "prob_positive", "raw_negative",
        "raw_positive", "spread_negative", "spread_positive", "distance", "distance_percentile",
    ]  # fmt: skip
    assert given["slide_id"].to_list() == ["x", "y", "z"]
    assert given["tiles"].to_list() == [7, 8, 9]
    assert given["models"].to_list() == [3, 3, 3]
    model = results.frozen()
    entries = read_entries(results.external / f"{BUCKET}.json", FeatureEntry)
    for row in given.iter_rows(named=True):
        store = open_store(results.world.cache.path("features", entries[row["slide_id"]].key))
        own = model.predict(Bag(row["slide_id"], "", "", store, None))
        assert [row["prob_negative"], row["prob_positive"]] == own.probabilities.tolist()
        assert [row["raw_negative"], row["raw_positive"]] == own.uncalibrated.tolist()
        assert [row["spread_negative"], row["spread_positive"]] == own.spread.tolist()
        each = found["each"].filter(slide_id=row["slide_id"])
        assert each["run"].to_list() == ["r0f0", "r0f1", "r0f2"]
        assert each["prob_positive"].mean() == pytest.approx(row["prob_positive"])
        (attention,) = found["attention"].filter(slide_id=row["slide_id"])["attention"]
        assert attention.to_list() == own.attention.tolist()
        assert len(attention) == row["tiles"]


def test_applying_again_writes_the_same_bytes_and_changes_no_model(results):
    results.embed(["x", "y"])
    before = {path: file_digest(path) for path in results.models.rglob("*.*")}
    results.apply()
    first = {path.name: file_digest(path) for path in results.output.iterdir()}
    results.apply()
    assert {path.name: file_digest(path) for path in results.output.iterdir()} == first
    assert {path: file_digest(path) for path in results.models.rglob("*.*")} == before


def test_slides_unlike_those_of_development_are_far_away(results):
    """Development is 26 slides of standard normal features; a shift of 3 is nothing like them."""
    results.embed([f"x{i}" for i in range(9)])
    near = results.apply()
    results.embed([f"x{i}" for i in range(9)], shift=3.0)
    far = results.apply()
    assert near["distance"].median() == pytest.approx(1, abs=0.5)
    assert near["distance_percentile"].median() < 90
    assert (far["distance_percentile"] == 100).all()
    assert far["distance"].min() > 2 * near["distance"].max()


WRONG = {
    "encoder": ({"encoder": "f"}, "x: comes from encoder f, the model from e"),
    "dimension": ({"d": D + 1}, f"y: has {D + 1} features per tile, the model expects {D}"),
}


@pytest.mark.parametrize("case", WRONG)
def test_features_of_another_encoder_are_refused_by_name(results, case):
    changed, words = WRONG[case]
    results.embed(["x", "y"], **changed)
    with pytest.raises(UserError) as caught:
        results.apply()
    assert words in str(caught.value)
    assert "features of validation.yale do not fit the models of score / plain" in str(caught.value)


def test_features_of_another_grid_are_refused_by_name(results, monkeypatch):
    results.embed(["x"], target={"mpp": 1.0, "px": 224})
    model = results.frozen()
    model.first.card["tiles"] = {"mpp": 0.5, "px": 224}
    monkeypatch.setattr("her2.frozen.stage.read_frozen", lambda *_, **__: model)
    with pytest.raises(UserError, match=r"x: has tiles of 224 px at 1 um/px, the model expects"):
        results.apply()


def test_too_many_slides_without_features_stop_the_job_by_name(results):
    results.embed(["x"], lost={"v": "no tissue found", "w": "decoder died"})
    with pytest.raises(UserError) as caught:
        results.apply(max_excluded=0.5)
    assert "2 of 3 slides cannot be used (validation.yale" in str(caught.value)
    assert "w: decoder died" in str(caught.value)


def test_a_cohort_without_a_usable_slide_stops_unless_the_config_says_so(results, caplog):
    results.embed([], lost={"v": "no tissue found", "w": "decoder died"})
    with pytest.raises(UserError, match=r"2 of 2 slides cannot be used"):
        results.apply(max_excluded=0.9)
    full = tables(results)
    given = results.apply(max_excluded=1)
    assert len(given) == 0
    for name, table in tables(results).items():
        assert len(table) == 0
        assert table.schema == full[name].schema
    assert "validation.yale: no slide has features" in caplog.text
    assert "v: no tissue found" in caplog.text


def test_a_task_that_has_other_classes_now_is_refused(results):
    results.embed(["x"])
    task = Task(label="her2", classes={"low": ["0"], "high": ["3+"]})
    with pytest.raises(UserError, match=r"its models know the classes negative, positive"):
        results.apply(task=task)


def test_a_development_of_few_patients_has_no_distances_and_it_is_said(tmp_path, caplog):
    results = make(tmp_path, cohort(6))
    results.embed(["x"])
    given = results.apply()
    assert given.select("distance", "distance_percentile").row(0) == (None, None)
    assert given["prob_positive"].is_finite().all()
    assert "development has too few patients" in caplog.text


def test_entries_files_of_several_numbers_of_buckets_are_refused_where_none_is_named(results):
    results.embed(["x"])
    stale = results.world.features / "0000-of-0002.json"
    write_entries(stale, {})
    try:
        with pytest.raises(UserError, match=r"several numbers of buckets \(\*-of-0001.json, \*-of"):
            results.apply()
        assert len(results.apply(development_buckets=(BUCKET,))) == 1
    finally:
        stale.unlink()
