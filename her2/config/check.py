"""Config: reading and checking the whole file, with errors that say how to fix them."""

import operator
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from her2.config.data import CohortSection, PatchesSection, Task, TilingSection
from her2.config.encoders import EmbeddingSection, EncoderSection, PretrainingSection
from her2.config.given import AnyEncoder, GivenSection, name_given
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
from her2.config.problems import Problems
from her2.config.reserved import name_problems
from her2.config.validation import ExternalTaskSection, ValidationSection
from her2.config.wording import problems
from her2.core.errors import UserError, problem_list
from her2.core.paths import BY_USER, UserPath, user_path
from her2.core.section import Name, Ordered, Section, Seed
from her2.core.settings import read_config
from her2.metrics import selecting_metrics

MAX_RUNS = 20_000
"""Models of a head, encoder and task. Each is named when a workflow is parsed, in every job."""


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

    results: UserPath = Field(Path("results"), description="folder for all results")
    cache: UserPath = Field(
        Path("cache"),
        description="content-addressed cache; the environment variable HER2_CACHE overrides it",
    )
    seed: Seed = Field(2411, description="seed of everything random")
    cohort: CohortSection
    tasks: Annotated[dict[Name, Task], *Ordered] = Field(min_length=1)
    tiling: TilingSection = TilingSection()
    patches: Annotated[dict[Name, PatchesSection], *Ordered] = Field(
        default_factory=dict,
        description="labelled patch sets, for encoders with `source: pretrain`",
    )
    pretraining: PretrainingSection = PretrainingSection()
    encoders: Annotated[dict[Name, AnyEncoder], *Ordered] = Field(min_length=1)
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
    validation: Annotated[dict[Name, ValidationSection], *Ordered] = Field(
        default_factory=dict,
        exclude_if=operator.not_,
        description="name -> an external cohort, which the trained models predict and do not learn "
        "from (docs/validation.md)",
    )

    @model_validator(mode="after")
    def _names_that_exist(self) -> "Config":
        sections = ("tasks", "encoders", "heads", "patches", "validation")
        if found := name_problems({section: getattr(self, section) for section in sections}):
            raise Problems(found)
        for name, encoder in self.encoders.items():
            if encoder.data is not None and encoder.data not in self.patches:
                known = ", ".join(self.patches) or "(none)"
                raise ValueError(
                    f"encoders.{name}.data: there is no patch set {encoder.data!r}; `patches` "
                    f"defines {known}"
                )
            if isinstance(encoder, EncoderSection):
                self._check_init(name, encoder)
        name_given(self.encoders)
        return self

    def _check_init(self, name: str, encoder: EncoderSection) -> None:
        """Check that `init` leads to published, random or loaded weights of one architecture."""
        seen = [name]
        while encoder.init not in (None, "random", "published"):
            other = self.encoders.get(encoder.init or "")
            if not isinstance(other, EncoderSection) or encoder.init in seen:
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
    def _external_cohorts_have_tasks(self) -> "Config":
        found = []
        for name, cohort in self.validation.items():
            if name in self.tasks:
                found.append((f"validation.{name}", "is also the name of a task; choose another"))
            for own, section in cohort.tasks.items():
                task = self.tasks.get(section.of or own)
                key = f"validation.{name}.tasks.{own}"
                if task is None:
                    known = ", ".join(self.tasks)
                    word = "of" if section.of else "task"
                    found.append((key, f"there is no {word} {section.of or own!r}; `tasks` defines "
                                  f"{known}. Say with `of` whose models are meant"))  # fmt: skip
                    continue
                try:
                    section.truth(task)
                except ValueError as problem:
                    found.append((key, str(problem)))
        if found:
            raise Problems(found)
        return self

    @model_validator(mode="after")
    def _results_and_cache_are_two_folders(self) -> "Config":
        if self.results.absolute() == self.cache_folder.absolute():
            raise Problems([("cache", f"{str(self.results)!r} is also `results`; name another")])
        return self

    @model_validator(mode="after")
    def _runs_can_be_counted(self) -> "Config":
        runs = self.folds.number * self.folds.repeats * self.training.seeds
        if runs > MAX_RUNS:
            raise Problems(
                [
                    (
                        "folds.repeats",
                        f"{self.folds.number} folds x {self.folds.repeats} repeats x "
                        f"{self.training.seeds} training seeds are {runs:,} models of each head; "
                        f"at most {MAX_RUNS:,} are planned",
                    )
                ]
            )
        return self

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

    def truths(self, name: str) -> dict[str, tuple[str, ExternalTaskSection]]:
        """Return how an external cohort tells the truth: name -> the task that it is of, section.

        Without `tasks`, every task is its own truth.
        """
        own = self.validation[name].tasks or dict.fromkeys(self.tasks, ExternalTaskSection())
        return {truth: (section.of or truth, section) for truth, section in own.items()}

    @property
    def cache_folder(self) -> Path:
        """Return HER2_CACHE if set, so that a lab can share one cache, else `cache`.

        Raises:
            UserError: HER2_CACHE is not a usable path.
        """
        shared = os.environ.get("HER2_CACHE", "")
        try:
            return user_path(shared) if shared.strip() else self.cache
        except ValueError as problem:
            raise UserError(f"the environment variable HER2_CACHE: {problem}") from None

    @property
    def all_grids(self) -> tuple[str, ...]:
        """Return the names of the grids of all encoders, those of given features among them."""
        return tuple(dict.fromkeys(encoder.grid for encoder in self.encoders.values()))

    @property
    def grids(self) -> dict[str, tuple[float, int]]:
        """Return grid name -> (um/px, px per side), for all grids that slides are cut on."""
        return {
            e.grid: (e.mpp, e.size) for e in self.encoders.values() if isinstance(e, EncoderSection)
        }

    @property
    def given(self) -> dict[str, GivenSection]:
        """Return the encoders whose features another program computed, by name."""
        return {n: e for n, e in self.encoders.items() if isinstance(e, GivenSection)}

    @property
    def needs_slides(self) -> bool:
        """Return whether any encoder reads slides."""
        return len(self.given) < len(self.encoders)


def parse_config(values: Mapping[str, Any], *, source: str = "config") -> Config:
    """Check a config.

    Args:
        values: the parsed YAML.
        source: name at the start of errors.

    Raises:
        UserError: the config has problems; the message lists them all, with the legal values.
    """
    if odd := [*_texts_that_no_file_can_hold(values)]:
        raise problem_list(f"{source}: {len(odd)} problem(s)", odd)
    try:
        return Config.model_validate(values, context=BY_USER)
    except ValidationError as error:
        # The branches of a union repeat the same problem.
        found = problems([dict(item) for item in error.errors()], Config)
        raise problem_list(f"{source}: {len(found)} problem(s)", found) from None


_Section = TypeVar("_Section", bound=Section)


def parse_section(
    kind: type[_Section], given: _Section | Mapping[str, Any] | None, *, name: str
) -> _Section:
    """Check one section of a config, as scripts give it: None stands for its defaults.

    `name` is what errors call it.

    Raises:
        UserError: the section has problems; the message lists them all, with the legal values.
    """
    if isinstance(given, kind):
        return given
    try:
        return kind.model_validate(given or {}, context=BY_USER)
    except ValidationError as error:
        found = problems([dict(item) for item in error.errors()], kind)
        raise problem_list(f"{name}: {len(found)} problem(s)", found) from None


def _texts_that_no_file_can_hold(value: Any, above: str = "") -> Iterator[str]:
    """Yield a problem for each text with half a character, as `"\\ud800"` is in YAML, or a NUL."""
    if isinstance(value, str) and re.search(r"[\x00\ud800-\udfff]", value):
        yield f"{above}: {value!r} contains what is no character; delete it"
    pairs = value.items() if isinstance(value, Mapping) else ()
    for key, item in enumerate(value) if isinstance(value, list) else pairs:
        bad = [*_texts_that_no_file_can_hold(key, above or "the config")]
        yield from bad or _texts_that_no_file_can_hold(item, f"{above}.{key}".lstrip("."))


def load_config(path: Path | str) -> Config:
    """Read and check a file, YAML or JSON.

    Raises:
        UserError: the file cannot be read, holds a key twice, is not YAML, or is not a valid
            config.

    >>> import her2
    >>> list(her2.load_config("config.yaml").tasks)
    ['score']
    """
    path = Path(path)
    values = read_config(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: has no settings. Start from the project's config.yaml.")
    return parse_config(values, source=str(path))
