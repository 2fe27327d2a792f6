"""A results folder of a run that never was, for the report, and its page without figures."""

import functools
import hashlib
import itertools
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import polars as pl
from PIL import Image

from her2.cohort.folds import SCHEMA as FOLDS
from her2.config import Config, Task, parse_config
from her2.config.jobs import CompareSpec, ControlSpec, EvaluateSpec, ReportSpec
from her2.core.files import write_json
from her2.core.tables import write_table
from her2.encoders.card import EncoderCard, write_card
from her2.evaluation.compare import compare
from her2.evaluation.controls import covariate_models
from her2.evaluation.controls.stage import control_tables
from her2.evaluation.robustness import stage as robustness
from her2.evaluation.stage import evaluation_tables
from her2.explanation.agreement import AGREEMENT
from her2.explanation.faithfulness import FAITHFULNESS, FAITHFULNESS_SUMMARY
from her2.explanation.localisation import LOCALISATION, LOCALISATION_SUMMARY, MEASURES
from her2.pretraining.overlap import Overlap
from her2.report.build import build_report
from her2.report.figures.base import Figure
from her2.storage.entries import FeatureEntry, FoldEntry, TileEntry, write_entries
from tests.unit.products import write_store
from tests.unit.tile_makers import slide_facts

HOSTILE = "<script>alert(1)</script>"
BUCKET = "0000-of-0001"
HISTORY = {
    "epoch": [0, 1, 2],
    "train_loss": [0.7, 0.5, 0.3],
    "validation_loss": [0.7, 0.6, 0.65],
    "balanced_accuracy": [0.5, 0.8125, 0.75],
    "mean_auc": [0.5, 0.875, 0.8],
}
PRETRAINED: dict[str, object] = {
    "data": "pcam",
    "format": "pcam",
    "classes": {"normal": 1200, "tumour": 800},
    "split_by": "case",
    "patches": {"train": 1600, "validation": 400, "test": 0},
    "cases": [f"case-{index:03d}" for index in range(40)],
    "unusable": {"count": 3, "first": []},
    "epochs": 3,
    "best": {name: values[1] for name, values in HISTORY.items()},
    "init": {"from": "random", "weights_sha256": "cd" * 32},
}


@dataclass
class Cohort:
    """The description of a made-up run."""

    title: str = "A report"
    synthetic: bool = False
    sites: tuple[str | None, ...] = ("north", "south")
    encoders: tuple[str, ...] = ("plain",)
    labels: tuple[str | None, ...] = ("0", "1", "2") * 6
    values: dict[str, object] = field(default_factory=dict)
    tile_reasons: dict[int, tuple[str, str]] = field(default_factory=dict)
    embed_reasons: dict[int, tuple[str, str]] = field(default_factory=dict)
    failed_tiles: int = 0
    pictures: bool = True
    precision: str = "float32"
    signal: float = 1.0
    compared: bool = True
    pretrained: dict[str, dict[str, object]] = field(default_factory=dict)
    overlaps: dict[str, Overlap] = field(default_factory=dict)
    split: str | None = None
    similar: dict[str, list[tuple[object, ...]]] = field(default_factory=dict)
    trials: int = 1
    site_bound: bool = False

    def config(self) -> Config:
        return parse_config(
            {
                "cohort": {"slides": "slides.csv", "synthetic": self.synthetic},
                "tasks": {
                    "score": {
                        "label": "her2",
                        "classes": {"0": ["0"], "1+": ["1"], "2+": ["2"]},
                        "ordinal": True,
                    }
                },
                "encoders": {
                    name: {"model": "timm/resnet18", "mpp": 0.5, "size": 224}
                    | (
                        {"source": "pretrain", "data": "pcam", "init": "random", "domain": "he"}
                        if name in self.pretrained
                        else {"source": "random"}
                    )
                    for name in self.encoders
                },
                "patches": {"pcam": {"format": "pcam", "path": "pcam"}},
                "heads": {"abmil": {}},
                "folds": {"number": 3},
                "evaluation": {"bootstrap": 100},
                "report": {"title": self.title},
                **self.values,
            }
        )

    def spec(self) -> ReportSpec:
        return ReportSpec(
            config=self.config(),
            software="1.2.3",
            buckets=(BUCKET,),
            chunks=("r0f0-r0f2",),
            split=self.split is not None,
        )

    def write(self, folder: Path) -> ReportSpec:
        """Write the results folder of a finished run; a copy of one made earlier where there is."""
        made = Path(_worlds().name) / hashlib.sha256(repr(self).encode()).hexdigest()
        if not made.exists():
            unfinished = made.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            self._make(unfinished)
            unfinished.rename(made)
        shutil.copytree(made, folder, dirs_exist_ok=True)
        return self.spec()

    def _make(self, folder: Path) -> None:
        config = self.config()
        entries = {}
        for index, name in enumerate(self.names):
            status, reason = self.tile_reasons.get(index, ("ok", None))
            facts = slide_facts(
                fingerprint=f"f{index}", width_px=4000, height_px=3000, mpp_x=0.25, mpp_y=0.25,
                tissue_mm2=1.5,
            )  # fmt: skip
            entries[name] = TileEntry(status, reason, f"{index:064x}", 20, facts)
        records = [
            {
                "slide_id": name,
                "patient_id": f"p{index}",
                "label_her2": self.labels[index],
                "site": self.sites[index % len(self.sites)],
                "scanner": None,
                "split": self.split,
                "grid": "224px-0.5mpp",
                **entries[name].columns(),
            }
            for index, name in enumerate(self.names)
        ]
        (folder / "cohort").mkdir(parents=True)
        pl.DataFrame(records, infer_schema_length=None).write_parquet(
            folder / "cohort" / "slides.parquet"
        )
        tiles = folder / "tiles" / "224px-0.5mpp"
        tiles.mkdir(parents=True)
        for name in self.names:
            Image.fromarray(np.full((300, 400, 3), 200, np.uint8)).save(tiles / f"{name}.qc.jpg")
        task = config.tasks["score"]
        (folder / "folds").mkdir()
        pl.DataFrame(
            [
                (name, f"p{index}", label, 0, fold, "test" if index // 3 % 3 == fold else "train")
                for index, (name, value) in enumerate(zip(self.names, self.labels, strict=True))
                if (label := None if value is None else task.class_index(value)) is not None
                for fold in range(3)
            ],
            schema=FOLDS,
            orient="row",
        ).write_parquet(folder / "folds" / "score.parquet")
        for encoder in self.encoders:
            self._write_encoder(folder, encoder, entries)
            self._write_model(folder, config, encoder)
        for encoder, found in self.overlaps.items():
            write_json(folder / "encoders" / encoder / "overlap.json", asdict(found))
        if self.compared:
            self._write_comparison(folder, config)
        for name, table in self._robustness().items():
            write_table(table, folder / "robustness" / name)
        columns = ["slide_a", "slide_b", "patient_a", "patient_b", "cosine", "shared"]
        for encoder, rows in self.similar.items():
            pl.DataFrame(rows, schema=columns, orient="row").write_parquet(
                folder / "features" / encoder / "similar.parquet"
            )

    def _write_comparison(self, folder: Path, config: Config) -> None:
        evaluation = folder / "evaluation"
        spec = CompareSpec(
            tasks=config.tasks,
            encoders=self.encoders,
            domains=dict.fromkeys(self.encoders, "none"),
            heads=("abmil",),
            evaluation=config.evaluation,
            seed=1,
        )
        compare(spec, evaluation, evaluation)

    def _robustness(self) -> dict[str, pl.DataFrame]:
        told = len({site for site in self.sites if site}) > 1
        return robustness_tables(self.encoders, told=told, site_bound=self.site_bound)

    @property
    def names(self) -> list[str]:
        return [f"slide-{index:02d}" for index in range(len(self.labels))]

    def usable(self) -> list[int]:
        lost = {*self.tile_reasons, *self.embed_reasons}
        return [index for index in range(len(self.labels)) if index not in lost]

    def _write_encoder(self, folder: Path, encoder: str, tiles: dict[str, TileEntry]) -> None:
        card = EncoderCard(
            "random", "timm", "resnet18", {}, "pooled", 4, 224, 0.5, (0.5, 0.5, 0.5),
            (0.2, 0.2, 0.2), "auto", "float16", "", "ab" * 32, {"seed": 1},
        )  # fmt: skip
        if encoder in self.pretrained:
            card = replace(
                card, source="pretrain", provenance=PRETRAINED | self.pretrained[encoder]
            )
            (folder / "encoders" / encoder).mkdir(parents=True)
            pl.DataFrame(HISTORY).write_parquet(folder / "encoders" / encoder / "history.parquet")
        write_card(folder / "encoders" / encoder, card)
        entries = {}
        for index, (name, tile) in enumerate(tiles.items()):
            status, reason = self.embed_reasons.get(index, (tile.status, tile.reason))
            entries[name] = FeatureEntry(status, reason, "k", 20, self.failed_tiles, 4)
        features = folder / "features" / encoder
        features.mkdir(parents=True)
        first = next(name for name, entry in entries.items() if entry.status == "ok")
        write_store(
            features / f"{first}.zarr.zip",
            np.zeros((2, 4), np.float16),
            np.zeros((2, 2), np.int32),
            {"key": "k", "precision": self.precision, "receipt": {"device": "CPU (x86_64)"}},
        )
        write_entries(features / f"{BUCKET}.json", entries)

    def _write_model(self, folder: Path, config: Config, encoder: str) -> None:
        task = config.tasks["score"]
        generator = np.random.default_rng([7, self.encoders.index(encoder)])
        records: list[dict[str, Any]] = []
        for index in self.usable():
            label = self.labels[index]
            target = None if label is None else task.class_index(label)
            raw = generator.random(3)
            if target is not None:
                raw[target] += self.signal
            records.extend(
                {
                    "slide_id": self.names[index],
                    "patient_id": f"p{index}",
                    "repeat": 0,
                    "fold": fold,
                    "seed": 0,
                    "role": "predict" if target is None else "test",
                    "target": target,
                    **dict(zip(("prob_0", "prob_1+", "prob_2+"), raw / raw.sum(), strict=True)),
                }
                for fold in (range(3) if target is None else [index // 3 % 3])
            )
        columns = {"slide_id": pl.String, "patient_id": pl.String, "repeat": pl.Int32,
                   "fold": pl.Int32, "seed": pl.Int32, "role": pl.String, "target": pl.Int32,
                   "prob_0": pl.Float64, "prob_1+": pl.Float64, "prob_2+": pl.Float64}  # fmt: skip
        predictions = pl.DataFrame(records, schema=columns)
        # The next fold's test part is the tune part of each.
        tune = predictions.filter(pl.col("role") == "test").with_columns(
            ((pl.col("fold") + 1) % 3).cast(pl.Int32).alias("fold"), pl.lit("tune").alias("role")
        )
        predictions = pl.concat([predictions, tune])
        spec = EvaluateSpec(task=task, chunks=(), evaluation=config.evaluation, seed=config.seed)
        where = Path("score") / encoder / "abmil"
        for name, table in evaluation_tables(spec, predictions).items():
            write_table(table, folder / "evaluation" / where / name)
        controls = ControlSpec(
            task=task, grid="224px-0.5mpp", evaluation=config.evaluation, seed=config.seed
        )
        cohort = pl.read_parquet(folder / "cohort" / "slides.parquet")
        folds = pl.read_parquet(folder / "folds" / "score.parquet")
        with mock.patch.object(covariate_models, "TREES", 5):  # fitting 100 takes half of the time
            tables = control_tables(controls, predictions, folds, cohort)
        for name, table in tables.items():
            write_table(table, folder / "controls" / where / name)
        for name, table in attention_tables(task).items():
            write_table(table, folder / "attention" / where / name)
        models = folder / "models" / "score" / encoder / "abmil"
        chosen = '{"attention":64,"gated":true}' if self.trials > 1 else ""
        trained = {
            f"r0f{fold}": FoldEntry("k", 10, 3, 6, 1, 3, 0.75, self.trials, chosen)
            for fold in range(3)
        }
        for run in trained:
            (models / run).mkdir(parents=True)
            pl.DataFrame(
                {"epoch": [0, 1, 2], "train_loss": [1.0, 0.8, 0.6], "tune_loss": [1.0, 0.75, 0.8]}
            ).write_parquet(models / run / "history.parquet")
        write_entries(models / "r0f0-r0f2.json", trained)
        heatmaps = folder / "heatmaps" / "score" / encoder / "abmil"
        heatmaps.mkdir(parents=True)
        drawn: list[dict[str, object]] = []
        if self.pictures:
            first = self.names[self.usable()[0]]
            Image.fromarray(np.full((64, 216, 3), 128, np.uint8)).save(heatmaps / f"{first}.png")
            drawn = [
                {"slide_id": first, "label": "0", "fold": 0, "picture": f"{first}.png",
                 "panels": ["thumbnail", "attention", "truth"], "tiles": 20, "um_per_px": 2.4,
                 "files": [], "tile_strip": f"{first}.png"},
                {"slide_id": "slide-99", "reason": f"{HOSTILE} in /data/secret/slide-99.svs"},
            ]  # fmt: skip
        (heatmaps / "heatmaps.json").write_text(json.dumps(drawn), encoding="utf-8")
        scores = [{"label": "0", "slides": 3, "patients": 3, "note": "none could be read"}]
        (heatmaps / "tiles.json").write_text(json.dumps(scores), encoding="utf-8")


@functools.cache
def _worlds() -> tempfile.TemporaryDirectory[str]:
    """Return the folder of made-up runs, made once per process and deleted with it."""
    return tempfile.TemporaryDirectory(prefix="her2-worlds-")


def blank(figure: Figure) -> dict[str, bytes]:
    """Stand in for a figure's files where a test is not about what is drawn."""
    return {"svg": f"<svg><!-- {figure.name} --></svg>".encode(), "pdf": b"%PDF-"}


def build_page(spec: ReportSpec, results: Path, output: Path) -> None:
    """Build the report, all of it but the drawing of its figures."""
    with mock.patch("her2.report.figures.base.draw_figure", blank):
        build_report(spec, results, output)


def robustness_tables(
    encoders: tuple[str, ...], *, told: bool, site_bound: bool
) -> dict[str, pl.DataFrame]:
    """Made-up figures; `told` with more than one site, `site_bound` for features that tell it."""
    chances, less = (
        {
            f"{figure}{part}": value
            for figure in ("auc", "balanced_accuracy")
            for part, value in zip(("", "_chance", "_chance_low", "_chance_high", "_p"),
                                   (own, 0.5, 0.375, 0.625, p), strict=True)
        }
        for own, p in ((0.75, 0.005), (0.5625, 0.25))
    )  # fmt: skip
    probed = {"groups": 2, "patients": 18, "left_out": 0, "low": 0.5, "high": 0.875, "note": ""}
    absent = {"groups": 0, "patients": 0, "left_out": 0, "note": "not in the manifest"}
    probes: list[dict[str, Any]] = []
    near: list[dict[str, Any]] = []
    for name in encoders:
        site = {"encoder": name, "target": "site", "kind": "site"}
        probes += [
            site | (probed | (chances if site_bound else less) if told else absent),
            {"encoder": name, "target": "scanner", "kind": "scanner", **absent},
            {"encoder": name, "target": "score", "kind": "label", **probed, **chances},
        ]
        found = {"value": 0.3125, "low": 0.125, "high": 0.375, "plain": 0.125,
                 "plain_chance": 0.25, "same_class": 0.0625, "same_site": 0.4375, "tiles": 90,
                 "note": ""}  # fmt: skip
        row = {"encoder": name, "task": "score"}
        near += [row | {"source": "site", "k": k, **found} for k in (5, 15)] if told else []
        near.append(row | {"source": "scanner", "note": "not in the manifest"})
    return {
        "encoders": pl.DataFrame(
            [(name, 512, 18, 18, 90, 12.5) for name in encoders],
            schema=robustness.ENCODERS,
            orient="row",
        ),
        "probes": pl.DataFrame(probes, schema=robustness.PROBES),
        "neighbours": pl.DataFrame(near, schema=robustness.NEIGHBOURS),
        "similarity": pl.DataFrame(
            [(a, b, "tiles", 90, 0.5, "") for a, b in itertools.combinations(encoders, 2)],
            schema=robustness.SIMILARITY,
            orient="row",
        ),
    }


def attention_tables(task: Task) -> dict[str, pl.DataFrame]:
    """One slide with a truth, curves of two points, one repeat."""
    localised = pl.DataFrame(
        [("slide-00", "p0", "0", 20, 5, 0.25, 0.5, 0.8, 1.0, "")], schema=LOCALISATION, orient="row"
    )
    summary = [
        (name, measure, value, None, None, 1, 1, "interval not defined: 1 patient")
        for name in ("all", *task.class_names)
        for measure, value in zip(MEASURES, (0.8, 0.5, 0.25, 2.0, 1.0), strict=True)
    ]
    curves = [
        (curve, order, share, value, value - 0.1, value + 0.1, 6, 6)
        for curve in ("deletion", "insertion")
        for order, value in (("attention", 0.4), ("random", 0.6))
        for share in (0.0, 0.5)
    ]
    areas = [(name, 0.1, 0.05, 0.15, 6, 6, "") for name in ("deletion", "insertion")]
    agreement = [("spearman", None, None, None, 0, 0, "not defined: folds.repeats is 1")]
    return {
        "localisation": localised,
        "localisation_summary": pl.DataFrame(summary, schema=LOCALISATION_SUMMARY, orient="row"),
        "faithfulness": pl.DataFrame(curves, schema=FAITHFULNESS, orient="row"),
        "faithfulness_summary": pl.DataFrame(areas, schema=FAITHFULNESS_SUMMARY, orient="row"),
        "agreement": pl.DataFrame(agreement, schema=AGREEMENT, orient="row"),
    }
