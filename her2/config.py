"""Before every stage: the whole of `config.yaml` as typed, described, checked values.

The Snakefile and the command line read a config through `load_config` or `parse_config`, so that
a wrong key is refused in the same words everywhere. `her2 config schema` prints the JSON schema
of these models for editors.
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    WrapSerializer,
    model_validator,
)

from her2.encoders import catalogue
from her2.errors import UserError, problem_list

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Ids and names become parts of paths: no separator, no space, no leading dot."""

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=128)]
ClassName = Name | Annotated[str, StringConstraints(pattern=r"^[0-9]\+$")]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Mpp = Annotated[float, Field(ge=0.05, le=20)]
"""Micrometres per pixel; from beyond the finest scanners to a thumbnail."""


def _from_pairs(value: Any) -> Any:
    pairs = isinstance(value, list | tuple) and all(
        isinstance(item, list | tuple) and len(item) == 2 for item in value
    )
    return dict(value) if pairs else value


def _to_pairs(value: Any, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
    plain = handler(value)
    return list(plain.items()) if info.context == KEEP_ORDER else plain


KEEP_ORDER = "keep order"
"""Context of a JSON dump in which mappings whose order means something become lists of pairs:
canonical JSON sorts keys, and would make of low, mid, high another scale."""

Ordered = (BeforeValidator(_from_pairs), WrapSerializer(_to_pairs, when_used="json"))
"""Marks such a mapping: `Annotated[dict[...], *Ordered]`."""


class Section(BaseModel):
    """A part of the config: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CohortSection(Section):
    """Which slides, and where."""

    slides: Path = Field(description="the manifest: .csv or .parquet, one row a slide")
    root: Path | None = Field(
        None, description="where relative slide paths start; default: the manifest's folder"
    )
    masks: Path | None = Field(
        None,
        description="folder of {slide_id}.png: ground truth drawn beside the attention (white = "
        "positive); never used for training",
    )
    synthetic: bool = Field(
        False, description="draw the demo slides of the manifest; every figure says synthetic"
    )
    slides_per_bucket: Count = Field(64, description="slides of one job (about)")
    max_excluded: Share = Field(
        0.2, description="the run stops when a larger share of the slides cannot be used"
    )


class Task(Section):
    """A label column mapped to ordered classes."""

    label: Name = Field(description="column of the manifest")
    classes: Annotated[dict[ClassName, list[str]], *Ordered] = Field(
        min_length=2, description="class name -> values of the label column, in order"
    )
    ordinal: bool = Field(False, description="the classes are ordered (kappa is then meaningful)")

    @model_validator(mode="after")
    def _each_value_has_one_class(self) -> "Task":
        seen: dict[str, str] = {}
        for name, values in self.classes.items():
            if not values:
                raise ValueError(f"class {name!r} lists no label value")
            for value in values:
                if value in seen:
                    raise ValueError(f"label value {value!r} is in {seen[value]!r} and {name!r}")
                seen[value] = name
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the config's order."""
        return tuple(self.classes)

    def class_index(self, value: str) -> int | None:
        """The class (0-based) of a label value, None for a value the task does not name."""
        for index, values in enumerate(self.classes.values()):
            if value in values:
                return index
        return None


class TilingSection(Section):
    """What becomes a tile."""

    min_tissue: Share = Field(0.5, description="smallest share of tissue in a tile")
    overlap: Annotated[float, Field(ge=0, lt=0.9)] = Field(
        0.0, description="share of a tile's side that its neighbour repeats"
    )
    min_tiles: Count = Field(4, description="a slide with fewer tiles is excluded")
    max_enlargement: Annotated[float, Field(ge=1)] = Field(
        1.1, description="a slide coarser than the target um/px by more than this is excluded"
    )
    thumbnail_mpp: Mpp = Field(8.0, description="um/px of the image the tissue mask is made on")
    min_tissue_um: Positive = Field(
        100.0, description="tissue pieces and holes narrower than this (um) are ignored"
    )


Source = Literal["timm", "torchvision", "catalogue", "random", "checkpoint"]
Feature = Literal["pooled", "class_token", "class_and_mean", "flattened"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


class EncoderSection(Section):
    """One frozen patch encoder: where its weights come from and what patch it is given."""

    source: Source = Field(
        description="timm or torchvision: published weights; catalogue: a row of `her2 encoders`; "
        "random: seeded initialisation; checkpoint: a local file"
    )
    model: str = Field(
        pattern=r"^((timm|torchvision)/)?[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="architecture: timm/NAME or torchvision/NAME; catalogue: the row's name",
    )
    mpp: Mpp = Field(description="um/px of the patches")
    size: Annotated[int, Field(ge=16, le=2048)] = Field(description="px a side of the patches")
    checkpoint: Path | None = Field(
        None,
        description="source checkpoint: .safetensors, or .pt/.pth/.bin of tensors only; source "
        "catalogue: the row's weights file, downloaded before",
    )
    feature: Feature = Field("pooled", description="what is kept of the model's output")
    precision: Precision = Field(
        "auto", description="auto: bfloat16 where the hardware has it, else float32 (CPU)"
    )
    storage: Literal["float16", "float32"] = Field(
        "float16", description="type of the stored features; float32 for values beyond 65,504"
    )

    @model_validator(mode="before")
    @classmethod
    def _catalogue_row(cls, values: Any) -> Any:
        """A row gives size, um/px, feature, precision and storage where the config does not."""
        if not isinstance(values, Mapping) or values.get("source") != "catalogue":
            return values
        try:
            row = catalogue.row(str(values.get("model")))
        except UserError as error:
            raise ValueError(str(error)) from None
        return {**row.defaults(), **values}

    @model_validator(mode="after")
    def _library_and_checkpoint(self) -> "EncoderSection":
        if self.source == "catalogue":
            if self.checkpoint is not None and catalogue.row(self.model).hub is None:
                raise ValueError(f"{self.model} comes from its library and takes no `checkpoint`")
            return self
        if (self.source == "checkpoint") != (self.checkpoint is not None):
            raise ValueError(
                "`checkpoint: PATH` belongs to `source: checkpoint` or `source: catalogue`"
            )
        if "/" not in self.model and self.source in ("random", "checkpoint"):
            raise ValueError(f"say which library: timm/{self.model} or torchvision/{self.model}")
        if self.source in ("timm", "torchvision") and self.library != self.source:
            raise ValueError(f"source {self.source} cannot load {self.model}")
        return self

    @property
    def library(self) -> str:
        """`timm` or `torchvision`."""
        if self.source == "catalogue":
            return catalogue.row(self.model).library
        return self.model.split("/")[0] if "/" in self.model else self.source

    @property
    def architecture(self) -> str:
        """The model's name within its library."""
        if self.source == "catalogue":
            return catalogue.row(self.model).architecture
        return self.model.split("/")[-1]

    @property
    def grid(self) -> str:
        """The tile grid it reads, e.g. `224px-0.5mpp`: encoders that agree share their tiles."""
        return f"{self.size}px-{self.mpp:g}mpp"


class EmbeddingSection(Section):
    """How stage 1 runs; the features depend on `max_failed_tiles` alone."""

    batch_size: Count = Field(64, description="patches a batch; changes no feature")
    max_failed_tiles: Share = Field(
        0.05, description="a slide with a larger share of unreadable tiles is excluded"
    )


class HeadSection(Section):
    """A multiple-instance head and its options."""

    head: Literal["abmil"] = Field("abmil", description="attention-based MIL (Ilse 2018)")
    attention: Count = Field(128, description="width of the attention's hidden layer")
    gated: bool = Field(True, description="gated attention, equation 9 of the paper; else 8")
    hidden: Annotated[int, Field(ge=0)] = Field(
        64, description="width of a projection (linear + ReLU) before the attention; 0: none"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.25, description="on the input features")


class TrainingSection(Section):
    """How a fold is trained."""

    bag_size: Count = Field(128, description="tiles drawn from a slide at a training step")
    bags_per_batch: Count = Field(8, description="slides a step")
    epochs: Count = Field(60, description="at most; an epoch passes every train slide once")
    patience: Count = Field(15, description="epochs without a better tune loss before stopping")
    learning_rate: Positive = Field(1e-3, description="of AdamW")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-3, description="of AdamW")
    balance: Literal["sampling", "none"] = Field(
        "sampling", description="sampling: train slides are drawn so that classes are even"
    )


class FoldsSection(Section):
    """Cross-validation."""

    number: Annotated[int, Field(ge=2)] = Field(5, description="test parts a repeat")
    repeats: Count = Field(1, description="whole cross-validations, each with its own seed")
    tune: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.2, description="share of the non-test patients that picks the epoch"
    )
    per_job: Count = Field(5, description="folds one job trains")


class EvaluationSection(Section):
    """Intervals."""

    bootstrap: Annotated[int, Field(ge=100)] = Field(2000, description="resamples of patients")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(0.95, description="of the intervals")


class HeatmapSection(Section):
    """Attention pictures."""

    slides: Annotated[int, Field(ge=0)] = Field(
        8, description="held-out slides drawn for each task, encoder and head, spread over classes"
    )


class ReportSection(Section):
    """The report."""

    title: str = Field(
        "HER2 score from H&E slides", min_length=1, max_length=200, description="its heading"
    )


def _head_named_by_key(heads: Any) -> Any:
    """`abmil: {gated: true}` means `abmil: {head: abmil, gated: true}`."""
    if not isinstance(heads, Mapping):
        return heads
    known = HeadSection.model_fields["head"].annotation.__args__  # type: ignore[union-attr]
    return {
        name: {"head": name, **(options or {})}
        if name in known and isinstance(options, Mapping | None)
        else options
        for name, options in heads.items()
    }


class Config(Section):
    """Everything a run depends on, beside the slides themselves."""

    results: Path = Field(Path("results"), description="folder of everything that is made")
    cache: Path = Field(
        Path("cache"), description="content-addressed cache; HER2_CACHE in the environment wins"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(2411, description="of all that is random")
    cohort: CohortSection
    tasks: Annotated[dict[Name, Task], *Ordered] = Field(min_length=1)
    tiling: TilingSection = TilingSection()
    encoders: Annotated[dict[Name, EncoderSection], *Ordered] = Field(min_length=1)
    embedding: EmbeddingSection = EmbeddingSection()
    heads: Annotated[dict[Name, HeadSection], BeforeValidator(_head_named_by_key), *Ordered] = (
        Field(min_length=1)
    )
    training: TrainingSection = TrainingSection()
    folds: FoldsSection = FoldsSection()
    evaluation: EvaluationSection = EvaluationSection()
    heatmaps: HeatmapSection = HeatmapSection()
    report: ReportSection = ReportSection()

    @property
    def grids(self) -> dict[str, tuple[float, int]]:
        """Grid name -> (um/px, px a side), one for each that an encoder asks for."""
        return {e.grid: (e.mpp, e.size) for e in self.encoders.values()}


def parse_config(values: Mapping[str, Any], *, source: str = "config") -> Config:
    """Check a config.

    Args:
        values: what YAML gave.
        source: the name that errors begin with.

    Raises:
        UserError: with every problem: the key, its value and what would be legal.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        # The branches of a union say the same thing twice.
        problems = list(dict.fromkeys(_problem(dict(item)) for item in error.errors()))
        raise problem_list(f"{source}: {len(problems)} problem(s)", problems) from None


def load_config(path: Path) -> Config:
    """Read and check a YAML file.

    Raises:
        UserError: it cannot be read, is not YAML, or does not check.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no settings; begin from the config.yaml of the project.")
    return parse_config(values, source=str(path))


def _problem(item: dict[str, Any]) -> str:
    """One pydantic error as `key: what is wrong; what would be legal`."""
    location = [part for part in item["loc"] if part not in ("[key]", "constrained-str")]
    key = ".".join(str(part) for part in location)
    value = item["input"]
    match item["type"]:
        case "extra_forbidden":
            legal = _legal_keys([str(part) for part in location[:-1]])
            near = difflib.get_close_matches(str(location[-1]), legal, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            return f"{key}: unknown key; {hint}legal here: {', '.join(legal)}"
        case "missing":
            return f"{key}: missing; it has no default"
        case "string_pattern_mismatch":
            pattern = item["ctx"]["pattern"]
            if pattern == NAME_PATTERN:
                return (
                    f"{key}: {value!r} is not a legal name (letters, digits, '.', '_', '-'; the "
                    "first a letter or digit)"
                )
            return f"{key}: {value!r} does not match {pattern}"
        case "string_type" if isinstance(value, str | int | float | bool):
            return f"{key}: {value!r} is not text to YAML; put it in quotes"
        case "value_error":
            return f"{key}: {item['ctx']['error']}"
        case _:
            shown = value if isinstance(value, str | int | float | bool) else type(value).__name__
            return f"{key}: {shown!r}: {_lower_first(item['msg'])}"


def _legal_keys(parents: list[str]) -> list[str]:
    """The keys that the section at `parents` knows (names of a dict section are skipped)."""
    model: type[BaseModel] = Config
    for part in parents:
        field = model.model_fields.get(part)
        if field is None:
            continue
        found = re.findall(r"(\w+(?:Section)|Task)\b", str(field.annotation))
        model = globals()[found[-1]] if found else model
    return sorted(model.model_fields)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
