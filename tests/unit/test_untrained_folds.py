"""Folds that lost a class with slides that could not be embedded: no model, a reason, no stop."""

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from her2.config import EvaluationSection
from her2.config.jobs import AttentionSpec, EvaluateSpec
from her2.core.errors import UserError
from her2.core.files import write_text
from her2.evaluation.paired import left_out_words, pair_models
from her2.evaluation.stage import evaluate
from her2.explanation.held_out import find_held_out
from her2.frozen.predict import predict_slides
from her2.report.results import read_results
from her2.report.sections import notices
from her2.report.sections.models import fold_rows
from her2.storage.entries import FeatureEntry, FoldEntry, read_entries, write_entries
from tests.unit.report_maker import Cohort
from tests.unit.test_train_folds import BUCKET, TASK, World, build, cohort

SECTION = EvaluationSection(bootstrap=100)


pytestmark = pytest.mark.usefixtures("one_thread")


def scarce(root: Path, **changed: object) -> World:
    """Return a world in which each fold tests, tunes and trains on one patient of a class."""
    slides = cohort(unlabelled=1)
    few = tuple(row for row in slides.rows if row.patient_id not in ("p0", "p1", "p2"))
    return build(root, replace(slides, rows=few), max_excluded=0.5, **changed)


def lose(world: World, *slides: str) -> None:
    failed = FeatureEntry(status="failed", reason="decoder died")
    world.set_entries(world.entries() | dict.fromkeys(slides, failed))


def only_training_slide(world: World, fold: int = 0) -> str:
    (slide,) = (name for name in world.part("train", fold) if name.startswith("p"))
    return slide


def evaluated(world: World) -> dict[str, pl.DataFrame]:
    spec = EvaluateSpec(task=TASK, chunks=("chunk",), evaluation=SECTION, seed=3)
    where = {"folds": world.folds, "models": world.output.parent}
    evaluate(spec, world.cache, **where, output=world.root / "evaluation")
    return {
        path.stem: pl.read_parquet(path) for path in (world.root / "evaluation").glob("*.parquet")
    }


def test_a_fold_that_lost_its_class_has_a_reason_and_the_others_are_trained(tmp_path):
    """Before, the whole job stopped, after all embedding."""
    world = scarce(tmp_path)
    whole = world.train()
    lose(world, only_training_slide(world))
    entries = world.train()
    assert read_entries(world.output, FoldEntry) == entries
    assert [run for run, entry in entries.items() if not entry.key] == ["r0f0"]
    assert entries["r0f0"].reason.startswith("no usable slide of class positive in the training")
    assert entries["r0f0"].train_slides == whole["r0f0"].train_slides - 1
    # Nothing is left of the model that the fold had with the slide, which `her2 predict` would use.
    assert not (world.output.parent / "r0f0").exists()
    assert (world.output.parent / "r0f1" / "card.json").exists()


def test_the_entries_of_trained_folds_are_written_as_before(tmp_path):
    world = scarce(tmp_path)
    world.train()
    for entry in json.loads(world.output.read_text()).values():
        assert list(entry) == sorted(
            ("key", "train_slides", "tune_slides", "test_slides", "best_epoch", "epochs",
             "tune_loss", "trials", "options")
        )  # fmt: skip


def test_figures_without_a_fold_say_over_how_many_they_are(tmp_path):
    world = scarce(tmp_path)
    lose(world, only_training_slide(world))
    world.train()
    tables = evaluated(world)
    words = "over 2 of 3 folds, without r0f0, which could not be trained"
    for name in ("metrics", "binary", "seeds", "calibration", "operating"):
        notes = tables[name]["note"].to_list()
        assert all(note.endswith(words) for note in notes), name
        assert not any(note.startswith(";") for note in notes)
    (area,) = (
        tables["metrics"].filter(level="patient", metric="auc", **{"class": "positive"}).to_dicts()
    )
    usable = {name for name, entry in world.entries().items() if entry.key}
    tested = {name for fold in (1, 2) for name in world.part("test", fold)} & usable
    assert area["n"] == len({name.split("-")[0] for name in tested})
    assert area["value"] is not None
    assert set(tables["predictions"].filter(role="test")["slide_id"]) == tested
    # The training sets of the others are known, though nobody predicted all of their slides.
    assert set(tables["priors"]["note"]) == {""}
    for (run, _), own in tables["priors"].group_by("run", "class"):
        rows = world.table().filter(
            fold=int(run[-1]), role="train", label=int(own["class"][0] != "negative")
        )
        assert own["slides"].item() == rows["slide_id"].is_in(list(usable)).sum()


def test_the_figures_of_the_fold_itself_are_na_with_the_reason(tmp_path):
    world = scarce(tmp_path)
    lose(world, only_training_slide(world))
    world.train()
    table = evaluated(world)["fold_metrics"].filter(level="patient")
    assert table["run"].unique(maintain_order=True).to_list() == ["r0f0", "r0f1", "r0f2"]
    own, other = (table.filter(run=run) for run in ("r0f0", "r0f1"))
    assert own.select("metric", "class").equals(other.select("metric", "class"))
    assert own["value"].null_count() == len(own)
    assert own["n"].unique().to_list() == [0]
    assert all("not defined: no model (no usable slide of class" in note for note in own["note"])
    assert other["value"].null_count() < len(other)


def test_with_every_fold_evaluation_says_nothing_of_folds(tmp_path):
    world = scarce(tmp_path)
    world.train()
    assert not any("folds" in note for note in evaluated(world)["metrics"]["note"])


def test_a_test_set_that_lost_a_class_has_na_and_the_rest_stands(tmp_path):
    world = scarce(tmp_path)
    (slide,) = (name for name in world.part("test", 1) if name.startswith("p"))
    lose(world, slide)
    entries = world.train()
    tables = evaluated(world)
    own = tables["fold_metrics"].filter(level="patient", run="r0f1", metric="auc")
    assert entries["r0f1"].key
    assert own["value"].null_count() == len(own)
    assert set(own["note"]) == {
        "not defined: a class is absent", "not defined: every patient is of this class",
    }  # fmt: skip


def test_a_tuning_set_without_what_selects_leaves_its_fold_without_a_model(tmp_path):
    training = build(tmp_path / "other").spec.training.model_copy(update={"select": "macro_auc"})
    world = scarce(tmp_path / "world", training=training)
    (slide,) = (name for name in world.part("tune", 2) if name.startswith("p"))
    lose(world, slide)
    entries = world.train()
    assert "training.select macro_auc is not defined" in entries["r0f2"].reason
    assert any(entry.key for entry in entries.values())


def test_where_no_fold_can_be_trained_all_reasons_are_told(tmp_path):
    world = scarce(tmp_path)
    lose(world, *(name for name in world.entries() if name.startswith("p")))
    with pytest.raises(UserError) as error:
        world.train()
    assert str(error.value).startswith("no fold can be trained\n  - r0f0: no usable slide of class")
    assert "  - r0f2: " in str(error.value)
    assert not world.output.exists()


def test_a_fixed_split_has_no_other_fold_to_go_on_with(tmp_path):
    world = scarce(tmp_path)
    slide = only_training_slide(world)
    world.table().filter(pl.col("fold") == 0).write_parquet(world.folds)
    lose(world, slide)
    with pytest.raises(UserError, match=r"no fold can be trained\n  - r0f0: no usable slide"):
        world.train(world.spec.model_copy(update={"runs": world.spec.runs[:1]}))


def test_a_chunk_of_folds_without_models_is_no_reason_to_stop(tmp_path):
    """Chunks are jobs of their own, and another one has the models."""
    world = scarce(tmp_path)
    lose(world, only_training_slide(world))
    entries = world.train(world.spec.model_copy(update={"runs": world.spec.runs[:1]}))
    assert [entry.key for entry in entries.values()] == [""]
    spec = EvaluateSpec(task=TASK, chunks=("chunk",), evaluation=SECTION, seed=3)
    with pytest.raises(UserError, match=r"no fold could be trained\n  - r0f0: no usable"):
        evaluate(spec, world.cache, folds=world.folds, models=world.output.parent, output=tmp_path)


def test_the_published_protocol_goes_on_without_a_fold_too(tmp_path):
    world = scarce(tmp_path, protocol="published")
    roles = world.table().with_columns(
        role=pl.when(pl.col("role") == "tune").then(pl.lit("train")).otherwise("role")
    )
    roles.write_parquet(world.folds)
    lose(world, *(name for name in world.part("train", 0) if name.startswith("p")))
    (left,) = (name for name in world.part("test", 0) if name.startswith("p"))
    assert world.entries()[left].status == "ok"
    entries = world.train()
    assert [run for run, entry in entries.items() if not entry.key] == ["r0f0"]
    spec = EvaluateSpec(
        task=TASK, protocol="published", chunks=("chunk",), evaluation=SECTION, seed=3
    )
    metrics = evaluate(
        spec, world.cache, folds=world.folds, models=world.output.parent, output=tmp_path / "out"
    )
    assert all("over 2 of 3 folds, without r0f0" in note for note in metrics["note"])


def test_models_are_compared_on_what_all_of_them_tested(tmp_path):
    whole, other = scarce(tmp_path / "whole"), scarce(tmp_path / "other")
    lose(other, only_training_slide(other))
    tables = {}
    for name, world in (("whole", whole), ("other", other)):
        world.train()
        tables[name, "abmil"] = evaluated(world)["predictions"]
    paired = pair_models(tables, TASK, SECTION)
    lost = {name.split("-")[0] for name in whole.part("test", 0)}
    everyone = {name.split("-")[0] for fold in range(3) for name in whole.part("test", fold)}
    # The slide that failed is itself tested by a fold that the second model has.
    also = {only_training_slide(whole).split("-")[0]}
    assert paired.counts["positive", ""] == len(everyone - lost - also)
    assert str(len(lost | also)) in paired.left_out


def test_a_comparison_says_whom_it_compares_in_fewer_repeats():
    def tested(*pairs: tuple[str, int]) -> pl.DataFrame:
        return pl.DataFrame(
            [(patient, repeat, "test") for patient, repeat in pairs],
            schema=["patient_id", "repeat", "role"], orient="row",
        )  # fmt: skip

    first = tested(("a", 0), ("a", 1), ("b", 0), ("b", 1), ("c", 0))
    second = tested(("a", 0), ("a", 1), ("b", 1))
    assert left_out_words({("x", "h"): first, ("y", "h"): second}, 2) == (
        "patients left out because not all models tested them: 1; patients compared in fewer "
        "repeats, because not all models tested them in each: 1"
    )
    assert left_out_words({("x", "h"): first, ("y", "h"): first}, 3) == ""


def test_attention_is_shown_of_the_folds_that_have_a_model(tmp_path):
    world = scarce(tmp_path)
    lose(world, only_training_slide(world))
    world.train()
    spec = AttentionSpec(
        task=TASK, chunks=("chunk",), buckets=(BUCKET,), faithfulness_slides=1, confidence=0.95,
        seed=1,
    )  # fmt: skip
    found = find_held_out(
        spec, world.cache, folds=world.folds, models=world.output.parent, features=world.features
    )
    assert sorted(found.models) == ["r0f1", "r0f2"]
    usable = {name for name, entry in world.entries().items() if entry.status == "ok"}
    tested = {name for fold in (1, 2) for name in world.part("test", fold)} & usable
    assert {slide.slide_id for slide in found.slides} == tested


def test_new_slides_are_predicted_by_the_folds_that_have_a_model(tmp_path):
    world = scarce(tmp_path)
    world.train()
    lose(world, only_training_slide(world))
    world.train()
    for name, entry in world.entries().items():
        if entry.key:
            store = world.features / f"{name}.zarr.zip"
            store.write_bytes(world.cache.path("features", entry.key).read_bytes())
    table = predict_slides([world.output.parent], world.features, tmp_path / "out.csv", threads=1)
    assert table["models"].drop_nulls().unique().to_list() == [2]


def test_an_entries_file_of_before_is_read(tmp_path):
    old = (
        '{"r0f0": {"key": "k", "train_slides": 1, "tune_slides": 1, "test_slides": 1, '
        '"best_epoch": 0, "epochs": 1, "tune_loss": 0.5, "trials": 1, "options": ""}}'
    )
    write_text(tmp_path / "chunk.json", old)
    assert read_entries(tmp_path / "chunk.json", FoldEntry)["r0f0"].reason == ""


def test_the_page_says_which_folds_have_no_model_and_why(tmp_path):
    reported = Cohort()
    reported.write(tmp_path)
    path = next((tmp_path / "models").rglob("r0f0-r0f2.json"))
    reason = "no usable slide of class 3+ in the training set"
    lost = FoldEntry("", 9, 3, 6, 0, 0, None, reason=reason)
    write_entries(path, read_entries(path, FoldEntry) | {"r0f1": lost})
    results = read_results(reported.spec(), tmp_path)
    (model,) = results.models
    found = [n.text for n in notices.notices(results, [], []) if "could not be trained" in n.text]
    assert found == [
        f"{model.name}: 1 of 3 folds could not be trained, and all figures are over the others "
        f"(r0f1: {reason})."
    ]
    assert [row.run for row in fold_rows(model)] == ["r0f0", "r0f2"]
