"""Before every stage: the spec of each job, everything it depends on as canonical JSON.

A rule's only parameter is the spec of its job. Snakemake compares it as text, so a job runs again
if its spec changes, and only then, whatever else changes in the config. The job parses the same
string, so what re-runs a stage and what the stage reads cannot drift apart. A spec contains no
paths (moving a folder changes no result), batch sizes or thread counts. Users' files are in it by
their state, not among the rule's inputs: Snakemake orders inputs by their times, which may lie in
the future or disagree between machines.
"""

import operator
from typing import Annotated, Literal, TypeVar

from pydantic import Field, field_serializer

from her2.config import (
    KEEP_ORDER,
    Balance,
    Config,
    Domain,
    EncoderSection,
    EvaluationSection,
    HeadSection,
    HeatmapFormat,
    PatchesSection,
    PatientLabel,
    PretrainingSection,
    Section,
    Task,
    TilingSection,
    TrainingSection,
)
from her2.config.names import Buckets, Protocol, Run
from her2.core.errors import UserError
from her2.core.files import canonical_json
from her2.core.paths import UserPath

FilesState = Annotated[str, Field(exclude_if=operator.not_)]
"""State of the users' files that a job reads (`her2.core.stamps.files_state`): if it changes, the
job runs again. Empty where rules make these files."""

VERSIONS = {
    "synthetic": 3,
    "tile": 2,
    "audit": 3,
    "cohort": 2,
    "encoder": 1,
    "overlap": 1,
    "embed": 2,
    "similar": 1,
    "folds": 1,
    "train": 3,
    "evaluate": 7,
    "compare": 7,
    "segmenter": 1,
    "robustness": 1,
    "control": 8,
    "heatmap": 2,
    "attention": 4,
    "apart": 1,
    "refit": 1,
    "apply": 1,
    "validate": 1,
    "external": 1,
    "report": 6,
    "describe": 1,
    "take": 1,
}
"""Version of each stage. Raise it if the output changes for the same input; only then are existing
products made again. A golden test fails if an output changes without its version."""


class SyntheticSlide(Section):
    """The row of the manifest that a demo slide is generated from."""

    slide_id: str
    patient_id: str
    her2: str
    site: str


class SyntheticSpec(Section):
    """A bucket of demo slides."""

    version: int = VERSIONS["synthetic"]
    slides: tuple[SyntheticSlide, ...]
    side_px: int
    seed: int


class PatchesSpec(Section):
    """A patch set of the demo."""

    version: int = VERSIONS["synthetic"]
    kind: Literal["he", "ihc", "natural"]
    n_per_class: int
    size_px: int
    mpp: float
    seed: int


class TileSpec(Section):
    """A bucket of slides on a grid.

    `rows` digests the ids, paths and um/px of its slides and the paths of their annotations and
    masks. `seed` is the seed for drawing `max_tiles` tiles, or None if all tiles are kept.
    """

    version: int = VERSIONS["tile"]
    bucket: str
    rows: str
    mpp: float
    size: int
    tiling: TilingSection
    seed: int | None = None
    files: FilesState = ""


class SegmenterSpec(Section):
    """The weights of a segmenter, of tissue or `artefacts`.

    `files` is the state of a local file of them.
    """

    version: int = VERSIONS["segmenter"]
    segmenter: str
    artefacts: bool = Field(False, exclude_if=operator.not_)
    weights: UserPath | None = None
    sha256: str | None = None
    files: FilesState = ""


class AuditSpec(Section):
    """The checks of all slides on all grids; `rows` digests ids, patients and labels."""

    version: int = VERSIONS["audit"]
    rows: str
    buckets: Buckets
    grids: tuple[str, ...]
    labels: tuple[str, ...]
    max_excluded: float


class CohortSpec(Section):
    """The table of all slides on all grids; `rows` digests all their cells in the manifest.

    `columns` are those that only the config names, for the controls.
    """

    version: int = VERSIONS["cohort"]
    rows: str
    buckets: Buckets
    grids: tuple[str, ...]
    labels: tuple[str, ...]
    columns: tuple[str, ...] = Field((), exclude_if=operator.not_)


class EncoderSpec(Section):
    """An encoder's weights and transforms; `files` are local weights, or patches to train on."""

    version: int = VERSIONS["encoder"]
    encoder: EncoderSection
    patches: PatchesSection | None = None
    pretraining: PretrainingSection | None = None
    seed: int
    files: FilesState = ""


class OverlapSpec(Section):
    """The overlap of an encoder's pre-training data with a cohort; its table is an input file.

    `cohort` names an external one.
    """

    version: int = VERSIONS["overlap"]
    cohort: str = Field("", exclude_if=operator.not_)
    domain: Domain
    allow_overlap: bool


class EmbedSpec(Section):
    """The embedding of a bucket of slides.

    `views` is the number of augmented views, and `seed` theirs, which is 0 where there are none.
    """

    version: int = VERSIONS["embed"]
    bucket: str
    rows: str
    max_failed_tiles: float
    views: int = Field(0, exclude_if=operator.not_)
    seed: int = Field(0, exclude_if=operator.not_)


Sites = Literal["ignored", "stratified", "preserved", "leave_one_out"]


class FoldsSpec(Section):
    """The folds of a task.

    `rows` digests ids, patients, labels and, if they matter, sites, the fixed split or the order of
    the manifest. `patient_label` is set only if patients have labels of different classes.
    """

    version: int = VERSIONS["folds"]
    rows: str
    task: Task
    protocol: Protocol = "sound"
    folds: int
    repeats: int
    tune: float
    sites: Sites = "ignored"
    split: bool = False
    patient_label: PatientLabel = Field("refuse", exclude_if=lambda value: value == "refuse")
    seed: int


class DescribeSpec(Section):
    """The card of an encoder whose features another program computed.

    `files` are those of the development cohort. Where they lie is not part of it.
    """

    version: int = VERSIONS["describe"]
    identity: str
    format: str | None = None
    mpp: float | None = None
    size: int | None = None
    files: FilesState = ""


class TakeSpec(Section):
    """A bucket of slides whose features another program computed; their card comes as a file.

    `rows` digests the ids, paths and um/px of its slides, `files` are the feature files and slides.
    """

    version: int = VERSIONS["take"]
    bucket: str
    rows: str
    format: str | None = None
    mpp: float | None = None
    size: int | None = None
    min_tiles: int
    files: FilesState = ""


class SimilarSpec(Section):
    """The search for near-identical slides by features; the cohort's table is an input file."""

    version: int = VERSIONS["similar"]
    buckets: Buckets
    max_shared_tiles: float


class TrainSpec(Section):
    """A chunk of runs of an encoder, head and task.

    A run of the first seed is written as a pair (repeat, fold). The number of seeds is not part of
    it, since it changes no model.
    """

    version: int = VERSIONS["train"]
    task: Task
    head: HeadSection
    training: TrainingSection
    protocol: Protocol = "sound"
    runs: tuple[Run, ...]
    buckets: Buckets
    max_excluded: float
    seed: int

    @field_serializer("runs")
    def _identities(self, runs: tuple[Run, ...]) -> list[tuple[int, ...]]:
        return [run.identity for run in runs]


class ClassBalance(Section):
    """How the classes were drawn and weighed in training, see `her2.mil.priors`.

    `fitted` is True for a head that scikit-learn fits. The defaults are those of a training whose
    classes are as frequent as their slides.
    """

    balance: Balance = "none"
    label_smoothing: float = 0.0
    bags_per_batch: int = 1
    fitted: bool = False


class EvaluateSpec(Section):
    """The metrics of an encoder, head and task."""

    version: int = VERSIONS["evaluate"]
    task: Task
    protocol: Protocol = "sound"
    chunks: tuple[str, ...]
    training: ClassBalance = ClassBalance()
    evaluation: EvaluationSection
    seed: int


class CompareSpec(Section):
    """The comparison of encoders and of heads on all tasks.

    `domains` has the kind of training images of each encoder.
    """

    version: int = VERSIONS["compare"]
    tasks: dict[str, Task]
    encoders: tuple[str, ...]
    domains: dict[str, Domain]
    heads: tuple[str, ...]
    evaluation: EvaluationSection
    seed: int


class RobustnessSpec(Section):
    """What the features of all encoders know beside the label; these, and labels, come as files.

    `encoders` has the grid of each.
    """

    version: int = VERSIONS["robustness"]
    tasks: tuple[str, ...]
    encoders: dict[str, str]
    buckets: Buckets
    confidence: float
    seed: int


class ControlSpec(Section):
    """The controls of an encoder and head on a task; `grid` is the encoder's."""

    version: int = VERSIONS["control"]
    task: Task
    grid: str
    evaluation: EvaluationSection
    seed: int


class HeatmapSpec(Section):
    """The attention maps of an encoder, head and task; `files` are the ground truths.

    `chunks` are those of the first training seed.
    """

    version: int = VERSIONS["heatmap"]
    task: Task
    chunks: tuple[str, ...]
    buckets: Buckets
    slides: int
    formats: tuple[HeatmapFormat, ...]
    mask_classes: tuple[str, ...] = ()
    annotation_origin: Literal["level0", "bounds"] = "level0"
    seed: int
    synthetic: bool
    files: FilesState = ""


class AttentionSpec(Section):
    """The localisation and faithfulness of the attention of an encoder and head on a task.

    `files` are the ground truths, `mask_classes` the classes of their positive regions.
    `chunks` are those of the first training seed.
    """

    version: int = VERSIONS["attention"]
    task: Task
    chunks: tuple[str, ...]
    buckets: Buckets
    mask_classes: tuple[str, ...] = ()
    annotation_origin: Literal["level0", "bounds"] = "level0"
    faithfulness_slides: int
    confidence: float
    seed: int
    files: FilesState = ""


class ReportSpec(Section):
    """The report, which shows `config`.

    `chunks` are those of each head. `split` is True if the manifest's fixed split was used.
    `cautions` say what may be a mistake in the manifest. `external` has the buckets of each
    external cohort.
    """

    version: int = VERSIONS["report"]
    config: Config
    software: str
    buckets: Buckets
    chunks: tuple[str, ...]
    split: bool = False
    cautions: tuple[str, ...] = Field((), exclude_if=lambda value: not value)
    external: dict[str, Buckets] = Field(default_factory=dict, exclude_if=operator.not_)


Spec = TypeVar("Spec", bound=Section)


def dump(spec: Section) -> str:
    """Return the canonical string of a spec."""
    return canonical_json(spec.model_dump(mode="json", context=KEEP_ORDER))


def load(kind: type[Spec], text: str) -> Spec:
    """Parse a spec.

    Raises:
        UserError: it is not of this kind, or from another version of the stage.
    """
    try:
        spec = kind.model_validate_json(text)
    except ValueError as error:
        raise UserError(f"--spec: is not a {kind.__name__}: {error}") from None
    version, current = getattr(spec, "version", None), kind.model_fields.get("version")
    if current is not None and version != current.default:
        raise UserError(
            f"--spec: is for version {version} of this stage, but the code has version "
            f"{current.default}. Run snakemake again."
        )
    return spec
