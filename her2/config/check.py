"""Config: reading and checking the whole file, with errors that say how to fix them."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from her2.config.data import CohortSection, PatchesSection, Task, TilingSection
from her2.config.encoders import EmbeddingSection, EncoderSection, PretrainingSection
from her2.config.heads import HEADS, HeadSection
from her2.config.learning import (
    EvaluationSection,
    FoldsSection,
    HeatmapSection,
    ReportSection,
    SeededTrainingSection,
    Select,
    her2_groupings,
    own_grouping,
)
from her2.core.errors import UserError, problem_list
from her2.core.section import NAME_PATTERN, Name, Ordered, Section
from her2.heads import SearchSection
from her2.metrics import selecting_metrics


def _head_named_by_key(heads: Any) -> Any:
    """Read `abmil: {gated: true}` as `abmil: {head: abmil, gated: true}`."""
    if not isinstance(heads, Mapping):
        return heads
    return {
        name: {"head": name, **(options or {})}
        if name in HEADS and isinstance(options, Mapping | None)
        else options
        for name, options in heads.items()
    }


class Config(Section):
    """Everything that a run depends on besides the slides."""

    results: Path = Field(Path("results"), description="folder for all results")
    cache: Path = Field(
        Path("cache"),
        description="content-addressed cache; the environment variable HER2_CACHE overrides it",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        2411, description="seed of everything random"
    )
    cohort: CohortSection
    tasks: Annotated[dict[Name, Task], *Ordered] = Field(min_length=1)
    tiling: TilingSection = TilingSection()
    patches: Annotated[dict[Name, PatchesSection], *Ordered] = Field(
        default_factory=dict,
        description="labelled patch sets, for encoders with `source: pretrain`",
    )
    pretraining: PretrainingSection = PretrainingSection()
    encoders: Annotated[dict[Name, EncoderSection], *Ordered] = Field(min_length=1)
    embedding: EmbeddingSection = EmbeddingSection()
    heads: Annotated[dict[Name, HeadSection], BeforeValidator(_head_named_by_key), *Ordered] = (
        Field(min_length=1, description="MIL heads, one section for each kind")
    )
    training: SeededTrainingSection = SeededTrainingSection()
    folds: FoldsSection = FoldsSection()
    published_protocol: bool = Field(
        False,
        description="in addition to the sound protocol, train and evaluate like arXiv 2411.05028: "
        "folds over slides, last epoch, AUC over random bags; reported separately and labelled",
    )
    evaluation: EvaluationSection = EvaluationSection()
    heatmaps: HeatmapSection = HeatmapSection()
    report: ReportSection = ReportSection()

    @model_validator(mode="after")
    def _names_that_exist(self) -> "Config":
        for section in ("tasks", "heads"):
            for name in getattr(self, section):
                if name.endswith(".as-published"):
                    raise ValueError(
                        f"{section}.{name}: the ending .as-published is reserved; choose another "
                        "name"
                    )
        for name, encoder in self.encoders.items():
            if encoder.data is not None and encoder.data not in self.patches:
                known = ", ".join(self.patches) or "(none)"
                raise ValueError(
                    f"encoders.{name}.data: there is no patch set {encoder.data!r}; `patches` "
                    f"defines {known}"
                )
            self._check_init(name, encoder)
        return self

    def _check_init(self, name: str, encoder: EncoderSection) -> None:
        """Check that `init` leads to published, random or loaded weights of one architecture."""
        seen = [name]
        while encoder.init not in (None, "random", "published"):
            other = self.encoders.get(encoder.init or "")
            if other is None or encoder.init in seen:
                raise ValueError(
                    f"encoders.{seen[-1]}.init: {encoder.init!r} is neither random, published nor "
                    "an encoder that does not itself start from this one"
                )
            if (other.library, other.architecture) != (encoder.library, encoder.architecture):
                raise ValueError(
                    f"encoders.{seen[-1]}.init: {encoder.init!r} is a {other.model}, not a "
                    f"{encoder.model}; name an encoder of the same architecture"
                )
            seen.append(encoder.init or "")
            encoder = other

    @model_validator(mode="after")
    def _ordinal_loss_has_ordered_classes(self) -> "Config":
        plain = [name for name, task in self.tasks.items() if not task.ordinal]
        if self.training.loss == "ordinal" and plain:
            raise ValueError(
                f"training.loss ordinal needs ordered classes; set `ordinal: true` in the task "
                f"{plain[0]!r} or use cross_entropy"
            )
        select = self.training.select
        ordinal = {name for name, (metric, _) in selecting_metrics().items() if metric.ordinal}
        if select in ordinal and plain:
            *others, last = (name for name in get_args(Select) if name not in ordinal)
            raise ValueError(
                f"training.select {select} needs ordered classes; set `ordinal: true` in the "
                f"task {plain[0]!r} or select by {', '.join(others)} or {last}"
            )
        return self

    @model_validator(mode="after")
    def _groupings_have_a_task(self) -> "Config":
        defaults = her2_groupings()
        for name, sides in self.evaluation.groupings.items():
            if sides == defaults.get(name):
                continue  # the defaults are skipped in cohorts with other classes
            if not any(set(sides.classes) <= set(t.class_names) for t in self.tasks.values()):
                known = "; ".join(
                    f"{task} has {', '.join(t.class_names)}" for task, t in self.tasks.items()
                )
                raise ValueError(
                    f"evaluation.groupings.{name}: no task has all the classes "
                    f"{', '.join(sides.classes)} ({known})"
                )
        return self

    @model_validator(mode="after")
    def _prevalences_have_a_grouping(self) -> "Config":
        known = {own_grouping(t.class_names) for t in self.tasks.values() if len(t.classes) == 2}
        known |= {
            name
            for name, sides in self.evaluation.groupings.items()
            if any(set(sides.classes) <= set(t.class_names) for t in self.tasks.values())
        }
        for name in self.evaluation.prevalence:
            if name not in known:
                raise ValueError(
                    f"evaluation.prevalence.{name}: no task has this grouping; the groupings are "
                    f"{', '.join(sorted(known)) or '(none)'}"
                )
        return self

    @property
    def cache_folder(self) -> Path:
        """Return HER2_CACHE if set, so that a lab can share one cache, else `cache`."""
        return Path(os.environ.get("HER2_CACHE", self.cache))

    @property
    def grids(self) -> dict[str, tuple[float, int]]:
        """Return grid name -> (um/px, px per side), for all grids that the encoders use."""
        return {e.grid: (e.mpp, e.size) for e in self.encoders.values()}


def parse_config(values: Mapping[str, Any], *, source: str = "config") -> Config:
    """Check a config.

    Args:
        values: the parsed YAML.
        source: name at the start of errors.

    Raises:
        UserError: the config has problems; the message lists them all, with the legal values.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        # The branches of a union repeat the same problem.
        problems = list(dict.fromkeys(_problem(dict(item)) for item in error.errors()))
        raise problem_list(f"{source}: {len(problems)} problem(s)", problems) from None


def load_config(path: Path) -> Config:
    """Read and check a YAML file.

    Raises:
        UserError: the file cannot be read, is not YAML, or is not a valid config.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}). Check the path of the config."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: has no settings. Start from the project's config.yaml.")
    return parse_config(values, source=str(path))


def _problem(item: dict[str, Any]) -> str:
    """Describe a pydantic error as `key: problem; what is legal`."""
    location = [part for part in item["loc"] if part not in ("[key]", "constrained-str")]
    head = location.pop(2) if location[:1] == ["heads"] and len(location) > 2 else None
    key = ".".join(str(part) for part in location)
    value = item["input"]
    match item["type"]:
        case "extra_forbidden":
            legal = (
                sorted(SearchSection.model_fields)
                if head and "search" in location[:-1]
                else sorted(HEADS[str(head)].model_fields)
                if head
                else _legal_keys([str(part) for part in location[:-1]])
            )
            near = difflib.get_close_matches(str(location[-1]), legal, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            return f"{key}: unknown key; {hint}the legal keys are {', '.join(legal)}"
        case "union_tag_invalid" | "union_tag_not_found":
            named = value.get("head") if isinstance(value, Mapping) else value
            near = difflib.get_close_matches(str(named or location[-1]), HEADS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            return f"{key}: unknown or missing head; {hint}set `head:` to one of {', '.join(HEADS)}"
        case "missing":
            return f"{key}: missing, and it has no default"
        case "string_pattern_mismatch":
            pattern = item["ctx"]["pattern"]
            if pattern == NAME_PATTERN:
                return (
                    f"{key}: {value!r} is not a legal name; use letters, digits, '.', '_' and '-', "
                    "beginning with a letter or digit"
                )
            return f"{key}: {value!r} does not match {pattern}"
        case "string_type" if isinstance(value, str | int | float | bool):
            return f"{key}: YAML does not read {value!r} as text; put it in quotes"
        case "value_error":
            return f"{key}: {item['ctx']['error']}" if key else str(item["ctx"]["error"])
        case _:
            shown = value if isinstance(value, str | int | float | bool) else type(value).__name__
            return f"{key}: {shown!r}: {_lower_first(item['msg'])}"


def _legal_keys(parents: list[str]) -> list[str]:
    """Return the legal keys of the section at `parents` (names in a mapping are skipped)."""
    model: type[Section] = Config
    for part in parents:
        field = model.model_fields.get(part)
        if field is None:
            continue
        found = _sections_in(field.annotation)
        model = found[-1] if found else model
    return sorted(model.model_fields)


def _sections_in(annotation: Any) -> list[type[Section]]:
    """Return the sections that a field of this type may contain."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
