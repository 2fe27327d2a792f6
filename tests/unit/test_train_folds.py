import json
import resource
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from her2.cli.main import app
from her2.cohort.folds import make_folds
from her2.cohort.manifest import Cohort, SlideRow
from her2.config import EvaluationSection, Task, TrainingSection
from her2.config.heads import HEADS as SECTIONS
from her2.config.jobs import ClassBalance, EvaluateSpec, FoldsSpec, TrainSpec
from her2.config.names import Run
from her2.core.errors import UserError
from her2.core.files import digest, file_digest, link
from her2.evaluation.stage import evaluate
from her2.frozen.predict import predict_slides
from her2.heads.abmil import AttentionSection
from her2.mil import stage
from her2.mil import train as train_module
from her2.mil.apply import mismatches
from her2.mil.bags import Bag
from her2.mil.fold import load_model
from her2.mil.losses import bag_loss
from her2.mil.maps import read_maps
from her2.mil.priors import PRIORS
from her2.mil.stage import fold_identity, train_folds, training_seed
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, FoldEntry, read_entries, write_entries
from her2.storage.features import FeatureStore, open_store
from her2.storage.tiles import coords_digest
from her2.storage.upkeep import forget_slides
from her2.storage.verify import broken_products
from her2.training.checkpoint import Checkpoint
from tests.unit.products import reseal, write_store

TASK = Task(label="her2", classes={"negative": ["0"], "positive": ["3+"]})
BUCKET = "0000-of-0001"
D, TILES = 5, 6
RUNS = (Run(0, 0), Run(0, 1), Run(0, 2))
KEY_OF_BEFORE = "0f97d36a11865d7342eeb93cf4863210f8dfcb8f38beacf81a92d6038a20b712"
"""Key of the second fold of `build`'s world, with labels of 0, in version 0.1.0 (41754b3)."""


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class World:
    """A folder with folds, entries files and a cache of stores."""

    root: Path
    spec: TrainSpec

    @property
    def cache(self) -> Cache:
        return Cache(self.root / "cache")

    @property
    def folds(self) -> Path:
        return self.root / "folds.parquet"

    @property
    def features(self) -> Path:
        return self.root / "features"

    @property
    def output(self) -> Path:
        return self.root / "models" / "chunk.json"

    def train(self, spec: TrainSpec | None = None, cache: Cache | None = None, threads: int = 1):
        return train_folds(
            spec or self.spec,
            cache or self.cache,
            folds=self.folds,
            features=self.features,
            output=self.output,
            threads=threads,
        )

    def entries(self) -> dict[str, FeatureEntry]:
        return read_entries(self.features / f"{BUCKET}.json", FeatureEntry)

    def set_entries(self, entries: dict[str, FeatureEntry]) -> None:
        write_entries(self.features / f"{BUCKET}.json", entries)

    def table(self) -> pl.DataFrame:
        return pl.read_parquet(self.folds)

    def part(self, role: str, fold: int = 0) -> list[str]:
        rows = self.table().filter((pl.col("fold") == fold) & (pl.col("role") == role))
        return sorted(rows["slide_id"])

    def products(self, key: str) -> Path:
        return self.cache.path("models", key)

    def add_store(self, slide_id: str, *, d: int = D, encoder: str = "e", tiles: int = TILES):
        key = digest([slide_id, d, encoder, tiles])
        generator = np.random.default_rng(int(key[:8], 16))
        with self.cache.publish("features", key) as path:
            write_store(
                path,
                generator.normal(size=(tiles, d)).astype(np.float16),
                np.zeros((tiles, 2), np.int32),
                {"key": key, "encoder": {"digest": encoder}},
            )
        return FeatureEntry("ok", None, key, tiles, 0, d)


def cohort(patients: int = 6, unlabelled: int = 2) -> Cohort:
    rows = [
        SlideRow(f"{c}{i}-{letter}", "x.svs", f"{c}{i}", {"her2": value})
        for c, value in (("n", "0"), ("p", "3+"))
        for i in range(patients)
        for letter in ("ab" if i == 0 else "a")
    ]
    rows += [SlideRow(f"u{i}-a", "x.svs", f"u{i}", {}) for i in range(unlabelled)]
    return Cohort(tuple(sorted(rows, key=lambda row: row.slide_id)), Path("/nowhere"))


def build(root: Path, slides: Cohort | None = None, **changed: object) -> World:
    values = {
        "task": TASK,
        "head": AttentionSection(head="abmil", attention=4),
        "training": TrainingSection(bag_size=4, bags_per_batch=4, epochs=2, learning_rate=1e-2),
        "runs": RUNS,
        "buckets": (BUCKET,),
        "max_excluded": 0.2,
        "seed": 7,
    }
    world = World(root, TrainSpec(**(values | changed)))
    slides = slides or cohort()
    make_folds(
        FoldsSpec(rows="", task=TASK, folds=3, repeats=1, tune=0.25, seed=1), slides, world.folds
    )
    # Sizes differ, so that attention of one slide cannot be taken for another's.
    world.set_entries(
        {
            row.slide_id: world.add_store(row.slide_id, tiles=TILES + index)
            for index, row in enumerate(slides.rows)
        }
    )
    return world


@pytest.fixture
def world(tmp_path: Path) -> World:
    return build(tmp_path)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("a fold was trained")


def with_labels(world: World, slides: list[str], change) -> None:
    """Rewrite the folds table (one fold of it) with other labels for some slides."""
    table = world.table().filter(pl.col("fold") == 0)
    labels = [
        change(label) if slide in slides else label
        for slide, label in table.select("slide_id", "label").iter_rows()
    ]
    table.with_columns(label=pl.Series(labels, dtype=pl.Int32)).write_parquet(world.folds)


def test_a_fold_is_a_model_a_card_a_history_predictions_and_attention(world: World) -> None:
    entries = world.train()
    assert sorted(entries) == ["r0f0", "r0f1", "r0f2"]
    assert read_entries(world.output, FoldEntry) == entries
    for name, entry in entries.items():
        fold = int(name[-1])
        folder = world.products(entry.key)
        card = json.loads((folder / "card.json").read_text())
        assert set(card["files"]) | {"card.json"} == {item.name for item in folder.iterdir()}
        for item, sha256 in card["files"].items():
            assert file_digest(folder / item) == sha256
        assert entry.test_slides == len(world.part("test", fold))
        assert entry.train_slides == len(world.part("train", fold))
        assert entry.tune_slides == len(world.part("tune", fold))
        history = pl.read_parquet(folder / "history.parquet")
        assert entry.epochs == len(history) == 2
        assert history.columns == [
            "epoch", "learning_rate", "train_loss", "tune_loss", "tune_accuracy",
            "tune_balanced_accuracy", "tune_macro_auc", "tune_quadratic_kappa",
        ]  # fmt: skip
        assert entry.best_epoch == history["tune_loss"].arg_min()
        assert entry.tune_loss == pytest.approx(history["tune_loss"].min(), abs=1e-6)


def test_exactly_the_held_out_and_the_unlabelled_slides_are_predicted(world: World) -> None:
    for name, entry in world.train().items():
        table = pl.read_parquet(world.products(entry.key) / "predictions.parquet")
        expected = [*world.part("test", int(name[-1])), "u0-a", "u1-a"]
        assert table["slide_id"].to_list() == sorted(expected)
        patients = [slide.split("-")[0] for slide in table["slide_id"]]
        assert table["patient_id"].to_list() == patients
        sums = table.select(pl.col("prob_negative") + pl.col("prob_positive")).to_series()
        assert sums.to_numpy() == pytest.approx(np.ones(len(table)))


def test_predictions_for_the_tuning_set_are_stored_separately(world: World) -> None:
    """Their log loss is the tuning loss that picked the epoch, so they come from the kept model."""
    for name, entry in world.train().items():
        folder = world.products(entry.key)
        table = pl.read_parquet(folder / "tune.parquet")
        assert table["slide_id"].to_list() == sorted(world.part("tune", int(name[-1])))
        held_out = pl.read_parquet(folder / "predictions.parquet")
        assert not set(table["slide_id"]) & set(held_out["slide_id"])
        assert table.schema == held_out.schema
        positive = np.array([slide.startswith("p") for slide in table["slide_id"]])
        given = np.where(positive, table["prob_positive"], table["prob_negative"])
        assert -np.log(given).mean() == pytest.approx(entry.tune_loss, abs=1e-5)


def test_attention_has_one_value_a_tile_and_sums_to_one(world: World) -> None:
    entries = world.entries()
    for entry in world.train().values():
        table = pl.read_parquet(world.products(entry.key) / "attention.parquet")
        for slide, attention in table.iter_rows():
            assert len(attention) == entries[slide].tiles
            assert sum(attention) == pytest.approx(1, abs=1e-5)


def test_each_fold_is_found_under_its_own_name(world: World) -> None:
    entries = world.train()
    for name, entry in entries.items():
        for item in world.products(entry.key).iterdir():
            assert (world.output.parent / name / item.name).samefile(item)


def test_the_second_call_trains_nothing_and_writes_the_same_bytes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.train()
    before = world.output.read_bytes()
    world.output.unlink()
    monkeypatch.setattr(stage, "train_fold", refuse)
    world.train()
    assert world.output.read_bytes() == before


def test_folds_regrouped_into_other_jobs_are_not_trained_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_at_once = world.train()
    monkeypatch.setattr(stage, "train_fold", refuse)
    for index in range(3):
        alone = world.train(world.spec.model_copy(update={"runs": (RUNS[index],)}))
        assert alone == {f"r0f{index}": all_at_once[f"r0f{index}"]}


def test_the_same_seed_gives_identical_predictions_in_another_place(tmp_path: Path) -> None:
    first, second = build(tmp_path / "a"), build(tmp_path / "b")
    one, two = first.train(), second.train()
    assert one == two
    for name, entry in one.items():
        for item in ("predictions.parquet", "attention.parquet", "history.parquet"):
            tables = [pl.read_parquet(w.products(entry.key) / item) for w in (first, second)]
            assert tables[0].equals(tables[1]), (name, item)


def test_folds_do_not_depend_on_which_folds_a_job_trains(tmp_path: Path) -> None:
    together = build(tmp_path / "a")
    alone = build(tmp_path / "b", runs=(Run(0, 2),))
    key = together.train()["r0f2"].key
    assert alone.train()["r0f2"].key == key
    tables = [pl.read_parquet(w.products(key) / "predictions.parquet") for w in (together, alone)]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 8},
        {"head": AttentionSection(head="abmil", attention=4, gated=False)},
        {"training": TrainingSection(bag_size=4, bags_per_batch=4, epochs=3, learning_rate=1e-2)},
    ],
    ids=["seed", "head", "training"],
)
def test_what_determines_a_model_is_in_its_key(world: World, change: dict[str, object]) -> None:
    keys = {entry.key for entry in world.train().values()}
    others = world.train(world.spec.model_copy(update=change))
    assert len(keys) == 3
    assert keys.isdisjoint(entry.key for entry in others.values())


def test_what_does_not_determine_a_model_is_not_in_its_key(world: World) -> None:
    keys = {name: entry.key for name, entry in world.train().items()}
    same = world.spec.model_copy(update={"max_excluded": 0.9})
    assert {name: entry.key for name, entry in world.train(same, threads=2).items()} == keys


def test_another_training_seed_is_another_model_of_the_same_fold(world: World) -> None:
    runs = (Run(0, 0), Run(0, 0, 1), Run(0, 0, 2))
    entries = world.train(world.spec.model_copy(update={"runs": runs}))
    assert list(entries) == ["r0f0", "r0f0s1", "r0f0s2"]
    folders = [world.products(entry.key) for entry in entries.values()]
    cards = [json.loads((folder / "card.json").read_text()) for folder in folders]
    assert len({card["folds_digest"] for card in cards}) == 1
    assert len({card["seed"] for card in cards}) == len({card["key"] for card in cards}) == 3
    tables = [pl.read_parquet(folder / "predictions.parquet") for folder in folders]
    assert tables[0]["slide_id"].equals(tables[1]["slide_id"])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not tables[one].equals(tables[other])


def test_the_first_seed_does_not_depend_on_how_many_there_are(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = world.train()
    before = {
        name: world.products(entry.key) / "model.safetensors" for name, entry in alone.items()
    }
    digests = {name: file_digest(path) for name, path in before.items()}
    trained = []

    def counted(*parts: object, **options: object) -> train_module.Trained:
        trained.append(options["seed"])
        return train_module.train_fold(*parts, **options)

    monkeypatch.setattr(stage, "train_fold", counted)
    runs = (*RUNS, *(run._replace(seed=1) for run in RUNS))
    both = world.train(world.spec.model_copy(update={"runs": runs}))
    assert {name: both[name] for name in alone} == alone
    assert {name: file_digest(path) for name, path in before.items()} == digests
    assert len(trained) == len(set(trained)) == len(RUNS)  # the new ones alone


def test_a_model_of_the_first_seed_has_the_key_of_before_there_were_seeds(tmp_path: Path) -> None:
    """Otherwise folds of existing caches would be trained again."""
    world = build(tmp_path, version=3)
    table = world.table().filter(pl.col("fold") == 1)
    bags = {
        name: Bag(name, "", entry.key, open_store(world.cache.path("features", entry.key)), 0)
        for name, entry in world.entries().items()
    }
    parts = stage._parts(table, bags, grouped=False)
    assert digest(fold_identity(world.spec, parts, Run(0, 1))) == KEY_OF_BEFORE
    assert training_seed(7, Run(0, 1)) == int(digest([7, 0, 1])[:8], 16)


def test_a_fitted_head_is_the_same_model_with_every_seed(world: World) -> None:
    runs = (Run(0, 0), Run(0, 0, 1))
    logistic = SECTIONS["logistic"](head="logistic")
    entries = world.train(world.spec.model_copy(update={"runs": runs, "head": logistic}))
    first, second = (
        pl.read_parquet(world.products(entry.key) / "predictions.parquet")
        for entry in entries.values()
    )
    assert first.equals(second)


def test_labels_of_the_test_set_are_no_input_of_a_model(tmp_path: Path) -> None:
    straight, altered = build(tmp_path / "a", runs=RUNS[:1]), build(tmp_path / "b", runs=RUNS[:1])
    with_labels(straight, [], lambda label: label)
    with_labels(altered, altered.part("test"), lambda label: 1 - label)
    assert not straight.table().equals(altered.table())
    key = straight.train()["r0f0"].key
    assert altered.train()["r0f0"].key == key
    for item in ("model.safetensors", "history.parquet", "predictions.parquet"):
        assert file_digest(straight.products(key) / item) == file_digest(
            altered.products(key) / item
        )


@pytest.mark.parametrize("role", ["train", "tune"])
def test_a_label_that_was_learnt_from_is_in_the_key(tmp_path: Path, role: str) -> None:
    straight, altered = build(tmp_path / "a", runs=RUNS[:1]), build(tmp_path / "b", runs=RUNS[:1])
    with_labels(straight, [], lambda label: label)
    with_labels(altered, altered.part(role)[:1], lambda label: 1 - label)
    assert straight.train()["r0f0"].key != altered.train()["r0f0"].key


def test_other_features_of_any_slide_are_another_key(world: World) -> None:
    spec = world.spec.model_copy(update={"runs": RUNS[:1]})
    keys = {world.train(spec)["r0f0"].key}
    entries = world.entries()
    for role in ("train", "tune", "test", "predict"):
        slide = world.part(role)[0]
        world.set_entries(entries | {slide: world.add_store(slide, tiles=40)})
        keys.add(world.train(spec)["r0f0"].key)
    assert len(keys) == 5


def retried(world: World, slide_id: str, kept: int) -> None:
    """Put another store under the key of a slide, with this many of its tiles read."""
    entries, tiles = world.entries(), TILES + 9
    coords = np.arange(2 * tiles, dtype=np.int32).reshape(tiles, 2)
    identity = {
        "fingerprint": slide_id, "tiles": coords_digest(coords, [9, 9]), "encoder": "e",
        "precision": "float32", "storage": "float16",
    }  # fmt: skip
    key = digest(identity)
    slide = {"fingerprint": slide_id, "level0_tile": [9, 9], "checksum": "c"}
    with world.cache.publish("features", key) as path:
        attributes = {
            "key": key, "identity": identity, "encoder": {"digest": "e"}, "precision": "float32",
            "tiles": kept, "failed_tiles": tiles - kept, "slide": slide,
        }  # fmt: skip
        write_store(path, np.ones((kept, D), np.float16), coords[:kept], attributes)
    world.set_entries(entries | {slide_id: FeatureEntry("ok", None, key, kept, tiles - kept, D)})


@pytest.mark.parametrize("role", ["train", "tune", "test", "predict"])
def test_a_fold_of_other_tiles_of_a_slide_is_trained_beside_the_one_before(
    world: World, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key of a store says which tiles it was asked for, and not which could be read."""
    slide, spec = world.part(role)[0], world.spec.model_copy(update={"runs": RUNS[:1]})
    retried(world, slide, 8)
    before = world.train(spec)["r0f0"]
    retried(world, slide, TILES + 9)
    after = world.train(spec)["r0f0"]
    assert before.key != after.key
    assert broken_products(world.cache)[1] == []
    monkeypatch.setattr(stage, "train_fold", refuse)
    assert world.train(spec)["r0f0"] == after
    retried(world, slide, 8)
    assert world.train(spec)["r0f0"] == before


def test_a_fold_that_does_not_say_what_it_read_is_believed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of older versions do not."""
    slide, spec = world.part("train")[0], world.spec.model_copy(update={"runs": RUNS[:1]})
    retried(world, slide, 8)
    before = world.train(spec)["r0f0"]
    (world.products(before.key) / "identity.json").unlink()
    reseal(world.products(before.key))
    retried(world, slide, TILES + 9)
    monkeypatch.setattr(stage, "train_fold", refuse)
    assert world.train(spec)["r0f0"] == before
    world.output.parent.rename(world.root / "models.before")
    results = world.root / "all"
    (results / "models").mkdir(parents=True)
    (world.root / "models.before").rename(results / "models" / "head")
    write_entries(results / "features" / "e" / "b.json", world.entries())
    assert forget_slides(world.cache, [slide], [results]).products
    assert world.cache.find("models", before.key) is None


def test_swapped_stores_are_not_trained_on(world: World) -> None:
    one, other = (world.cache.path("features", world.entries()[n].key) for n in ("n1-a", "p1-a"))
    one.rename(one.with_name("aside"))
    other.rename(one)
    one.with_name("aside").rename(other)
    with pytest.raises(UserError, match="n1-a.*in the quarantine .*run snakemake again"):
        world.train()
    assert [p for p in world.cache.products() if p.kind == "models"] == []


@pytest.mark.parametrize("file", ["predictions.parquet", "attention.parquet", "card.json"])
def test_a_fold_that_was_changed_in_place_is_trained_again(world: World, file: str) -> None:
    spec = world.spec.model_copy(update={"runs": RUNS[:1]})
    entry = world.train(spec)["r0f0"]
    whole = {item.name: item.read_bytes() for item in world.products(entry.key).iterdir()}
    link_of = world.output.parent / "r0f0" / file
    with link_of.open("r+b") as stream:
        stream.seek(40)
        stream.write(b"????")
    assert world.train(spec)["r0f0"] == entry
    again = {item.name: item.read_bytes() for item in world.products(entry.key).iterdir()}
    assert again == whole
    assert link_of.read_bytes() == whole[file]


def test_an_excluded_slide_is_absent_from_its_part(world: World) -> None:
    slide = world.part("test")[0]
    world.set_entries(world.entries() | {slide: FeatureEntry("excluded", "no tissue found")})
    entry = world.train()["r0f0"]
    assert entry.test_slides == len(world.part("test")) - 1
    table = pl.read_parquet(world.products(entry.key) / "predictions.parquet")
    assert slide not in table["slide_id"].to_list()


def test_more_excluded_slides_than_allowed_stop_the_job_by_name(world: World) -> None:
    lost = {name: FeatureEntry("failed", "cut off") for name in world.part("test")}
    world.set_entries(world.entries() | lost)
    with pytest.raises(UserError, match=r"cohort\.max_excluded 0\.2") as caught:
        world.train()
    assert all(f"{name}: cut off" in str(caught.value) for name in lost)


def test_a_test_set_without_a_usable_slide_leaves_an_empty_typed_table(tmp_path: Path) -> None:
    world = build(tmp_path, cohort(unlabelled=0), runs=RUNS[:1], max_excluded=0.9)
    lost = {name: FeatureEntry("failed", "cut off") for name in world.part("test")}
    world.set_entries(world.entries() | lost)
    entry = world.train()["r0f0"]
    assert entry.test_slides == 0
    table = pl.read_parquet(world.products(entry.key) / "predictions.parquet")
    assert len(table) == 0
    assert table.schema == {
        "slide_id": pl.String,
        "patient_id": pl.String,
        "prob_negative": pl.Float64,
        "prob_positive": pl.Float64,
    }


def test_a_store_that_left_the_cache_is_an_error_with_its_fix(world: World) -> None:
    key = world.entries()["n1-a"].key
    world.cache.path("features", key).unlink()
    with pytest.raises(UserError, match="n1-a.*is not in the cache.*Delete the entries files"):
        world.train()


def test_a_broken_store_is_an_error_with_its_fix(world: World) -> None:
    path = world.cache.path("features", world.entries()["n1-a"].key)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="n1-a.*in the quarantine .*run snakemake again"):
        world.train()


@pytest.mark.parametrize("other", [{"encoder": "f"}, {"d": D + 1}], ids=["encoder", "dimension"])
def test_a_store_of_another_encoder_stops_the_job(world: World, other: dict[str, object]) -> None:
    slide = world.part("train")[0]
    world.set_entries(world.entries() | {slide: world.add_store(slide, **other)})
    with pytest.raises(UserError, match=f"different encoders.*{slide}"):
        world.train()


def test_a_test_slide_of_another_encoder_stops_the_job(world: World) -> None:
    slide = world.part("test")[0]
    world.set_entries(world.entries() | {slide: world.add_store(slide, encoder="f")})
    with pytest.raises(UserError, match=f"different encoders.*{slide}"):
        world.train(world.spec.model_copy(update={"runs": RUNS[:1]}))


def test_a_slide_without_an_entry_is_named(world: World) -> None:
    entries = world.entries()
    del entries["p3-a"]
    world.set_entries(entries)
    with pytest.raises(UserError, match="p3-a: is in the folds table but in no entries file"):
        world.train()


def test_a_patient_in_two_parts_stops_the_job_before_training(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "train_fold", refuse)
    crossing = {"n0-b": "train", "n0-a": "test"}
    role = pl.col("slide_id").replace_strict(crossing, default=pl.col("role"))
    world.table().with_columns(role=role).write_parquet(world.folds)
    with pytest.raises(UserError, match="n0 in test and train"):
        world.train()


def test_a_fold_that_cannot_be_trained_leaves_nothing_in_the_cache(world: World) -> None:
    exploding = world.spec.training.model_copy(update={"learning_rate": 1e30, "epochs": 9})
    with pytest.raises(UserError, match="lower training"):
        world.train(world.spec.model_copy(update={"training": exploding}))
    assert [p for p in world.cache.products() if p.kind == "models"] == []
    assert not world.output.exists()


def test_a_cohort_of_more_slides_than_the_system_lets_files_be_open(tmp_path: Path) -> None:
    # Each mapped store holds its file open; 1,024 is the usual limit, a cohort has more slides.
    world = build(tmp_path, cohort(patients=45, unlabelled=0), runs=RUNS[:1])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    now = len(list(Path("/proc/self/fd").iterdir()))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (now + 40, limits[1]))
        assert world.train()["r0f0"].test_slides >= 30
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# What a fold leaves, and what it leaves behind


def test_the_card_says_all_that_a_prediction_has_to_agree_with(world: World) -> None:
    entry = world.train(world.spec.model_copy(update={"runs": RUNS[:1]}))["r0f0"]
    card = json.loads((world.products(entry.key) / "card.json").read_text())
    assert card["head"]["head"] == "abmil"
    assert card["head"]["attention"] == 4
    assert card["training"]["epochs"] == 2
    assert card["task"]["classes"] == [["negative", ["0"]], ["positive", ["3+"]]]
    assert card["outputs"] == ["negative", "positive"]
    assert (card["dimension"], card["encoder_digest"]) == (D, "e")
    parts = {
        role: [(slide, slide.split("-")[0]) for slide in world.part(role)]
        for role in ("train", "tune", "test", "predict")
    }
    assert card["folds_digest"] == digest(parts)


def test_no_checkpoint_is_left_when_a_fold_is_published(world: World) -> None:
    world.train()
    assert not list(world.cache.root.rglob("*checkpoint*"))


def test_a_killed_job_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = TrainingSection(
        bag_size=4, bags_per_batch=4, epochs=6, patience=6, learning_rate=1e-2
    )
    whole, killed = (
        build(tmp_path / name, training=training, runs=RUNS[:1]) for name in ("a", "b")
    )
    key = whole.train()["r0f0"].key
    real, calls = Checkpoint.save, 0

    def dying(*arguments: object) -> None:
        nonlocal calls
        real(*arguments)
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    path = stage.checkpoint_path(killed.cache, key)
    assert path.exists()
    assert path in killed.cache.leftovers(older_than_seconds=-1)  # what `cache prune` removes
    assert [p for p in killed.cache.products() if p.kind == "models"] == []
    assert killed.train()["r0f0"].key == key
    assert calls == 6  # three epochs before, three after
    for item in ("model.safetensors", "history.parquet", "predictions.parquet", "card.json"):
        assert file_digest(killed.products(key) / item) == file_digest(whole.products(key) / item)
    assert not path.exists()


def test_a_checkpoint_under_the_name_of_another_fold_is_not_resumed_from(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    specs = [world.spec.model_copy(update={"runs": (run,)}) for run in RUNS[:2]]
    keys = [world.train(spec)[spec.runs[0].name].key for spec in specs]
    expected = file_digest(world.products(keys[1]) / "model.safetensors")
    shutil.rmtree(world.cache.root / "models")
    real = Checkpoint.save
    with monkeypatch.context() as patch:

        def dying(*arguments: object) -> None:
            real(*arguments)
            raise KeyboardInterrupt

        patch.setattr(Checkpoint, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            world.train(specs[0])
    one, other = (stage.checkpoint_path(world.cache, key) for key in keys)
    other.parent.mkdir(exist_ok=True)
    one.rename(other)
    world.train(specs[1])
    assert "it was written with other data or settings" in caplog.text
    assert file_digest(world.products(keys[1]) / "model.safetensors") == expected


def test_a_fold_that_explodes_keeps_its_last_good_checkpoint(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def exploding(*arguments: object, **options: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return bag_loss(*arguments, **options) * (float("nan") if calls > 2 else 1)

    monkeypatch.setattr(train_module, "bag_loss", exploding)
    with pytest.raises(UserError, match="the loss is nan in epoch 1.*The last good epoch .0. is"):
        world.train(world.spec.model_copy(update={"runs": RUNS[:1]}))
    assert len(list(world.cache.root.rglob("*checkpoint*"))) == 1


def test_a_search_writes_its_trials_and_is_part_of_the_key(world: World) -> None:
    plain = world.spec.model_copy(update={"runs": RUNS[:1]})
    searched = AttentionSection(
        head="abmil",
        attention=4,
        search={"trials": 2, "options": {"attention": [2, 3], "gated": [True, False]}},
    )
    entry = world.train(plain.model_copy(update={"head": searched}))["r0f0"]
    assert entry.key != world.train(plain)["r0f0"].key
    assert entry.trials == 2
    folder = world.products(entry.key)
    trials = pl.read_parquet(folder / "trials.parquet")
    assert entry.tune_loss == pytest.approx(trials["tune_loss"].min(), abs=1e-6)
    best = trials.row(trials["tune_loss"].arg_min(), named=True)
    assert entry.options == best["options"]
    head = json.loads((folder / "card.json").read_text())["head"]
    assert {key: head[key] for key in ("attention", "gated")} == json.loads(best["options"])
    assert not list(world.cache.root.rglob("*checkpoint*"))


@pytest.mark.parametrize(
    ("head", "names"),
    [
        ("multibranch", {"attention"}),
        ("additive", {"contribution"}),
        ("dsmil", {"attention"}),
        ("abmil", set()),
    ],
)
def test_maps_of_each_class_and_contributions_are_stored_where_a_head_has_them(
    world: World, head: str, names: set[str]
) -> None:
    section = SECTIONS[head].model_validate({"head": head, "hidden": 8})
    spec = world.spec.model_copy(update={"runs": RUNS[:1], "head": section})
    folder = world.products(world.train(spec)["r0f0"].key)
    attention = dict(pl.read_parquet(folder / "attention.parquet").iter_rows())
    saved = load_model(folder, torch.device("cpu"))
    for slide, weights in attention.items():
        maps = read_maps(folder, slide)
        assert set(maps) == names
        tiles = world.entries()[slide].tiles
        assert all(values.shape == (tiles, 2) for values in maps.values())
        if "attention" in maps:
            np.testing.assert_allclose(maps["attention"].sum(axis=0), 1, rtol=1e-5)
            assert any(np.allclose(column, weights) for column in maps["attention"].T)
        if "contribution" in maps:
            path = world.cache.path("features", world.entries()[slide].key)
            logits = saved.model.whole(Bag(slide, "", "", open_store(path), None)).logits[0]
            np.testing.assert_allclose(
                maps["contribution"].sum(axis=0), logits.detach(), rtol=1e-4, atol=1e-5
            )


def test_no_file_of_another_fold_stays_under_a_fold_s_name(world: World) -> None:
    spec = world.spec.model_copy(update={"runs": RUNS[:1]})
    maps = SECTIONS["multibranch"].model_validate({"head": "multibranch"})
    folder = world.output.parent / "r0f0"
    world.train(spec.model_copy(update={"head": maps}))
    assert (folder / "maps.safetensors").exists()
    entry = world.train(spec)["r0f0"]
    assert {item.name for item in folder.iterdir()} == {
        item.name for item in world.products(entry.key).iterdir()
    }


# Prediction of another cohort


def trained_model(world: World, **changed: object) -> Path:
    spec = world.spec.model_copy(update={"runs": RUNS[:1], **changed})
    return world.products(world.train(spec)["r0f0"].key)


def elsewhere(world: World, names: list[str], **store: object) -> Path:
    """Return a folder of stores named by slide, as embedding writes it."""
    folder = world.root / "elsewhere"
    for name in names:
        key = world.add_store(name, **store).key
        link(world.cache.path("features", key), folder / f"{name}.zarr.zip")
    return folder


@pytest.mark.parametrize("head", ["abmil", "clam_mb", "logistic"])
def test_a_saved_model_predicts_what_its_fold_predicted(world: World, head: str) -> None:
    model = trained_model(world, head=SECTIONS[head].model_validate({"head": head}))
    expected = pl.read_parquet(model / "predictions.parquet")
    tiles = {name: entry.tiles for name, entry in world.entries().items()}
    folder = world.root / "elsewhere"
    for name in expected["slide_id"]:
        elsewhere(world, [name], tiles=tiles[name])
    table = predict_slides([model], folder, world.root / "out.csv", threads=1)
    assert table["slide_id"].to_list() == expected["slide_id"].to_list()
    for column in ("prob_negative", "prob_positive"):
        np.testing.assert_allclose(table[column], expected[column], rtol=1e-6)
    written = pl.read_csv(world.root / "out.csv")
    assert written["predicted"].to_list() == table["predicted"].to_list()


def evaluated(world: World, models: Path, output: Path) -> pl.DataFrame:
    """Evaluate the folds of the world, whose training drew the classes evenly."""
    spec = EvaluateSpec(
        task=TASK, chunks=("chunk",), training=ClassBalance(balance="sampling"),
        evaluation=EvaluationSection(bootstrap=100), seed=1,
    )  # fmt: skip
    evaluate(spec, world.cache, folds=world.folds, models=models, output=output)
    return pl.read_parquet(output / "predictions.parquet")


def unbalanced(root: Path) -> World:
    """Return a world of 12 negative and 4 positive patients."""
    slides = cohort(12)
    spare = {f"p{index}" for index in range(4, 12)}
    rows = tuple(row for row in slides.rows if row.patient_id not in spare)
    return build(root, replace(slides, rows=rows))


def test_predictions_elsewhere_are_corrected_and_calibrated_like_the_evaluation(
    tmp_path: Path,
) -> None:
    """In a results folder the tables of the evaluation are found, and the corrections agree."""
    world = unbalanced(tmp_path)
    entries = world.train()
    results = tmp_path / "results"
    head = results / "models" / "score" / "uni2" / "abmil"
    shutil.copytree(world.output.parent, head)
    evaluation = results / "evaluation" / "score" / "uni2" / "abmil"
    expected = evaluated(world, head, evaluation)
    assert (expected["prob_positive"] < expected["raw_positive"]).all()
    tiles = {name: entry.tiles for name, entry in world.entries().items()}
    own = expected.filter((pl.col("fold") == 0) & (pl.col("role") != "tune")).sort("slide_id")
    for name in own["slide_id"]:
        folder = elsewhere(world, [name], tiles=tiles[name])
    out = tmp_path / "out.csv"
    found = predict_slides([head / "r0f0"], folder, out, threads=1)
    assert found["slide_id"].to_list() == own["slide_id"].to_list()
    temperatures = pl.read_parquet(evaluation / "temperatures.parquet")
    (temperature,) = temperatures.filter(run="r0f0")["temperature"]
    logits = np.log(own["prob_positive"] / own["prob_negative"]) / temperature
    calibrated = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(found["prob_positive"], calibrated, rtol=1e-5)
    assert found.select("prior", "calibrated").unique().rows() == [("training set", True)]

    model = world.products(entries["r0f0"].key)  # the same model, without its results folder
    left = predict_slides([model], folder, out, threads=1)
    np.testing.assert_allclose(left["prob_positive"], own["raw_positive"], rtol=1e-5)
    assert left.select("prior", "calibrated").unique().rows() == [("as trained", False)]
    table = evaluation / "priors.parquet"
    again = predict_slides([model], folder, out, threads=1, priors=table)
    assert again.equals(found)
    alone = tmp_path / "priors.parquet"
    shutil.copy(table, alone)
    corrected = predict_slides([model], folder, out, threads=1, priors=alone)
    np.testing.assert_allclose(corrected["prob_positive"], own["prob_positive"], rtol=1e-5)
    assert corrected.select("prior", "calibrated").unique().rows() == [("training set", False)]


def test_a_table_of_other_models_priors_is_refused(world: World) -> None:
    model, folder = trained_model(world), elsewhere(world, ["new-a"])
    table = world.root / "priors.parquet"
    pl.DataFrame(schema=PRIORS).write_parquet(table)
    with pytest.raises(UserError, match=r"--priors .*: does not have the model"):
        predict_slides([model], folder, world.root / "out.csv", threads=1, priors=table)


def test_the_command_predicts_with_all_folds_that_it_is_given(world: World) -> None:
    world.train()
    models = [str(world.output.parent / f"r0f{fold}") for fold in range(3)]
    folder, out = elsewhere(world, ["new-a"]), world.root / "out.csv"
    arguments = ["predict", *models, "--features", str(folder), "--out", str(out)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert pl.read_csv(out).select("slide_id", "status", "models").row(0) == ("new-a", "ok", 3)


def test_several_models_are_averaged(world: World) -> None:
    entries = world.train()
    models = [world.products(entry.key) for entry in entries.values()]
    folder = elsewhere(world, ["new-a", "new-b"])
    out = world.root / "out.parquet"
    tables = [predict_slides([model], folder, out, threads=1) for model in models]
    mean = np.mean([table["prob_positive"].to_numpy() for table in tables], axis=0)
    together = predict_slides(models, folder, out, threads=1)
    np.testing.assert_allclose(together["prob_positive"], mean, rtol=1e-6)
    assert pl.read_parquet(out).equals(together)


def test_a_heads_folder_stands_for_all_of_its_folds(world: World) -> None:
    entries = world.train()
    models = [world.products(entry.key) for entry in entries.values()]
    folder, out = elsewhere(world, ["new-a"]), world.root / "out.parquet"
    expected = predict_slides(models, folder, out, threads=1)
    assert predict_slides([world.output.parent], folder, out, threads=1).equals(expected)


@pytest.mark.parametrize("pattern", ["r0f*", "*", "r0f[01]*"])
def test_a_pattern_that_also_matches_entries_files_stands_for_its_folds(
    world: World, pattern: str, caplog: pytest.LogCaptureFixture
) -> None:
    """`.../abmil/r0f*` also matches `r0f0-r0f2.json`, which is no model."""
    world.train()
    head = world.output.parent
    world.output.rename(head / "r0f0-r0f2.json")
    given = sorted(head.glob(pattern))
    folds = [path for path in given if path.is_dir()]
    assert len(folds) in (2, 3)
    assert len(folds) < len(given)
    folder, out = elsewhere(world, ["new-a"]), world.root / "out.parquet"
    expected = predict_slides(folds, folder, out, threads=1)
    with caplog.at_level("INFO"):
        assert predict_slides(given, folder, out, threads=1).equals(expected)
    assert expected["models"].to_list() == [len(folds)]
    assert "r0f0-r0f2.json" in caplog.text


def test_files_that_are_no_folds_are_all_named(world: World) -> None:
    world.train()
    head = world.output.parent
    (head / "notes.json").write_text("{}")
    (head / "notes.txt").write_text("trained on Monday")
    out = world.root / "out.csv"
    with pytest.raises(UserError) as caught:
        predict_slides(sorted(head.iterdir()), elsewhere(world, ["new-a"]), out, threads=1)
    assert "notes.json: is a file" in str(caught.value)
    assert "notes.txt: is a file" in str(caught.value)
    with pytest.raises(
        UserError, match=f"{world.output}: is a file; give a folder, such as {head}"
    ):
        predict_slides([world.output], world.root / "elsewhere", out, threads=1)


def test_the_model_of_all_patients_is_not_averaged_with_folds(world: World) -> None:
    world.train()
    head, out = world.output.parent, world.root / "out.parquet"
    folder = elsewhere(world, ["new-a"])
    expected = predict_slides([head], folder, out, threads=1)
    shutil.copytree(head / "r0f0", head / "refit")
    (head / "refit.json").write_text("{}")
    assert predict_slides([head], folder, out, threads=1).equals(expected)
    assert predict_slides([head / "refit"], folder, out, threads=1)["models"].to_list() == [1]
    with pytest.raises(UserError, match="refit: is the model of all patients"):
        predict_slides(sorted(head.iterdir()), folder, out, threads=1)


@pytest.mark.parametrize(
    ("store", "words"),
    [
        ({"encoder": "f"}, "new-a: comes from encoder f, the model from e"),
        ({"d": D + 1}, f"new-a: has {D + 1} features per tile, the model expects {D}"),
    ],
)
def test_features_of_another_encoder_are_refused_by_name(
    world: World, store: dict[str, object], words: str
) -> None:
    model, folder = trained_model(world), elsewhere(world, ["new-a"], **store)
    out = world.root / "out.csv"
    with pytest.raises(UserError) as caught:
        predict_slides([model], folder, out, threads=1)
    assert words in str(caught.value)
    assert not out.exists()


def test_tiles_of_another_scale_are_refused(world: World) -> None:
    model = load_model(trained_model(world), torch.device("cpu"))
    model.card["tiles"] = {"mpp": 0.5, "px": 224}
    store = FeatureStore(
        Path("x"),
        (np.zeros((3, D), np.float16),),
        {"encoder": {"digest": "e"}, "target": {"mpp": 1.0, "px": 224}},
    )
    assert mismatches(store, model) == [
        "has tiles of 224 px at 1 um/px, the model expects 224 px at 0.5"
    ]


def test_a_slide_without_features_is_in_the_table_with_its_reason(world: World) -> None:
    model, folder = trained_model(world), elsewhere(world, ["new-a"])
    lost = {"new-b": FeatureEntry("excluded", "no tissue found")}
    write_entries(folder / f"{BUCKET}.json", lost)
    table = predict_slides([model], folder, world.root / "out.csv", threads=1)
    assert table.filter(slide_id="new-b").select("status", "reason", "predicted").row(0) == (
        "excluded", "no tissue found", None,
    )  # fmt: skip


def test_models_that_do_not_go_together_are_refused(world: World) -> None:
    other = Task(label="her2", classes={"low": ["0"], "high": ["3+"]})
    models = [trained_model(world), trained_model(world, task=other)]
    with pytest.raises(UserError, match=r"cannot be averaged\n.* differ in task"):
        predict_slides(models, elsewhere(world, ["a"]), world.root / "out.csv", threads=1)


@pytest.mark.parametrize("damage", ["card", "weights", "absent"])
def test_a_damaged_model_is_refused(world: World, damage: str) -> None:
    model = trained_model(world)
    copy = world.root / "copy"
    shutil.copytree(model, copy)
    if damage == "card":
        (copy / "card.json").write_text("{")
    elif damage == "weights":
        data = bytearray((copy / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (copy / "model.safetensors").write_bytes(data)
    else:
        copy = world.root / "nothing"
    with pytest.raises(UserError, match="is not a trained model"):
        predict_slides([copy], elsewhere(world, ["a"]), world.root / "out.csv", threads=1)


def test_features_that_were_edited_are_not_predicted(world: World) -> None:
    model, folder = trained_model(world), elsewhere(world, ["a", "b"])
    chunk = open_store(folder / "a.zarr.zip").chunks[0]
    assert isinstance(chunk, np.memmap)
    with (folder / "a.zarr.zip").open("r+b") as stream:
        stream.seek(chunk.offset)
        stream.write(bytes(2))
    with pytest.raises(UserError, match=r"- a: .*a\.zarr\.zip was edited after it was made$"):
        predict_slides([model], folder, world.root / "out.csv", threads=1)


def test_an_empty_folder_and_a_strange_table_are_refused(world: World) -> None:
    model = trained_model(world)
    with pytest.raises(UserError, match="holds no feature store"):
        predict_slides([model], world.root, world.root / "out.csv", threads=1)
    with pytest.raises(UserError, match=r"must be a .csv or .parquet"):
        predict_slides([model], world.root, world.root / "out.xlsx", threads=1)
