"""Stage 2, report: the results on external cohorts, read once and checked to be present."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from her2.cohort.apart import Apart, read_apart
from her2.cohort.audit import read_cohort_table
from her2.config import Config, Task, ValidationSection
from her2.config.jobs import ReportSpec
from her2.core.tables import read_result
from her2.pretraining.overlap import Overlap
from her2.report.reading import (
    ATTENTION,
    broken,
    by_task,
    heatmap_list,
    overlaps,
    present,
    store_receipts,
)
from her2.storage.entries import FeatureEntry, read_all_entries

EVALUATED = (
    "counts",
    "predictions",
    "slides",
    "patients",
    "metrics",
    "confusion",
    "binary",
    "calibration",
    "reliability",
    "operating",
    "decision",
    "sites",
    "internal",
    "inputs",
    "covariates",
)
"""Tables of a frozen model on an external cohort."""


@dataclass(frozen=True, slots=True)
class ExternalTruth:
    """How an external cohort tells the truth of a task, and whether its manifest has labels.

    `task` has the classes that figures are computed for. `positive` are the development's classes
    that make up the second of them; empty where the classes are those of the development.
    """

    name: str
    of: str
    task: Task
    positive: tuple[str, ...]
    labelled: bool


@dataclass(frozen=True, slots=True)
class ExternalModel:
    """The frozen model of an encoder and head on an external cohort.

    `applied` has its predictions in the classes of the development, one row per slide. `tables` are
    those of `EVALUATED` by name; without labels they have no figures.
    """

    cohort: str
    truth: ExternalTruth
    encoder: str
    head: str
    applied: pl.DataFrame
    tables: Mapping[str, pl.DataFrame]
    attention: Mapping[str, pl.DataFrame]
    heatmaps: list[dict[str, object]]
    scores: list[dict[str, object]]
    pictures: Path

    @property
    def name(self) -> str:
        """Return `cohort / truth / encoder / head`."""
        return f"{self.cohort} / {self.truth.name} / {self.encoder} / {self.head}"

    @property
    def anchor(self) -> str:
        """Return the id of its section on the page; it has more parts than those of development."""
        return f"model/external/{self.cohort}/{self.truth.name}/{self.encoder}/{self.head}"

    @property
    def task(self) -> Task:
        """Return the task with the classes that figures are computed for."""
        return self.truth.task

    @property
    def evaluated(self) -> bool:
        """Return whether any patient has a label to evaluate it by."""
        return len(self.patients) > 0

    @property
    def slides(self) -> pl.DataFrame:
        """Return the probabilities of each evaluated slide."""
        return self.tables["slides"]

    @property
    def patients(self) -> pl.DataFrame:
        """Return the probabilities of each evaluated patient."""
        return self.tables["patients"]

    @property
    def metrics(self) -> pl.DataFrame:
        """Return its figures at both levels."""
        return self.tables["metrics"]


@dataclass(frozen=True, slots=True, eq=False)  # tables have no equality of one answer
class ExternalCohort:
    """An external cohort: its slides, and every frozen model on them.

    `slides` has one row per slide and grid. `features`, and the `precisions` and `devices` that
    they were computed in and on, are by encoder, and so are `overlaps` and `similar` (pairs of an
    external slide and one of the development) for those that have them. `comparisons` are by truth.
    `apart` is what the search for patients and slides of the development found.
    """

    name: str
    section: ValidationSection
    truths: tuple[ExternalTruth, ...]
    slides: pl.DataFrame
    features: Mapping[str, Mapping[str, FeatureEntry]]
    precisions: Mapping[str, tuple[str, ...]]
    devices: Mapping[str, tuple[str, ...]]
    models: tuple[ExternalModel, ...]
    comparisons: Mapping[str, pl.DataFrame]
    case_mix: pl.DataFrame
    apart: Apart
    similar: Mapping[str, pl.DataFrame]
    overlaps: Mapping[str, Overlap]

    @property
    def anchor(self) -> str:
        """Return the id of its part of the page."""
        return f"external/{self.name}"

    def of_truth(self, name: str) -> tuple[ExternalModel, ...]:
        """Return the models of one truth, in the config's order."""
        return tuple(model for model in self.models if model.truth.name == name)


def read_external(spec: ReportSpec, folder: Path) -> tuple[ExternalCohort, ...]:
    """Read the external cohorts of a run, in the config's order.

    Raises:
        UserError: a table or entries file is missing or broken.
    """
    return tuple(
        _cohort(spec, folder / "validation" / name, name)
        for name in spec.config.validation
        if name in spec.external
    )


def truths(config: Config, name: str, columns: list[str]) -> tuple[ExternalTruth, ...]:
    """Return how a cohort tells the truth of each task; `columns` are those of its table."""
    found = []
    for truth, (of, section) in config.truths(name).items():
        task = section.truth(config.tasks[of])
        labelled = f"label_{task.label}" in columns
        found.append(ExternalTruth(truth, of, task, section.positive, labelled))
    return tuple(found)


def _cohort(spec: ReportSpec, folder: Path, name: str) -> ExternalCohort:
    config, buckets = spec.config, spec.external[name]
    slides = read_cohort_table(folder / "cohort")
    known = truths(config, name, slides.columns)
    encoders = {encoder: folder / "features" / encoder for encoder in config.encoders}
    receipts = {encoder: store_receipts(buckets, path) for encoder, path in encoders.items()}
    return ExternalCohort(
        name=name,
        section=config.validation[name],
        truths=known,
        slides=slides,
        features={
            encoder: read_all_entries(path, buckets, FeatureEntry)
            for encoder, path in encoders.items()
        },
        precisions={encoder: precisions for encoder, (precisions, _) in receipts.items()},
        devices={encoder: devices for encoder, (_, devices) in receipts.items()},
        models=tuple(
            _model(folder, name, truth, encoder, head)
            for truth in known
            for encoder in config.encoders
            for head in config.heads
        ),
        comparisons=by_task(folder / "evaluation" / "comparison.parquet"),
        case_mix=read_result(folder / "evaluation" / "case_mix.parquet"),
        apart=_apart(folder / "cohort" / "apart.json"),
        similar=present({encoder: path / "similar.parquet" for encoder, path in encoders.items()}),
        overlaps=overlaps(config, folder),
    )


def _model(
    folder: Path, cohort: str, truth: ExternalTruth, encoder: str, head: str
) -> ExternalModel:
    own = Path(truth.name) / encoder / head
    evaluation, heatmaps, attention = (
        folder / stage / own for stage in ("evaluation", "heatmaps", "attention")
    )
    return ExternalModel(
        cohort=cohort,
        truth=truth,
        encoder=encoder,
        head=head,
        applied=read_result(
            folder / "predictions" / truth.of / encoder / head / "predictions.parquet"
        ),
        tables={name: read_result(evaluation / f"{name}.parquet") for name in EVALUATED},
        attention={name: read_result(attention / f"{name}.parquet") for name in ATTENTION},
        heatmaps=heatmap_list(heatmaps / "heatmaps.json"),
        scores=heatmap_list(heatmaps / "tiles.json"),
        pictures=heatmaps,
    )


def _apart(path: Path) -> Apart:
    try:
        return read_apart(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise broken(path, error) from None
