"""An external cohort, predicted by trained folds: what comes before its attention is explained.

The tables are those of `her2 evaluate`, `her2 tabulate` and `her2 apply`, with what is read here.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from her2.cohort.folds import make_folds
from her2.cohort.manifest import Cohort, SlideRow
from her2.config import Task, TrainingSection
from her2.config.external_jobs import ExternalAttentionSpec, ExternalHeatmapSpec, Truth
from her2.config.heads import HEADS
from her2.config.jobs import FoldsSpec, TrainSpec
from her2.core.files import digest
from her2.evaluation.temperature import TEMPERATURES
from her2.explanation.external_attention import measure_external
from her2.explanation.external_heatmap import draw_external
from her2.explanation.external_slides import External, find_external
from her2.frozen.model import FrozenModel
from her2.frozen.results import read_frozen
from her2.mil.bags import Bag
from her2.mil.priors import PRIORS
from her2.mil.stage import train_folds
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, FoldEntry, read_entries, write_entries
from her2.storage.features import open_store
from tests.unit.products import write_store

TASK = Task(label="her2", classes={"0": ["0"], "2+": ["2+"], "3+": ["3+"]}, ordinal=True)
SIDES = Task(label="status", classes={"negative": ["neg"], "positive": ["pos"]})
AS_THE_TASK = Truth(of="score", task=TASK, truth=TASK, sides=((0,), (1,), (2,)))
TWO_SIDES = Truth(of="score", task=TASK, truth=SIDES, sides=((0,), (1, 2)))
BUCKET, CHUNK = "0000-of-0001", "r0f0-r0f2"
SIDE_PX, TILE_PX, MPP = 768, 128, 0.5  # of the fixture `drawn_slide`
PER_SIDE, D = SIDE_PX // TILE_PX, 4
TEMPERATURE = {"r0f0": 1.5, "r0f1": 0.8, "r0f2": 2.0}
SHARE = (0.5, 0.3, 0.2)
"""The shares of the classes; the training is taken to have seen equal ones."""


@dataclass(frozen=True)
class ExternalWorld:
    """Three trained folds, and nine external slides of eight patients, two of them unlabelled.

    Slides are named by their label: `n` for 0, `q` for 2+, `p` for 3+, `u` without one.
    """

    root: Path
    cohort: Cohort
    tiles: dict[str, int]

    @property
    def cache(self) -> Cache:
        return Cache(self.root / "cache")

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation" / "score" / "e" / "abmil"

    @property
    def predictions(self) -> Path:
        return self.root / "predictions"

    @property
    def table(self) -> Path:
        return self.root / "slides.parquet"

    @property
    def models(self) -> Path:
        return self.root / "models" / "score" / "e" / "abmil"

    def frozen(self) -> FrozenModel:
        return read_frozen(
            self.evaluation, self.models, task_name="score", encoder="e", head="abmil",
            chunks=(CHUNK,), threads=1, cache=self.cache,
        )  # fmt: skip

    def bag(self, slide_id: str) -> Bag:
        store = open_store(self.cache.path("features", digest(["external", slide_id])))
        return Bag(slide_id, "", "", store, None)

    def heatmap_spec(self, **changed: Any) -> ExternalHeatmapSpec:
        values = {
            "cohort": "yale", "truth": AS_THE_TASK, "buckets": (BUCKET,), "slides": 4,
            "formats": ("png",), "seed": 3, "synthetic": False,
        }  # fmt: skip
        return ExternalHeatmapSpec(**(values | changed))

    def find(self, only: str | None = None, **changed: Any) -> External:
        return find_external(
            self.heatmap_spec(**changed), self.cache, predictions=self.predictions,
            table=self.table, features=self.root / "external", only=only,
        )  # fmt: skip

    def draw(self, output: Path, **changed: Any) -> list[dict[str, Any]]:
        masks = changed.pop("masks", None)
        return draw_external(
            self.heatmap_spec(**changed), self.cohort, self.cache,
            predictions=self.predictions, table=self.table, features=self.root / "external",
            masks=masks, output=output / "heatmaps.json",
        )  # fmt: skip

    def measure(self, output: Path, **changed: Any) -> dict[str, pl.DataFrame]:
        masks = changed.pop("masks", None)
        values = {
            "cohort": "yale", "truth": AS_THE_TASK, "chunks": (CHUNK,), "buckets": (BUCKET,),
            "faithfulness_slides": 5, "confidence": 0.95, "seed": 3,
        }  # fmt: skip
        return measure_external(
            ExternalAttentionSpec(**(values | changed)), self.cache,
            predictions=self.predictions, table=self.table, evaluation=self.evaluation,
            models=self.models, features=self.root / "external",
            masks=masks, output=output,
        )  # fmt: skip

    def copy(self, folder: Path, **tables: pl.DataFrame | None) -> "ExternalWorld":
        """Return a world with other tables: `predictions`, `attention` or `slides`."""
        for path in self.root.iterdir():
            if path.name not in ("predictions", "slides.parquet"):
                (folder / path.name).symlink_to(path)
        (folder / "predictions").mkdir()
        for name in ("predictions/predictions", "predictions/attention", "slides"):
            table = tables.get(name.rpartition("/")[2])
            if table is None:
                table = pl.read_parquet(self.root / f"{name}.parquet")
            table.write_parquet(folder / f"{name}.parquet")
        return replace(self, root=folder)


def make_external_world(root: Path, slide: Path) -> ExternalWorld:
    """Train three folds, and predict the external slides by them."""
    cache = Cache(root / "cache")
    _train(root, cache)
    rows = [
        SlideRow(f"{patient}-{letter}", str(slide), patient, {"her2": label, "status": status})
        for patient, letters, label, status in (
            ("n0", "a", "0", "neg"), ("n1", "a", "0", "neg"), ("q0", "a", "2+", "pos"),
            ("q1", "a", "2+", "pos"), ("p0", "ab", "3+", "pos"), ("p1", "a", "3+", "pos"),
        )
        for letter in letters
    ]  # fmt: skip
    rows += [SlideRow(f"u{i}-a", str(slide), f"u{i}", {}) for i in range(2)]
    world = ExternalWorld(root, Cohort(tuple(rows), root), {})
    entries = {}
    for index, row in enumerate(rows):
        key, count = digest(["external", row.slide_id]), 24 + index
        _store(cache, key, index + 100, count, row.labels.get("her2", "0"))
        entries[row.slide_id] = FeatureEntry("ok", None, key, count, 0, D)
        world.tiles[row.slide_id] = count
    entries["lost-a"] = FeatureEntry("failed", "no tissue")
    write_entries(root / "external" / f"{BUCKET}.json", entries)
    pl.DataFrame(
        [
            {"slide_id": row.slide_id, "patient_id": row.patient_id, "grid": "g", "status": "ok"}
            | {f"label_{name}": row.labels.get(name) for name in ("her2", "status")}
            for row in rows
        ],
        infer_schema_length=None,
    ).write_parquet(world.table)
    _apply(world)
    return world


def _store(cache: Cache, key: str, seed: int, count: int, label: str) -> None:
    """Write features of `count` of the tiles; those of the first column show the label."""
    generator = np.random.default_rng(seed)
    coords = np.array([(x, y) for y in range(PER_SIDE) for x in range(PER_SIDE)], np.int32)
    kept = np.sort(generator.permutation(len(coords))[:count])
    features = generator.normal(size=(count, D))
    features[coords[kept, 0] == 0, 0] += 3 * list(TASK.classes).index(label)
    attributes = {
        "key": key,
        "slide": {
            "fingerprint": key,
            "mpp": [MPP, MPP],
            "mpp_source": "metadata",
            "level0_tile": [float(TILE_PX)] * 2,
            "size_px": [SIDE_PX] * 2,
        },
        "encoder": {"digest": "e"},
        "target": {"mpp": 1.0, "px": 64},
    }
    with cache.publish("features", key) as path:
        write_store(path, features.astype(np.float16), coords[kept] * TILE_PX, attributes)


def _train(root: Path, cache: Cache) -> None:
    rows = [
        SlideRow(f"d{label}{i}", "x.svs", f"d{label}{i}", {"her2": label})
        for label in TASK.classes
        for i in range(4)
    ]
    entries = {}
    for index, row in enumerate(rows):
        key = digest(row.slide_id)
        _store(cache, key, index, 30, row.labels["her2"])
        entries[row.slide_id] = FeatureEntry("ok", None, key, 30, 0, D)
    write_entries(root / "features" / f"{BUCKET}.json", entries)
    folds = root / "folds.parquet"
    spec = FoldsSpec(rows="", task=TASK, folds=3, repeats=1, tune=0.25, seed=1)
    make_folds(spec, Cohort(tuple(rows), root), folds)
    models = root / "models" / "score" / "e" / "abmil"
    train_folds(
        TrainSpec(
            task=TASK,
            head=HEADS["abmil"](head="abmil"),
            training=TrainingSection(bag_size=16, epochs=12, learning_rate=1e-2),
            runs=((0, 0), (0, 1), (0, 2)),
            buckets=(BUCKET,),
            max_excluded=0.5,
            seed=7,
        ),
        cache, folds=folds, features=root / "features", output=models / f"{CHUNK}.json", threads=1,
    )  # fmt: skip
    evaluation = root / "evaluation" / "score" / "e" / "abmil"
    evaluation.mkdir(parents=True)
    trained = read_entries(models / f"{CHUNK}.json", FoldEntry)
    pl.DataFrame(
        [
            (run, entry.key, name, 4, 4, share, 1 / 3, "")
            for run, entry in trained.items()
            for name, share in zip(TASK.classes, SHARE, strict=True)
        ],
        schema=PRIORS,
        orient="row",
    ).write_parquet(evaluation / "priors.parquet")
    pl.DataFrame(
        [(run, value, 3, "") for run, value in TEMPERATURE.items()],
        schema=TEMPERATURES,
        orient="row",
    ).write_parquet(evaluation / "temperatures.parquet")


def _apply(world: ExternalWorld) -> None:
    frozen, rows, attention = world.frozen(), [], []
    for slide_id in sorted(world.tiles):
        found = frozen.predict(world.bag(slide_id))
        rows.append(
            {"slide_id": slide_id, "tiles": world.tiles[slide_id], "models": len(frozen.folds)}
            | {f"prob_{n}": p for n, p in zip(TASK.classes, found.probabilities, strict=True)}
        )
        attention.append((slide_id, found.attention.tolist()))
    world.predictions.mkdir()
    pl.DataFrame(rows).write_parquet(world.predictions / "predictions.parquet")
    schema = {"slide_id": pl.String, "attention": pl.List(pl.Float32)}
    pl.DataFrame(attention, schema=schema, orient="row").write_parquet(
        world.predictions / "attention.parquet"
    )
