"""Stage 2, report: everything that the page is made of, read once and checked to be present."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from her2.cohort.audit import read_cohort_table
from her2.config import Config, Task
from her2.config.jobs import ReportSpec
from her2.core.plot_style import FigureContext
from her2.core.tables import read_result
from her2.encoders.card import EncoderCard, read_card
from her2.pretraining.overlap import Overlap
from her2.report.external_results import ExternalCohort, read_external
from her2.report.reading import (
    ATTENTION,
    by_task,
    heatmap_list,
    overlaps,
    present,
    store_receipts,
)
from her2.storage.entries import (
    FeatureEntry,
    FoldEntry,
    read_all_entries,
    read_folds,
    untrained_folds,
)
from her2.storage.features import read_attributes
from her2.storage.fold_files import CARD_NAME, check_fold

DETAILS = (
    "confusion",
    "fold_metrics",
    "binary",
    "priors",
    "seeds",
    "temperatures",
    "calibration",
    "reliability",
    "operating",
    "decision",
)
"""Tables of one evaluation, beyond its metrics."""
TABLES = ("predictions", "slides", "patients", "metrics", *DETAILS)
"""All tables of one evaluation."""
CONTROLS = (
    "covariates",
    "inputs",
    "shuffled",
    "shuffled_draws",
    "subgroups",
    "interactions",
    "within",
)
"""Tables of the controls of one model."""
ROBUSTNESS = ("encoders", "probes", "neighbours", "similarity")
"""Tables of what the features of all encoders know."""
RECEIPTS = 200
"""Approximate number of stores per encoder whose receipts are read."""


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """One encoder and head on a task: the tables of its evaluation and of its training.

    `folds` and `histories` are by run (`r0f3`, `r0f3s1`); a missing history is left out, and
    `untrained` says why a run has no model.
    `controls` and `attention` are tables by name. `heatmaps` is the list of `heatmaps.json`,
    `scores` that of `tiles.json`, and `pictures` their folder.
    """

    task_name: str
    encoder: str
    head: str
    task: Task
    predictions: pl.DataFrame
    slides: pl.DataFrame
    patients: pl.DataFrame
    metrics: pl.DataFrame
    confusion: pl.DataFrame
    fold_metrics: pl.DataFrame
    binary: pl.DataFrame
    priors: pl.DataFrame
    seeds: pl.DataFrame
    temperatures: pl.DataFrame
    calibration: pl.DataFrame
    reliability: pl.DataFrame
    operating: pl.DataFrame
    decision: pl.DataFrame
    controls: Mapping[str, pl.DataFrame]
    attention: Mapping[str, pl.DataFrame]
    folds: Mapping[str, FoldEntry]
    histories: Mapping[str, pl.DataFrame]
    heatmaps: list[dict[str, object]]
    scores: list[dict[str, object]]
    pictures: Path
    untrained: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return `task / encoder / head`."""
        return f"{self.task_name} / {self.encoder} / {self.head}"

    @property
    def anchor(self) -> str:
        """Return the id of its section on the page, unique since names hold no slash."""
        return f"model/{self.task_name}/{self.encoder}/{self.head}"

    def level(self, name: str) -> pl.DataFrame:
        """Return the metrics at `patient` or `slide` level."""
        return self.metrics.filter(pl.col("level") == name)


@dataclass(frozen=True, slots=True, eq=False)  # tables have no equality of one answer
class Results:
    """A finished run.

    `cohort` has one row per slide and grid. `features`, and the `precisions` and `devices` that
    they were computed in and on, are by encoder, and so are `overlaps` and `pretraining` (epochs)
    for those that have them. `comparisons`, `statements`, `selections` and `picks` are by task; a
    task with one encoder and head has no comparison. `receipts` are by encoder and describe how the
    features of some slides were made, see `her2.embedding.stage.receipt`. `similar` are pairs of
    slides by encoder, `folds` are by task, and `robustness` are tables by name. `split` is true
    where the manifest's fixed split was used. `cautions` say what may be a mistake in the manifest.
    `external` are the external cohorts.
    """

    config: Config
    software: str
    folder: Path
    cohort: pl.DataFrame
    features: Mapping[str, Mapping[str, FeatureEntry]]
    cards: Mapping[str, EncoderCard]
    precisions: Mapping[str, tuple[str, ...]]
    devices: Mapping[str, tuple[str, ...]]
    models: tuple[EvaluatedModel, ...]
    overlaps: Mapping[str, Overlap]
    pretraining: Mapping[str, pl.DataFrame]
    comparisons: Mapping[str, pl.DataFrame]
    statements: Mapping[str, pl.DataFrame]
    selections: Mapping[str, pl.DataFrame]
    picks: Mapping[str, pl.DataFrame]
    receipts: Mapping[str, tuple[Mapping[str, Any], ...]]
    similar: Mapping[str, pl.DataFrame]
    folds: Mapping[str, pl.DataFrame]
    robustness: Mapping[str, pl.DataFrame]
    split: bool
    cautions: tuple[str, ...]
    external: tuple[ExternalCohort, ...] = ()

    @property
    def synthetic(self) -> bool:
        """Return whether the slides were drawn by a program."""
        return self.config.cohort.synthetic

    @property
    def figure_context(self) -> FigureContext:
        """Return the context that all figures of the page share."""
        return FigureContext(self.synthetic)

    def task_models(self, task_name: str) -> tuple[EvaluatedModel, ...]:
        """Return the models of one task, in the config's order."""
        return tuple(model for model in self.models if model.task_name == task_name)


def one_row_per_slide(results: Results) -> pl.DataFrame:
    """Return the cohort table without its grids: one row per slide."""
    return results.cohort.unique("slide_id", keep="first").sort("slide_id")


def read_results(spec: ReportSpec, folder: Path) -> Results:
    """Read the results folder of a run.

    Raises:
        UserError: a table, card or entries file is missing or broken.
    """
    config = spec.config
    features = {
        name: read_all_entries(folder / "features" / name, spec.buckets, FeatureEntry)
        for name in config.encoders
    }
    receipts = {name: store_receipts(spec.buckets, folder / "features" / name) for name in features}
    cards = {name: read_card(folder / "encoders" / name) for name in config.encoders}
    return Results(
        config=config,
        software=spec.software,
        folder=folder,
        cohort=read_cohort_table(folder / "cohort"),
        features=features,
        cards=cards,
        precisions={name: precisions for name, (precisions, _) in receipts.items()},
        devices={name: devices for name, (_, devices) in receipts.items()},
        receipts={
            name: _slide_receipts(entries, folder / "features" / name)
            for name, entries in features.items()
        },
        models=tuple(
            _model(config, folder, (task, encoder, head), spec.chunks)
            for task in config.tasks
            for encoder in config.encoders
            for head in config.heads
        ),
        overlaps=overlaps(config, folder),
        pretraining={
            name: read_result(path)
            for name, card in cards.items()
            if card.source == "pretrain"
            and (path := folder / "encoders" / name / "history.parquet").exists()
        },
        comparisons=by_task(folder / "evaluation" / "comparison.parquet"),
        statements=by_task(folder / "evaluation" / "statement.parquet"),
        selections=by_task(folder / "evaluation" / "selection.parquet"),
        picks=by_task(folder / "evaluation" / "picks.parquet"),
        similar=present({n: folder / "features" / n / "similar.parquet" for n in config.encoders}),
        folds=present({task: folder / "folds" / f"{task}.parquet" for task in config.tasks}),
        robustness={
            name: read_result(folder / "robustness" / f"{name}.parquet") for name in ROBUSTNESS
        },
        split=spec.split,
        cautions=spec.cautions,
        external=read_external(spec, folder),
    )


def _model(
    config: Config, folder: Path, names: tuple[str, str, str], chunks: tuple[str, ...]
) -> EvaluatedModel:
    task, encoder, head = names
    evaluation, models, heatmaps, controls, attention = (
        folder / stage / task / encoder / head
        for stage in ("evaluation", "models", "heatmaps", "controls", "attention")
    )
    folds = read_folds(models, chunks)
    histories = {run: models / run / "history.parquet" for run in folds}
    for run, fold in folds.items():
        if (models / run / CARD_NAME).exists():
            check_fold(models / run, ["history.parquet"], fold.key)
    tables = {name: read_result(evaluation / f"{name}.parquet") for name in TABLES}
    return EvaluatedModel(
        task_name=task,
        encoder=encoder,
        head=head,
        task=config.tasks[task],
        **tables,
        controls={name: read_result(controls / f"{name}.parquet") for name in CONTROLS},
        attention={name: read_result(attention / f"{name}.parquet") for name in ATTENTION},
        folds=folds,
        histories={run: read_result(path) for run, path in histories.items() if path.exists()},
        heatmaps=heatmap_list(heatmaps / "heatmaps.json"),
        scores=heatmap_list(heatmaps / "tiles.json"),
        pictures=heatmaps,
        untrained=untrained_folds(models, chunks),
    )


def _slide_receipts(
    entries: Mapping[str, FeatureEntry], folder: Path
) -> tuple[Mapping[str, Any], ...]:
    """Return the receipts of about `RECEIPTS` slides; the oldest stores have none."""
    stores = [
        (path, entry.key)
        for slide_id, entry in sorted(entries.items())
        if entry.status == "ok" and (path := folder / f"{slide_id}.zarr.zip").exists()
    ]
    step = max(1, len(stores) // RECEIPTS)
    attributes = [read_attributes(path, key) for path, key in stores[::step]]
    return tuple(
        {**found["receipt"], "tiles": found["tiles"]}
        for found in attributes
        if "on_cpu" in found.get("receipt", {})
    )
