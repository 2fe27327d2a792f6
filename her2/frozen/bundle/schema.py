"""What `bundle.json` has. `docs/bundles.md` has the same as a table, which a test compares.

A change of the form raises `SCHEMA_VERSION`; a reader refuses any other version, since a field that
it does not know could be one that decides about a prediction.
"""

import operator
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from her2.config import (
    KEEP_ORDER,
    Domain,
    EncoderSection,
    Feature,
    GroupingSection,
    HeadSection,
    Precision,
    Task,
    TilingSection,
    TrainingSection,
)
from her2.config.learning import GroupingName
from her2.config.names import Protocol
from her2.config.validation import Final
from her2.core.section import Count, Mpp, Name, Ordered, Section, Share
from her2.encoders.card import CODE, EncoderCard
from her2.frozen.development import Development
from her2.segmenters import chosen

SCHEMA_VERSION = 1
SCHEMA_NAME = "bundle.json"
README_NAME = "README.md"
ENCODER_NAME = "encoder.safetensors"
MAX_JSON_BYTES = 64 << 20
"""Largest `bundle.json` that is read; that of 10,000 patients has 3 MB."""

FileName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=200)
]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
ShortHash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=2000)]
Bytes = Annotated[int, Field(ge=0, le=64 << 30)]
Many = Annotated[int, Field(ge=0, le=1_000_000_000)]
_FILES = ("pretrained", "checkpoint", "weights", "cache", "path", "file", "url")
"""Parts of names of arguments that a library opens files by, such as timm's `checkpoint_path`."""
Argument = (
    bool
    | Annotated[int, Field(ge=-100_000, le=100_000)]
    | Annotated[float, Field(ge=-100_000, le=100_000)]
    | Annotated[str, StringConstraints(max_length=200)]
)
Rgb = tuple[float, float, float]


class Software(Section):
    """The versions that wrote a bundle, and of the stages that made its results."""

    her2: Line = Field(description="version of her2 that wrote the bundle")
    packages: dict[str, Line] = Field(description="versions of the libraries beside it")
    stages: dict[str, Count] = Field(
        description="version of the stages `tile`, `embed` and `train`; they change with what a "
        "stage computes"
    )


class Grid(Section):
    """The tiles that the encoder was given."""

    mpp: Mpp = Field(description="um/px of the tiles")
    size_px: Annotated[int, Field(ge=16, le=2048)] = Field(description="px per side of the tiles")


class SegmenterFacts(Section):
    """A network that found the tissue or the artefacts. Its weights are not in the bundle."""

    key: Name = Field(description="the key of `options` that names it")
    name: Name = Field(description="its name, as there")
    architecture: Line = Field(description="what its library builds")
    licence: Line = Field(description="licence of the weights")
    weights_sha256: Sha256 = Field(description="digest of names, types, shapes and values")
    digest: Sha256 = Field(
        description="digest of the weights, the network and how it is run; another is refused"
    )


class Tiling(Section):
    """Which tiles a slide has."""

    options: TilingSection = Field(description="every option of `tiling` (docs/config.md)")
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        description="the seed with which `max_tiles` tiles are drawn; null: all tiles are kept"
    )
    max_failed_tiles: Share = Field(
        description="slides with a larger share of unreadable tiles are not predicted"
    )
    tissue: dict[str, Many] = Field(
        description="slides of the development by what found their tissue: `detected`, or a mask"
    )
    annotated: Many = Field(
        description="slides of the development whose tiles come from drawn regions only"
    )
    segmenters: tuple[SegmenterFacts, ...] = Field(
        (),
        exclude_if=operator.not_,  # so that bundles without are as before
        description="the networks of `options`, that of tissue first; absent without any",
    )

    @model_validator(mode="after")
    def _segmenters_are_known(self) -> "Tiling":
        asked = [(one.key, one.name) for one in chosen(self.options)]
        if (named := [(one.key, one.name) for one in self.segmenters]) != asked:
            raise ValueError(
                f"options: name the segmenters {_listed(asked)}, and the weights are those of "
                f"{_listed(named)}"
            )
        return self


def _listed(segmenters: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{key} {name}" for key, name in segmenters) or "none"


class Encoder(Section):
    """The frozen encoder. What is not stated here is not part of a feature."""

    name: Name = Field(description="its name in the development's config")
    source: Line = Field(description="source of its weights, as in the config")
    model: Line = Field(description="row of the catalogue, or `library/architecture`")
    domain: Domain = Field(description="its training images")
    library: Name = Field(description="library that builds the architecture")
    architecture: Name = Field(description="name in that library")
    arguments: dict[Name, Argument] = Field(
        description="arguments of the constructor; none that names weights or files"
    )
    feature: Feature = Field(description="part of the output that is used")
    dimension: Annotated[int, Field(ge=1, le=1_000_000)] = Field(description="features per tile")
    size: Annotated[int, Field(ge=16, le=2048)] = Field(description="px per side of its input")
    mpp: Mpp = Field(description="um/px of its input")
    mean: Rgb = Field(description="mean of RGB in [0, 1], subtracted")
    std: Rgb = Field(description="standard deviation of RGB in [0, 1], divided by")
    precision: Precision = Field(description="precision in which it runs")
    storage: Literal["float16", "float32"] = Field(description="type of the stored features")
    ran_in: tuple[Line, ...] = Field(
        description="precisions in which the development's features were computed"
    )
    licence: Line = Field(description='licence of the weights; "" where none is stated')
    weights_sha256: Sha256 = Field(description="digest of names, types, shapes and values")
    digest: Sha256 = Field(description="digest of the encoder's function; other bits are refused")
    provenance: dict[str, Any] = Field(
        description="where the weights come from, without paths, names of files or cases"
    )
    revision: Line | None = Field(description="revision of the hub's repository, if known")
    included: bool = Field(description="whether `encoder.safetensors` is in the bundle")
    why: Line = Field(description="why its weights are in the bundle, or are not")

    def card(self) -> EncoderCard:
        """Return the card that the encoder's folder has."""
        names = EncoderCard.__dataclass_fields__
        return EncoderCard(**{name: getattr(self, name) for name in names})

    def section(self, checkpoint: str | None = None) -> EncoderSection:
        """Return the config section that makes the encoder again.

        `checkpoint` is a file of its weights. Without one the weights are fetched.
        """
        values: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("model", "mpp", "size", "feature", "precision", "storage", "domain")
        }
        if self.source == "catalogue":
            return EncoderSection(source="catalogue", checkpoint=checkpoint, **values)
        if checkpoint is not None:
            values |= {"source": "checkpoint", "checkpoint": checkpoint}
        else:
            values |= {"source": self.source}
        return EncoderSection(mean=self.mean, std=self.std, **values)

    @model_validator(mode="after")
    def _names_no_files(self) -> "Encoder":
        """Refuse arguments by which a library would read a file or fetch one."""
        if found := [name for name in self.arguments if any(word in name for word in _FILES)]:
            raise ValueError(f"arguments: {', '.join(found)} may not be set")
        if self.library == CODE:
            raise ValueError("library 'python': a bundle may not name code")
        return self

    @model_validator(mode="after")
    def _states_its_own_digest(self) -> "Encoder":
        if (own := self.card().digest) != self.digest:
            raise ValueError(f"digest {self.digest} is not that of this encoder, {own}")
        return self


class Fold(Section):
    """A trained model, and what corrects its probabilities."""

    run: Name = Field(description="its name in the results, e.g. `r0f3`")
    weights: FileName = Field(description="file of its weights")
    key: Sha256 = Field(description="digest of all that determined it")
    head: HeadSection = Field(description="the head and its options, as a search chose them")
    loss: Literal["cross_entropy", "ordinal"] = Field(description="loss that it was trained with")
    training: TrainingSection = Field(description="options of its training")
    protocol: Protocol = Field(description="protocol of its training")
    dimension: Annotated[int, Field(ge=1, le=1_000_000)] = Field(description="features per tile")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(description="seed of its training")
    slides: dict[str, Many] = Field(description="number of slides in each role")
    best_epoch: Many = Field(description="epoch that was kept")
    epochs: Many = Field(description="epochs trained")
    tune_loss: float | None = Field(description="loss on its tuning set")
    share: tuple[Share, ...] = Field(description="share of each class in its training set")
    seen: tuple[Share, ...] = Field(description="share of each class as its training saw it")
    temperature: Annotated[float, Field(gt=0, le=1e6)] = Field(
        description="temperature fitted on its tuning set; 1 without one"
    )


class DevelopmentThreshold(Section):
    """A threshold on the calibrated score of a grouping, from the tuning sets."""

    level: Literal["patient", "slide"] = Field(description="patient or slide")
    grouping: Line = Field(description="name of the grouping")
    fixed: Literal["specificity", "sensitivity"] = Field(description="what was asked for")
    asked: Share = Field(description="the least of it on the tuning sets")
    value: float = Field(description="mean of the folds' thresholds; at or above it is positive")
    lowest: float = Field(description="lowest of the folds' thresholds")
    highest: float = Field(description="highest of the folds' thresholds")


class Figure(Section):
    """A figure of the out-of-fold predictions, from a table of `her2 evaluate`."""

    table: Literal["metrics", "binary", "calibration", "operating"] = Field(
        description="the table it is from"
    )
    level: Literal["patient", "slide"] = Field(description="patient or slide")
    metric: Line = Field(description="its metric")
    of: Line = Field(description="class or grouping it is for; macro and the like for several")
    at: Line = Field(description="calibration: the state; operating: what was fixed; else empty")
    value: float | None = Field(description="the figure; null where it is not defined")
    low: float | None = Field(description="lower end of its interval")
    high: float | None = Field(description="upper end of its interval")
    n: Many | None = Field(description="patients or slides it rests on")
    note: Line = Field(description="what is to be said of it")


class Hashes(Section):
    """Salted hashes of what the model was trained on (`her2.frozen.bundle.hashes`)."""

    salt: Sha256 = Field(description="salt: the digest of the trained models and the encoder")
    n: Annotated[int, Field(ge=2, le=1 << 17)] = Field(description="cost of scrypt: N")
    r: Annotated[int, Field(ge=1, le=16)] = Field(description="cost of scrypt: r")
    p: Annotated[int, Field(ge=1, le=4)] = Field(description="cost of scrypt: p")
    patients: tuple[ShortHash, ...] = Field(
        description="of the patients that trained or tuned a model, sorted"
    )
    slides: tuple[ShortHash, ...] = Field(description="of the fingerprints of their slides, sorted")
    pretraining_cases: tuple[ShortHash, ...] = Field(
        description="of the cases that the encoder was pre-trained on here, sorted"
    )
    pretraining_slides: tuple[ShortHash, ...] = Field(
        description="of the fingerprints of slides that those patches were cut from, sorted"
    )


class FileFacts(Section):
    """A file of the bundle."""

    sha256: Sha256 = Field(description="SHA-256 of its bytes")
    bytes: Bytes = Field(description="its size")


class Body(Section):
    """All that a bundle says, without its files and its digest."""

    schema_version: Literal[1] = Field(description="version of this form")
    software: Software = Field(description="what made it")
    synthetic: bool = Field(description="true: the slides were drawn by a program")
    licence: Line = Field(description="licence of the heads, as who made the bundle stated it")
    task_name: Name = Field(description="name of the task")
    encoder_name: Name = Field(description="name of the encoder")
    head_name: Name = Field(description="name of the head")
    task: Task = Field(description="label column, and the classes in order")
    groupings: Annotated[dict[GroupingName, GroupingSection], *Ordered] = Field(
        description="name -> negative and positive classes, of the groupings that fit the task"
    )
    grid: Grid = Field(description="the tiles")
    tiling: Tiling = Field(description="which tiles a slide has")
    encoder: Encoder = Field(description="the encoder")
    final: Final = Field(description="folds: the models of all folds; refit: one of all patients")
    combined_by: Literal["mean of calibrated probabilities"] = Field(
        description="how the models become one prediction"
    )
    folds: tuple[Fold, ...] = Field(min_length=1, max_length=10_000, description="the models")
    thresholds: tuple[DevelopmentThreshold, ...] = Field(description="development thresholds")
    development: Development = Field(description="what the model was developed on")
    figures: tuple[Figure, ...] = Field(description="figures of the out-of-fold predictions")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(
        description="confidence level of the intervals"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(description="seed of the development")
    hashes: Hashes = Field(description="salted hashes of the training data")

    @model_validator(mode="after")
    def _fits_together(self) -> "Body":
        classes = len(self.task.classes)
        for fold in self.folds:
            if not len(fold.share) == len(fold.seen) == classes:
                raise ValueError(f"{fold.run}: `share` and `seen` need one value for each class")
            if fold.dimension != self.encoder.dimension:
                raise ValueError(f"{fold.run}: expects {fold.dimension} features per tile")
            if any(abs(sum(shares) - 1) > 1e-6 for shares in (fold.share, fold.seen)):
                raise ValueError(f"{fold.run}: `share` and `seen` need a sum of 1 each")
        for name in ("run", "weights"):
            if len({getattr(fold, name) for fold in self.folds}) < len(self.folds):
                raise ValueError(f"folds: `{name}` is there twice")
        return self

    @model_validator(mode="after")
    def _decides_on_its_own_classes(self) -> "Body":
        for name, grouping in self.groupings.items():
            if unknown := sorted(set(grouping.classes) - set(self.task.classes)):
                raise ValueError(f"groupings: {name}: the task has no class {', '.join(unknown)}")
        places = [(one.level, one.grouping, one.fixed) for one in self.thresholds]
        if len(set(places)) < len(places):
            raise ValueError("thresholds: one is there twice")
        if unknown := sorted({one.grouping for one in self.thresholds} - self.groupings.keys()):
            raise ValueError(f"thresholds: there is no grouping {', '.join(unknown)}")
        return self

    @model_validator(mode="after")
    def _compares_embeddings_of_its_encoder(self) -> "Body":
        known = self.development.embeddings
        if known is not None:
            lengths = {len(one) for one in (known.mean, known.scale, *known.components)}
            if lengths != {self.encoder.dimension} or len(known.variances) != len(known.components):
                raise ValueError(
                    "development.embeddings: is not of the encoder's "
                    f"{self.encoder.dimension} features"
                )
        return self

    def values(self) -> dict[str, Any]:
        """Return it as JSON values; classes keep their order."""
        found: dict[str, Any] = self.model_dump(mode="json", context=KEEP_ORDER)
        return found


class Contents(Body):
    """What a bundle says, its files and its digest."""

    files: dict[FileName, FileFacts] = Field(description="every other file of the bundle")
    digest: Sha256 = Field(
        description="SHA-256 of the canonical JSON of all else, and so of all files"
    )

    @model_validator(mode="after")
    def _lists_what_it_names(self) -> "Contents":
        wanted = {README_NAME, *(fold.weights for fold in self.folds)}
        wanted |= {ENCODER_NAME} if self.encoder.included else set()
        if missing := sorted(wanted - self.files.keys()):
            raise ValueError(f"files: lacks {', '.join(missing)}")
        if others := sorted(self.files.keys() - wanted):
            raise ValueError(f"files: {', '.join(others)} is no part of a bundle")
        return self
