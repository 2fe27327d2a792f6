"""Before every stage: the specs of the jobs on external cohorts, see `her2.config.jobs`."""

import operator
from typing import Literal

from pydantic import Field

from her2.config import (
    Domain,
    EvaluationSection,
    HeadSection,
    HeatmapFormat,
    PatientLabel,
    Section,
    Task,
    TrainingSection,
)
from her2.config.jobs import VERSIONS, FilesState
from her2.config.names import Buckets, Protocol
from her2.config.validation import Final


class ApartSpec(Section):
    """The search for patients, slides and tissue of an external cohort in the development cohort.

    The tables of both cohorts, and their features, come as files.
    """

    version: int = VERSIONS["apart"]
    cohort: str
    buckets: Buckets = ()
    development_buckets: Buckets = ()
    max_shared_tiles: float = 1.0


class RefitSpec(Section):
    """One model of a task, encoder and head, trained on all patients of the development cohort.

    `chunks` are those of the folds, whose median epoch it is trained for.
    """

    version: int = VERSIONS["refit"]
    task: Task
    head: HeadSection
    training: TrainingSection
    chunks: tuple[str, ...]
    buckets: Buckets
    seed: int

    @property
    def protocol(self) -> Protocol:
        """Return the protocol of the folds; the published one ends with them."""
        return "sound"


class ApplySpec(Section):
    """The predictions of an external cohort by the frozen models of a task, encoder and head.

    `chunks` and `development_buckets` are those of the development, `buckets` those of the external
    cohort.
    """

    version: int = VERSIONS["apply"]
    cohort: str
    task: Task
    chunks: tuple[str, ...]
    buckets: Buckets
    development_buckets: Buckets = ()
    max_excluded: float
    final: Final = "folds"
    seed: int


class Truth(Section):
    """How an external cohort tells the truth of a task.

    `truth` reads its labels and has the classes that figures are computed for; `sides` are the
    indices of the classes of the development's `task` that make up each of them.
    """

    of: str
    task: Task
    truth: Task
    sides: tuple[tuple[int, ...], ...]


FirstLabels = dict[str, str]
"""With `patient_label: first`, the label of the first slide in the manifest of each patient whose
slides have labels of different classes. Tables of slides do not have the manifest's order."""


class ValidateSpec(Section):
    """The figures of a frozen model on an external cohort; labels come with the cohort's table."""

    version: int = VERSIONS["validate"]
    cohort: str
    truth: Truth
    grid: str
    patient_label: PatientLabel
    first: FirstLabels = Field({}, exclude_if=operator.not_)
    final: Final = "folds"
    evaluation: EvaluationSection
    seed: int


class ExternalSpec(Section):
    """All models compared on an external cohort, and its cases beside those of development."""

    version: int = VERSIONS["external"]
    cohort: str
    truths: dict[str, Truth]
    encoders: tuple[str, ...]
    domains: dict[str, Domain]
    grids: dict[str, str]
    heads: tuple[str, ...]
    evaluation: EvaluationSection
    seed: int


class ExternalHeatmapSpec(Section):
    """The attention maps of an encoder and head on an external cohort."""

    version: int = VERSIONS["heatmap"]
    cohort: str
    truth: Truth
    patient_label: PatientLabel = Field("refuse", exclude_if=lambda value: value == "refuse")
    first: FirstLabels = Field({}, exclude_if=operator.not_)
    buckets: Buckets
    slides: int
    formats: tuple[HeatmapFormat, ...]
    mask_classes: tuple[str, ...] = ()
    annotation_origin: Literal["level0", "bounds"] = "level0"
    seed: int
    synthetic: bool
    files: FilesState = ""


class ExternalAttentionSpec(Section):
    """Localisation and faithfulness of the attention of an encoder and head, likewise."""

    version: int = VERSIONS["attention"]
    cohort: str
    truth: Truth
    patient_label: PatientLabel = Field("refuse", exclude_if=lambda value: value == "refuse")
    first: FirstLabels = Field({}, exclude_if=operator.not_)
    chunks: tuple[str, ...]
    buckets: Buckets
    mask_classes: tuple[str, ...] = ()
    annotation_origin: Literal["level0", "bounds"] = "level0"
    faithfulness_slides: int
    confidence: float
    final: Final = "folds"
    seed: int
    files: FilesState = ""
