"""A cohort whose folds are trained, as the stages before the heatmaps leave it."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import safetensors.numpy

from her2.cohort.folds import make_folds
from her2.cohort.manifest import Cohort, SlideRow
from her2.config import Task
from her2.config.jobs import FoldsSpec, HeatmapSpec
from her2.core.files import digest
from her2.explanation.heatmap_stage import draw_heatmaps
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, FoldEntry, write_entries
from tests.unit.products import reseal, write_store

TASK = Task(label="her2", classes={"negative": ["0"], "positive": ["3+"]})
BUCKET, CHUNK = "0000-of-0001", "r0f0-r0f2"
SIDE_PX, TILE_PX, MPP = 768, 128, 0.5  # of the fixture `drawn_slide`
PER_SIDE = SIDE_PX // TILE_PX
TILES = PER_SIDE**2
FORMATS = ("png", "parquet", "geojson", "ome_tiff")


@dataclass
class World:
    """Eight labelled slides of six patients and one without a label, all one file; every tile.

    `best` is the row of each slide's most attended tile, in the model that held it out; the other
    models have attention of it too, with another tile.
    """

    root: Path
    cohort: Cohort
    entries: dict[str, FeatureEntry]
    best: dict[str, int]
    keys: dict[int, str] = field(default_factory=dict)

    @property
    def cache(self) -> Cache:
        return Cache(self.root / "cache")

    @property
    def folder(self) -> Path:
        return self.root / "heatmaps"

    def spec(self, **changed: object) -> HeatmapSpec:
        values = {
            "task": TASK,
            "chunks": (CHUNK,),
            "buckets": (BUCKET,),
            "slides": 4,
            "formats": ("png",),
            "seed": 3,
            "synthetic": True,
        }
        return HeatmapSpec(**(values | changed))

    def draw(self, masks: Path | None = None, **changed: object) -> list[dict[str, object]]:
        return draw_heatmaps(
            self.spec(**changed),
            self.cohort,
            self.cache,
            folds=self.root / "folds.parquet",
            models=self.root / "models",
            features=self.root / "features",
            masks=masks,
            output=self.folder / "heatmaps.json",
        )

    def test_fold(self, slide_id: str) -> int:
        table = pl.read_parquet(self.root / "folds.parquet")
        return table.filter((pl.col("slide_id") == slide_id) & (pl.col("role") == "test"))[
            "fold"
        ].item()

    def model(self, slide_id: str) -> Path:
        """The folder of the model that held a slide out."""
        return self.cache.path("models", self.keys[self.test_fold(slide_id)])

    def attention(self, slide_id: str) -> np.ndarray:
        """Return the attention by the model that held the slide out."""
        table = pl.read_parquet(self.model(slide_id) / "attention.parquet")
        return table.filter(pl.col("slide_id") == slide_id)["attention"][0].to_numpy()

    def coords(self) -> np.ndarray:
        """Return the top left corners of every slide's tiles in level-0 px."""
        return np.array(
            [(x, y) for y in range(PER_SIDE) for x in range(PER_SIDE)], np.int32
        ) * np.int32(TILE_PX)

    def lose(self, slide_id: str) -> None:
        """The file of a slide is gone."""
        rows = [
            SlideRow(row.slide_id, "gone.svs", row.patient_id, row.labels)
            if row.slide_id == slide_id
            else row
            for row in self.cohort.rows
        ]
        self.cohort = Cohort(tuple(rows), self.root)

    def train(self, *, uniform: bool = False, maps: tuple[str, ...] = ()) -> None:
        """Write three folds: attention of each slide is half on one tile, the rest at random.

        Args:
            uniform: all tiles weigh the same instead.
            maps: `contribution`, `attention`: the maps that the head has beside.
        """
        folds = pl.read_parquet(self.root / "folds.parquet")
        entries = {}
        for fold in range(3):
            tested = set(
                folds.filter((pl.col("fold") == fold) & (pl.col("role") == "test"))["slide_id"]
            )
            names = sorted(self.entries)
            generator = np.random.default_rng(fold)
            attention, stored = [], {}
            for name in names:
                values = generator.dirichlet(np.full(TILES, 5.0)) / 2
                values[self.best[name] if name in tested else (self.best[name] + 5) % TILES] += 0.5
                values = np.full(TILES, 1 / TILES) if uniform else values
                attention.append((name, values.tolist()))
                for kind in maps:
                    stored[f"{kind}/{name}"] = generator.normal(size=(TILES, 2)).astype(np.float32)
            self.keys[fold] = digest(["fold", fold, uniform, maps])
            with self.cache.publish("models", self.keys[fold]) as folder:
                pl.DataFrame(
                    attention,
                    schema={"slide_id": pl.String, "attention": pl.List(pl.Float32)},
                    orient="row",
                ).write_parquet(folder / "attention.parquet")
                pl.DataFrame(
                    {
                        "slide_id": names,
                        "patient_id": names,
                        "prob_negative": [0.25] * len(names),
                        "prob_positive": [0.75] * len(names),
                    }
                ).write_parquet(folder / "predictions.parquet")
                if stored:
                    safetensors.numpy.save_file(stored, folder / "maps.safetensors")
                reseal(folder, key=self.keys[fold], outputs=list(TASK.class_names))
            entries[f"r0f{fold}"] = FoldEntry(self.keys[fold], 1, 1, 1, 0, 1, 0.5)
        write_entries(self.root / "models" / f"{CHUNK}.json", entries)


def make_world(root: Path, slide: Path) -> World:
    """The cohort, with a head of one attention map."""
    rows = [
        SlideRow(f"{c}{i}-{s}", str(slide), f"{c}{i}", {"her2": value})
        for c, value in (("n", "0"), ("p", "3+"))
        for i, s in ((0, "a"), (1, "a"), (2, "a"), (2, "b"))
    ]
    rows.append(SlideRow("u0-a", str(slide), "u0", {}))
    cohort = Cohort(tuple(rows), root)
    make_folds(
        FoldsSpec(rows="", task=TASK, folds=3, repeats=1, tune=0.25, seed=1),
        cohort,
        root / "folds.parquet",
    )
    world = World(
        root, cohort, {}, {row.slide_id: (7 * i + 3) % TILES for i, row in enumerate(rows)}
    )
    for row in rows:
        key = digest(row.slide_id)
        with world.cache.publish("features", key) as path:
            write_store(
                path,
                np.ones((TILES, 2), np.float16),
                world.coords(),
                {
                    "key": key,
                    "slide": {
                        "fingerprint": digest([row.slide_id, "content"]),
                        "mpp": [MPP, MPP],
                        "mpp_source": "metadata",
                        "level0_tile": [float(TILE_PX)] * 2,
                        "size_px": [SIDE_PX] * 2,
                    },
                    "target": {"mpp": 1.0, "px": 64},
                },
            )
        world.entries[row.slide_id] = FeatureEntry("ok", None, key, TILES, 0, 2)
    write_entries(root / "features" / f"{BUCKET}.json", world.entries)
    world.train()
    return world
