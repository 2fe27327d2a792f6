"""The stage: trained folds, stores and truths as the stages before leave them."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from typer.testing import CliRunner

from her2.cli.main import app
from her2.cohort.folds import make_folds
from her2.cohort.manifest import Cohort, SlideRow
from her2.config import Task, TrainingSection
from her2.config.heads import HEADS
from her2.config.jobs import AttentionSpec, FoldsSpec, TrainSpec, dump
from her2.core.errors import UserError
from her2.core.files import digest
from her2.explanation.agreement import AGREEMENT
from her2.explanation.attention_stage import measure_attention
from her2.explanation.faithfulness import FAITHFULNESS, FAITHFULNESS_SUMMARY
from her2.explanation.localisation import LOCALISATION, LOCALISATION_SUMMARY
from her2.mil.stage import train_folds
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, FoldEntry, read_entries, write_entries
from tests.unit.products import reseal, write_store

TASK = Task(label="her2", classes={"0": ["0"], "2+": ["2+"], "3+": ["3+"]})
BUCKET, CHUNK = "0000-of-0001", "r0f0-r1f1"
RUNS = ((0, 0), (0, 1), (1, 0), (1, 1))
SIDE, TILE_PX, D = 6, 100, 4
SCHEMAS = {
    "localisation": LOCALISATION,
    "localisation_summary": LOCALISATION_SUMMARY,
    "faithfulness": FAITHFULNESS,
    "faithfulness_summary": FAITHFULNESS_SUMMARY,
    "agreement": AGREEMENT,
}


@dataclass(frozen=True)
class World:
    """A finished training, and truths: the first column of each slide's tiles is positive."""

    root: Path
    spec: AttentionSpec
    entries: dict[str, FeatureEntry]

    def measure(
        self, output: Path, *, masks: Path | None = None, head: str = "abmil", **changed: object
    ) -> dict[str, pl.DataFrame]:
        return measure_attention(
            self.spec.model_copy(update=changed),
            Cache(self.root / "cache"),
            folds=self.root / "folds.parquet",
            models=self.root / "models" / head,
            features=self.root / "features",
            masks=masks,
            output=output,
        )

    def attention(self, slide_id: str, repeat: int = 0) -> np.ndarray:
        """Return what the model that tested the slide stored."""
        folds = pl.read_parquet(self.root / "folds.parquet").filter(
            (pl.col("slide_id") == slide_id)
            & (pl.col("role") == "test")
            & (pl.col("repeat") == repeat)
        )
        (fold,) = folds["fold"]
        path = self.root / "models" / "abmil" / f"r{repeat}f{fold}" / "attention.parquet"
        table = pl.read_parquet(path).filter(pl.col("slide_id") == slide_id)
        return table["attention"][0].to_numpy()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """12 patients of two of three classes, one with two slides; an unlabelled slide; 2 repeats."""
    root = tmp_path_factory.mktemp("world")
    cache = Cache(root / "cache")
    rows = [
        SlideRow(f"{c}{i}-{letter}", "x.svs", f"{c}{i}", {"her2": value})
        for c, value in (("n", "0"), ("p", "3+"), ("q", "2+"))
        for i in range(4)
        for letter in ("ab" if c == "p" and i == 0 else "a")
    ]
    cohort = Cohort((*rows, SlideRow("u0-a", "x.svs", "u0", {})), root)
    coords = np.array([(x, y) for y in range(SIDE) for x in range(SIDE)], np.int32) * TILE_PX
    entries: dict[str, FeatureEntry] = {}
    for row in cohort.rows:
        generator = np.random.default_rng(len(entries))
        # Some tiles are missing, so that no slide's attention can be taken for another's.
        kept = np.sort(generator.permutation(len(coords))[: 24 + len(entries) % 9])
        features = generator.normal(size=(len(kept), D))
        features[coords[kept, 0] == 0, 0] += 3 * (row.labels.get("her2") == "3+")
        key = digest(row.slide_id)
        attributes = {
            "key": key,
            "slide": {"level0_tile": [100.0, 100.0], "size_px": [SIDE * TILE_PX] * 2},
            "encoder": {"digest": "e"},
        }
        with cache.publish("features", key) as path:
            write_store(path, features.astype(np.float16), coords[kept], attributes)
        entries[row.slide_id] = FeatureEntry("ok", None, key, len(kept), 0, D)
    write_entries(root / "features" / f"{BUCKET}.json", entries)
    make_folds(
        FoldsSpec(rows="", task=TASK, folds=2, repeats=2, tune=0.25, seed=1),
        cohort,
        root / "folds.parquet",
    )
    for name in ("abmil", "mean", "logistic"):
        train_folds(
            TrainSpec(
                task=TASK,
                head=HEADS[name](head=name),
                training=TrainingSection(bag_size=16, epochs=3, learning_rate=1e-2),
                runs=RUNS,
                buckets=(BUCKET,),
                max_excluded=0.5,
                seed=7,
            ),
            cache,
            folds=root / "folds.parquet",
            features=root / "features",
            output=root / "models" / name / f"{CHUNK}.json",
            threads=1,
        )
    spec = AttentionSpec(
        task=TASK, chunks=(CHUNK,), buckets=(BUCKET,), faithfulness_slides=5,
        confidence=0.95, seed=3,
    )  # fmt: skip
    return World(root, spec, entries)


@pytest.fixture
def masks(tmp_path: Path, world: World) -> Path:
    folder = tmp_path / "masks"
    folder.mkdir()
    truth = np.zeros((60, 60), np.uint8)
    truth[:, :10] = 255
    for name in world.entries:
        Image.fromarray(truth).save(folder / f"{name}.png")
    return folder


def test_every_table_has_its_schema_with_and_without_masks(world, tmp_path, masks):
    for folder in (None, masks):
        tables = world.measure(tmp_path / "out", masks=folder)
        assert list(tables) == list(SCHEMAS)  # agreement, the rule's output, is written last
        for name, schema in SCHEMAS.items():
            assert dict(tables[name].schema) == schema
            assert pl.read_parquet(tmp_path / "out" / f"{name}.parquet").equals(tables[name])
            assert (tmp_path / "out" / f"{name}.csv").exists()


def test_each_labelled_slide_is_judged_by_the_model_that_held_it_out(world, tmp_path, masks):
    table = world.measure(tmp_path / "out", masks=masks)["localisation"]
    assert table["slide_id"].to_list() == sorted(set(world.entries) - {"u0-a"})
    for row in table.iter_rows(named=True):
        store_rows = world.entries[row["slide_id"]].tiles
        assert row["tiles"] == store_rows
        values = world.attention(row["slide_id"])
        assert len(values) == store_rows
        generator = np.random.default_rng(list(world.entries).index(row["slide_id"]))
        kept = np.sort(generator.permutation(SIDE**2)[:store_rows])
        inside = kept % SIDE == 0
        assert row["inside_tiles"] == inside.sum()
        assert row["mass_share"] == pytest.approx(values[inside].sum() / values.sum(), rel=1e-5)
        assert row["pointing"] == float(inside[values.argmax()])


def test_a_corrupt_mask_is_a_row_with_its_reason_and_the_others_are_measured(
    world, tmp_path, masks
):
    before = world.measure(tmp_path / "one", masks=masks)["localisation"]
    (masks / "p1-a.png").write_bytes(b"not a picture")
    (masks / "n0-a.png").unlink()  # no truth: no row
    (masks / "n1-a.png").rename(masks / "n1-a.tif")
    (masks / "n1-a.xml").write_text("<Annotations/>")
    after = world.measure(tmp_path / "two", masks=masks)["localisation"]
    bad = {row["slide_id"]: row for row in after.filter(pl.col("note") != "").to_dicts()}
    assert set(bad) == {"p1-a", "n1-a"}
    assert "p1-a.png is not a readable PNG or TIFF" in bad["p1-a"]["note"]
    assert "several ground truths" in bad["n1-a"]["note"]
    assert bad["p1-a"]["auc"] is None
    same = ~pl.col("slide_id").is_in(["p1-a", "n1-a", "n0-a"])
    assert after.filter(same).equals(before.filter(same))


def test_regions_that_count_from_the_scanned_area_are_refused(world, tmp_path, masks):
    (masks / "p1-a.png").unlink()
    (masks / "p1-a.geojson").write_text("{}")
    table = world.measure(tmp_path / "out", masks=masks, annotation_origin="bounds")["localisation"]
    notes = dict(table.select("slide_id", "note").iter_rows())
    assert "annotation_origin: bounds" in notes.pop("p1-a")
    assert set(notes.values()) == {""}


def test_without_masks_the_summary_is_one_row_that_says_so(world, tmp_path):
    tables = world.measure(tmp_path / "out")
    assert len(tables["localisation"]) == 0
    (row,) = tables["localisation_summary"].to_dicts()
    assert (row["class"], row["value"], row["slides"]) == ("all", None, 0)
    assert "no cohort.masks" in row["note"]


def test_an_empty_folder_of_masks_gives_reasons_and_no_figures(world, tmp_path):
    (tmp_path / "masks").mkdir()
    summary = world.measure(tmp_path / "out", masks=tmp_path / "masks")["localisation_summary"]
    assert summary["value"].null_count() == len(summary) == 4 * 5
    assert set(summary["note"]) == {"not defined: no held-out slide has a ground truth"}


def test_a_class_that_no_held_out_slide_has_is_null_with_its_reason(world, tmp_path, masks):
    lost = {
        name: replace(entry, status="failed", reason="no tissue") if name[0] == "q" else entry
        for name, entry in world.entries.items()
    }
    (tmp_path / "features").mkdir()
    write_entries(tmp_path / "features" / f"{BUCKET}.json", lost)
    tables = measure_attention(
        world.spec,
        Cache(world.root / "cache"),
        folds=world.root / "folds.parquet",
        models=world.root / "models" / "abmil",
        features=tmp_path / "features",
        masks=masks,
        output=tmp_path / "out",
    )
    summary = tables["localisation_summary"]
    absent = summary.filter(pl.col("class") == "2+")
    assert absent["value"].null_count() == len(absent) == 5
    assert set(absent["note"]) == {"not defined: no held-out slide has a ground truth"}
    assert summary.filter(pl.col("class") == "3+")["value"].null_count() == 0


def test_faithfulness_follows_as_many_slides_as_asked_spread_over_the_classes(world, tmp_path):
    curves = world.measure(tmp_path / "out", faithfulness_slides=3)["faithfulness"]
    assert set(curves["slides"]) == {3}
    assert set(curves["patients"]) == {3}
    none = world.measure(tmp_path / "out", faithfulness_slides=0)
    assert len(none["faithfulness"]) == 0
    assert all("faithfulness_slides" in note for note in none["faithfulness_summary"]["note"])


def test_repeats_are_compared_on_every_slide(world, tmp_path):
    from scipy.stats import spearmanr

    (row,) = world.measure(tmp_path / "out")["agreement"].to_dicts()
    assert (row["slides"], row["pairs"], row["note"]) == (13, 1, "")
    rho = {
        name: spearmanr(world.attention(name, 0), world.attention(name, 1))[0]
        for name in world.entries
        if name != "u0-a"
    }
    patients = {name.split("-")[0] for name in rho}
    means = [np.mean([v for n, v in rho.items() if n.split("-")[0] == p]) for p in patients]
    assert row["value"] == pytest.approx(np.mean(means), abs=1e-6)


@pytest.mark.parametrize("head", ["mean", "logistic"])
def test_a_head_with_uniform_attention_has_reasons_and_no_figures(world, tmp_path, masks, head):
    tables = world.measure(tmp_path / "out", masks=masks, head=head)
    for name in ("localisation_summary", "faithfulness_summary", "agreement"):
        assert tables[name]["value"].null_count() == len(tables[name]) > 0
        assert all("not defined: every tile has the same" in note for note in tables[name]["note"])
    assert len(tables["faithfulness"]) == 0
    assert tables["localisation"]["auc"].null_count() == len(tables["localisation"]) == 13
    assert tables["localisation"]["area_share"].null_count() == 0


def test_the_same_job_twice_gives_the_same_bytes(world, tmp_path, masks):
    for name in ("one", "two"):
        world.measure(tmp_path / name, masks=masks)
    for path in sorted((tmp_path / "one").iterdir()):
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes(), path.name


def without(table: pl.DataFrame) -> pl.DataFrame:
    return table.filter(pl.col("slide_id") != "n2-a")


def changed(table: pl.DataFrame, make) -> pl.DataFrame:
    rows = [
        (name, make(values) if name == "n2-a" else values) for name, values in table.iter_rows()
    ]
    return pl.DataFrame(rows, schema=table.schema, orient="row")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (without, "has no attention"),
        (
            lambda table: changed(table, lambda v: v[:-1]),
            r"has attention for \d+ tiles but features",
        ),
        (
            lambda table: changed(table, lambda v: [float("nan"), *v[1:]]),
            "has attention that is not finite",
        ),
    ],
)
def test_attention_that_cannot_be_the_slide_s_stops_the_job_and_names_it(
    world, tmp_path, spoil, problem
):
    entries = read_entries(world.root / "models" / "abmil" / f"{CHUNK}.json", FoldEntry)
    cache = Cache(tmp_path / "cache")
    for entry in entries.values():
        source = Cache(world.root / "cache").path("models", entry.key)
        with cache.publish("models", entry.key) as target:
            for item in source.iterdir():
                (target / item.name).write_bytes(item.read_bytes())
            table = pl.read_parquet(target / "attention.parquet")
            spoil(table).write_parquet(target / "attention.parquet")
            reseal(target)
    write_entries(tmp_path / "models" / f"{CHUNK}.json", entries)
    with pytest.raises(UserError, match=f"n2-a: {problem}"):
        measure_attention(
            world.spec, cache, folds=world.root / "folds.parquet", models=tmp_path / "models",
            features=world.root / "features", masks=None, output=tmp_path / "out",
        )  # fmt: skip


def test_the_command_writes_the_tables(world, tmp_path, masks):
    done = CliRunner().invoke(
        app,
        [
            "attention", "--spec", dump(world.spec), "--out", str(tmp_path / "out"),
            "--folds", str(world.root / "folds.parquet"), "--masks", str(masks),
            "--models", str(world.root / "models" / "abmil"),
            "--features", str(world.root / "features"), "--cache", str(world.root / "cache"),
        ],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert {path.stem for path in (tmp_path / "out").iterdir()} == set(SCHEMAS)
