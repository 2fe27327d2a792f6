"""Before every stage: what each job depends on, as one canonical JSON string.

A rule's single parameter is the spec of its job; Snakemake compares it as text, so a job runs
again when its spec changes and whatever else changed in the config. The job parses the same
string: what re-runs a stage and what the stage reads cannot drift apart. Paths are not in a spec
(a moved folder changes no result), and neither are batch sizes or thread counts.
"""

from typing import Literal, TypeVar

from her2.config import (
    KEEP_ORDER,
    Config,
    Domain,
    EncoderSection,
    EvaluationSection,
    HeadSection,
    HeatmapFormat,
    PatchesSection,
    PretrainingSection,
    Section,
    Task,
    TilingSection,
    TrainingSection,
)
from her2.core.errors import UserError
from her2.core.files import canonical_json

VERSIONS = {
    "synthetic": 2,
    "tile": 2,
    "audit": 2,
    "cohort": 2,
    "encoder": 1,
    "overlap": 1,
    "embed": 2,
    "similar": 1,
    "folds": 1,
    "train": 3,
    "evaluate": 4,
    "compare": 3,
    "control": 5,
    "heatmap": 2,
    "attention": 3,
    "report": 4,
}
"""Raise a stage's number when its output changes for the same input: that, and only that, makes
its products anew. A golden test fails when an output changes and its number does not."""


class SyntheticSlide(Section):
    """What a demo slide is drawn from: its row of the manifest."""

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
    """One patch set of the demo."""

    version: int = VERSIONS["synthetic"]
    kind: Literal["he", "ihc", "natural"]
    n_per_class: int
    size_px: int
    mpp: float
    seed: int


class TileSpec(Section):
    """A bucket of slides on a grid.

    `rows` digests ids, paths and um/px of its slides, and where their annotations and masks are;
    `seed` is that of the draw of `max_tiles`, None where all tiles are kept.
    """

    version: int = VERSIONS["tile"]
    bucket: str
    rows: str
    mpp: float
    size: int
    tiling: TilingSection
    seed: int | None = None


class AuditSpec(Section):
    """The checks of all slides on all grids; `rows` digests ids, patients and labels."""

    version: int = VERSIONS["audit"]
    rows: str
    buckets: tuple[str, ...]
    grids: tuple[str, ...]
    labels: tuple[str, ...]
    max_excluded: float


class CohortSpec(Section):
    """The table of all slides on all grids; `rows` digests all that the manifest says of them."""

    version: int = VERSIONS["cohort"]
    rows: str
    buckets: tuple[str, ...]
    grids: tuple[str, ...]
    labels: tuple[str, ...]


class EncoderSpec(Section):
    """One encoder's weights and transforms."""

    version: int = VERSIONS["encoder"]
    encoder: EncoderSection
    patches: PatchesSection | None = None
    pretraining: PretrainingSection | None = None
    seed: int


class OverlapSpec(Section):
    """An encoder's pre-training data against the cohort; the table comes as a file."""

    version: int = VERSIONS["overlap"]
    domain: Domain
    allow_overlap: bool


class EmbedSpec(Section):
    """A bucket of slides through an encoder."""

    version: int = VERSIONS["embed"]
    bucket: str
    rows: str
    max_failed_tiles: float


Protocol = Literal["sound", "published"]
"""sound: patients grouped, best epoch of the tune part, slides and patients counted. published: as
arXiv 2411.05028 did it, for comparison: folds over slides, last epoch, random bags counted."""


Sites = Literal["ignored", "stratified", "preserved", "leave_one_out"]


class FoldsSpec(Section):
    """Folds of one task; `rows` digests ids, patients, labels, and what else of the manifest
    decides: sites, the fixed split."""

    version: int = VERSIONS["folds"]
    rows: str
    task: Task
    protocol: Protocol = "sound"
    folds: int
    repeats: int
    tune: float
    sites: Sites = "ignored"
    split: bool = False
    seed: int


class SimilarSpec(Section):
    """Near-identical slides of an encoder's features; the cohort's table comes as a file."""

    version: int = VERSIONS["similar"]
    buckets: tuple[str, ...]
    max_shared_tiles: float


class TrainSpec(Section):
    """Some folds of one encoder, head and task; `runs` lists (repeat, fold)."""

    version: int = VERSIONS["train"]
    task: Task
    head: HeadSection
    training: TrainingSection
    protocol: Protocol = "sound"
    runs: tuple[tuple[int, int], ...]
    buckets: tuple[str, ...]
    max_excluded: float
    seed: int


class EvaluateSpec(Section):
    """Figures of one encoder, head and task."""

    version: int = VERSIONS["evaluate"]
    task: Task
    protocol: Protocol = "sound"
    chunks: tuple[str, ...]
    evaluation: EvaluationSection
    seed: int


class CompareSpec(Section):
    """Encoders, and heads, against each other on a task; `domains` is what the images are that
    each encoder was trained on."""

    version: int = VERSIONS["compare"]
    task: Task
    encoders: tuple[str, ...]
    domains: dict[str, Domain]
    heads: tuple[str, ...]
    evaluation: EvaluationSection
    seed: int


class ControlSpec(Section):
    """Controls of one encoder and head on a task; `grid` is the encoder's."""

    version: int = VERSIONS["control"]
    task: Task
    grid: str
    evaluation: EvaluationSection
    seed: int


class HeatmapSpec(Section):
    """Attention pictures of one encoder, head and task; ground truths come as files."""

    version: int = VERSIONS["heatmap"]
    task: Task
    chunks: tuple[str, ...]
    buckets: tuple[str, ...]
    slides: int
    formats: tuple[HeatmapFormat, ...]
    mask_classes: tuple[str, ...] = ()
    annotation_origin: Literal["level0", "bounds"] = "level0"
    seed: int
    synthetic: bool


class AttentionSpec(Section):
    """How far the attention of one encoder and head on a task can be believed; ground truths come
    as files, `mask_classes` are the classes of their regions."""

    version: int = VERSIONS["attention"]
    task: Task
    chunks: tuple[str, ...]
    buckets: tuple[str, ...]
    mask_classes: tuple[str, ...] = ()
    annotation_origin: Literal["level0", "bounds"] = "level0"
    faithfulness_slides: int
    bootstrap: int
    confidence: float
    seed: int


class ReportSpec(Section):
    """The report; `config` is shown in it. `chunks` are of each head; with `split` the manifest's
    fixed split was used."""

    version: int = VERSIONS["report"]
    config: Config
    software: str
    buckets: tuple[str, ...]
    chunks: tuple[str, ...]
    split: bool = False


Spec = TypeVar("Spec", bound=Section)


def dump(spec: Section) -> str:
    """The canonical string of a spec."""
    return canonical_json(spec.model_dump(mode="json", context=KEEP_ORDER))


def load(kind: type[Spec], text: str) -> Spec:
    """Parse a spec.

    Raises:
        UserError: it is not of this kind, or of another version of the code.
    """
    try:
        spec = kind.model_validate_json(text)
    except ValueError as error:
        raise UserError(f"--spec: is not a {kind.__name__}: {error}") from None
    version, current = getattr(spec, "version", None), kind.model_fields.get("version")
    if current is not None and version != current.default:
        raise UserError(
            f"--spec: is of version {version} of this stage, the code is of {current.default}; "
            "run snakemake again."
        )
    return spec
