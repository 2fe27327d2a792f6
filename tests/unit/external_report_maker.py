"""A results folder with external cohorts, for the report; their tables come from the stages."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import polars as pl
from PIL import Image

from her2.cohort.apart import check_apart
from her2.config import Config
from her2.config.external_jobs import ApartSpec, ExternalSpec, Truth, ValidateSpec
from her2.config.jobs import ReportSpec
from her2.core.files import write_json
from her2.core.tables import write_table
from her2.core.types import Floats
from her2.evaluation.controls import covariate_models
from her2.evaluation.external.compare import compare_external
from her2.evaluation.external.stage import validate
from her2.evaluation.temperature import scale
from her2.pretraining.overlap import Overlap
from her2.report.external_results import truths
from her2.storage.entries import FeatureEntry, TileEntry, write_entries
from tests.unit.products import write_store
from tests.unit.report_maker import BUCKET, HOSTILE, Cohort, attention_tables
from tests.unit.tile_makers import slide_facts

GRID = "224px-0.5mpp"


@dataclass
class Outside:
    """The description of an external cohort; its section of the config is `section`."""

    labels: tuple[str | None, ...] = ("0", "1", "2", "2") * 5
    column: str | None = "her2"
    signal: float = 0.2
    sites: tuple[str | None, ...] = ("harbour", "hill")
    vendor: str = "other"
    mpp: float = 0.3
    far: int = 3
    models: int = 3
    section: Mapping[str, object] = field(default_factory=dict)
    tile_reasons: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    embed_reasons: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    overlaps: Mapping[str, Overlap] = field(default_factory=dict)
    similar: tuple[tuple[object, ...], ...] = ()


@dataclass
class Validated(Cohort):
    """A made-up run with external cohorts, by name."""

    external: Mapping[str, Outside] = field(default_factory=lambda: {"yale": Outside()})

    def config(self) -> Config:
        values = super().config().model_dump(mode="json", by_alias=True)
        sections = {name: {"slides": f"{name}.csv", **one.section}
                    for name, one in self.external.items()}  # fmt: skip
        return Config.model_validate(values | {"validation": sections})

    def spec(self) -> ReportSpec:
        return (
            super().spec().model_copy(update={"external": dict.fromkeys(self.external, (BUCKET,))})
        )

    def _make(self, folder: Path) -> None:
        super()._make(folder)
        config = self.config()
        for name, one in self.external.items():
            _External(config, folder, name, one, self.encoders).write()


@dataclass
class _External:
    config: Config
    results: Path
    name: str
    one: Outside
    encoders: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return self.results / "validation" / self.name

    @property
    def names(self) -> list[str]:
        return [f"{self.name}-{index:02d}" for index in range(len(self.one.labels))]

    def patient(self, index: int) -> str:
        """Every fourth slide is of the patient of the one before, if they have one label."""
        labels = self.one.labels
        return f"{self.name}-p{index - (index % 4 == 3 and labels[index] == labels[index - 1])}"

    def write(self) -> None:
        entries = self._tiles()
        self._cohort(entries)
        for encoder in self.encoders:
            self._features(encoder, entries)
            self._predictions(encoder)
        found = self._truths()
        for name, truth in found.items():
            for encoder in self.encoders:
                self._evaluation(name, truth, encoder)
                self._explanation(name, truth, encoder)
        spec = ExternalSpec(
            cohort=self.name,
            truths=found,
            encoders=self.encoders,
            domains=dict.fromkeys(self.encoders, "none"),
            grids=dict.fromkeys(self.encoders, GRID),
            heads=("abmil",),
            evaluation=self.config.evaluation,
            seed=1,
        )
        compare_external(
            spec,
            evaluation=self.folder / "evaluation",
            cohort=self.folder / "cohort" / "slides.parquet",
            development_cohort=self.results / "cohort" / "slides.parquet",
            folds=self.results / "folds",
            output=self.folder / "evaluation",
        )

    def _truths(self) -> dict[str, Truth]:
        found = {}
        for truth in truths(self.config, self.name, []):
            task = self.config.tasks[truth.of]
            section = self.config.validation[self.name].tasks.get(truth.name)
            sides = (
                section.sides(task) if section else tuple((i,) for i in range(len(task.classes)))
            )
            found[truth.name] = Truth(of=truth.of, task=task, truth=truth.task, sides=sides)
        return found

    def _tiles(self) -> dict[str, TileEntry]:
        entries = {}
        for index, name in enumerate(self.names):
            status, reason = self.one.tile_reasons.get(index, ("ok", None))
            facts = slide_facts(
                fingerprint=f"{name}", vendor=self.one.vendor, width_px=4000, height_px=3000,
                mpp_x=self.one.mpp, mpp_y=self.one.mpp, tissue_mm2=1.0 + index / 10,
            )  # fmt: skip
            entries[name] = TileEntry(status, reason, f"{index:064x}", 20 - index % 3, facts)
        return entries

    def _cohort(self, entries: Mapping[str, TileEntry]) -> None:
        label = {} if self.one.column is None else {f"label_{self.one.column}": self.one.labels}
        records = [
            {
                "slide_id": name,
                "patient_id": self.patient(index),
                **{column: values[index] for column, values in label.items()},
                "site": self.one.sites[index % len(self.one.sites)],
                "scanner": None,
                "split": None,
                "grid": GRID,
                **entries[name].columns(),
            }
            for index, name in enumerate(self.names)
        ]
        table = pl.DataFrame(records, infer_schema_length=None)
        write_table(table, self.folder / "cohort" / "slides")
        check_apart(
            ApartSpec(cohort=self.name),
            cohort=self.folder / "cohort" / "slides.parquet",
            development=self.results / "cohort" / "slides.parquet",
            output=self.folder / "cohort" / "apart.json",
        )

    def _features(self, encoder: str, tiles: Mapping[str, TileEntry]) -> None:
        folder = self.folder / "features" / encoder
        folder.mkdir(parents=True)
        entries = {}
        for index, (name, tile) in enumerate(tiles.items()):
            status, reason = self.one.embed_reasons.get(index, (tile.status, tile.reason))
            entries[name] = FeatureEntry(status, reason, "k", tile.tiles, 0, 4)
        write_entries(folder / f"{BUCKET}.json", entries)
        first = next((name for name, one in entries.items() if one.status == "ok"), None)
        if first is not None:
            write_store(
                folder / f"{first}.zarr.zip",
                np.zeros((2, 4), np.float16),
                np.zeros((2, 2), np.int32),
                {"key": "k", "precision": "float32", "receipt": {"device": "CPU (x86_64)"}},
            )
        columns = ["slide_a", "slide_b", "patient_a", "patient_b", "cosine", "shared"]
        if self.one.similar:
            pl.DataFrame(list(self.one.similar), schema=columns, orient="row").write_parquet(
                folder / "similar.parquet"
            )
        if encoder in self.one.overlaps:
            write_json(
                self.folder / "encoders" / encoder / "overlap.json",
                asdict(self.one.overlaps[encoder]),
            )

    def _usable(self) -> list[int]:
        lost = {*self.one.tile_reasons, *self.one.embed_reasons}
        return [index for index in range(len(self.names)) if index not in lost]

    def _predictions(self, encoder: str) -> None:
        generator = np.random.default_rng([9, self.encoders.index(encoder)])
        for task_name, task in self.config.tasks.items():
            names, usable = task.class_names, self._usable()
            raw = generator.random((len(usable), len(names)))
            for row, index in enumerate(usable):
                label = self.one.labels[index]
                target = None if label is None else task.class_index(label)
                if target is not None:
                    raw[row, target] += self.one.signal
            raw /= raw.sum(axis=1, keepdims=True)
            mean = scale(raw, 0.6) if len(usable) else raw
            far = [at < self.one.far for at in range(len(usable))]
            table = pl.DataFrame(
                {"slide_id": [self.names[index] for index in usable]}
                | {"tiles": [20] * len(usable), "models": [self.one.models] * len(usable)}
                | {f"prob_{name}": mean[:, at] for at, name in enumerate(names)}
                | {f"raw_{name}": raw[:, at] for at, name in enumerate(names)}
                | {f"spread_{name}": [0.1] * len(usable) for name in names}
                | {"distance": [3.5 if one else 1.0 for one in far]}
                | {"distance_percentile": [100.0 if one else 50.0 for one in far]},
                schema_overrides={"slide_id": pl.String, "tiles": pl.Int64, "models": pl.Int64,
                                  "distance": pl.Float64, "distance_percentile": pl.Float64},
            )  # fmt: skip
            each = [
                (self.names[index], f"r0f{fold}", *_blurred(generator, mean[row], self.one.models))
                for row, index in enumerate(usable)
                for fold in range(self.one.models)
            ]
            columns = {"slide_id": pl.String, "run": pl.String}
            columns |= {f"prob_{name}": pl.Float64 for name in names}
            where = self.folder / "predictions" / task_name / encoder / "abmil"
            write_table(pl.DataFrame(each, schema=columns, orient="row"), where / "each")
            write_table(table, where / "predictions")

    def _evaluation(self, name: str, truth: Truth, encoder: str) -> None:
        spec = ValidateSpec(
            cohort=self.name,
            truth=truth,
            grid=GRID,
            patient_label="refuse",
            evaluation=self.config.evaluation,
            seed=1,
        )
        own = Path(truth.of) / encoder / "abmil"
        with mock.patch.object(covariate_models, "TREES", 5):
            validate(
                spec,
                predictions=self.folder / "predictions" / own / "predictions.parquet",
                each=self.folder / "predictions" / own / "each.parquet",
                cohort=self.folder / "cohort" / "slides.parquet",
                development=self.results / "evaluation" / own,
                folds=self.results / "folds" / f"{truth.of}.parquet",
                development_cohort=self.results / "cohort" / "slides.parquet",
                output=self.folder / "evaluation" / name / encoder / "abmil",
            )

    def _explanation(self, name: str, truth: Truth, encoder: str) -> None:
        for table, found in attention_tables(truth.truth).items():
            write_table(found, self.folder / "attention" / name / encoder / "abmil" / table)
        heatmaps = self.folder / "heatmaps" / name / encoder / "abmil"
        heatmaps.mkdir(parents=True)
        drawn: list[dict[str, object]] = []
        for index in self._usable()[:1]:
            first = self.names[index]
            Image.fromarray(np.full((64, 216, 3), 90, np.uint8)).save(heatmaps / f"{first}.png")
            label = self.one.labels[index] if self.one.column else None
            known = None if label is None else truth.truth.class_index(label)
            drawn.append(
                {"slide_id": first, "patient_id": self.patient(index),
                 "label": None if known is None else truth.truth.class_names[known],
                 "predicted": truth.truth.class_names[0], "models": self.one.models,
                 "picture": f"{first}.png", "panels": ["thumbnail", "attention"], "tiles": 20,
                 "um_per_px": 2.4, "files": [], "tile_strip": f"{first}.png"}
            )  # fmt: skip
        drawn.append({"slide_id": "gone", "reason": f"{HOSTILE} in /data/secret/gone.svs"})
        write_json(heatmaps / "heatmaps.json", drawn)
        scores = [{"label": truth.truth.class_names[0], "slides": 3, "patients": 3, "note": "none"}]
        write_json(heatmaps / "tiles.json", scores)


def _blurred(generator: np.random.Generator, mean: Floats, models: int) -> list[float]:
    """The probabilities of one of several models; those of a single one are their mean."""
    found = mean + (generator.random(len(mean)) / 2 if models > 1 else 0)
    normalised: list[float] = (found / found.sum()).tolist()
    return normalised
