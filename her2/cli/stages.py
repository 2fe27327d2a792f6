"""The `her2` command: each stage as a command whose options come from its function.

A stage is a row of `STAGES`. Its module is imported when the command runs or its own help is asked
for, so that `her2 --help` loads neither torch nor polars. The function's signature says which
options there are, and the `Args:` of its docstring what each is for.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from her2.cohort.manifest import Cohort, read_labels
from her2.config import Section, jobs
from her2.storage.cache import Cache

STAGES = {
    "tile": (
        "her2.tiling.stage:tile_bucket",
        "Stage 1: find the tiles of a bucket of slides.",
    ),
    "audit": (
        "her2.cohort.audit:audit_cohort",
        "After tile: stop on duplicates and on too many slides that cannot be used.",
    ),
    "tabulate": (
        "her2.cohort.audit:tabulate_cohort",
        "After tile: the table of the whole cohort.",
    ),
    "encoder": (
        "her2.encoders.stage:materialise_encoder",
        "Stage 1: put an encoder's weights and card into a folder.",
    ),
    "pretrain": (
        "her2.pretraining.stage:pretrain_encoder",
        "Stage 1: train an encoder on labelled patches.",
    ),
    "overlap": (
        "her2.pretraining.overlap:audit_overlap",
        "Stage 1: stop when an encoder was pre-trained on patients of the cohort.",
    ),
    "embed": (
        "her2.embedding.stage:embed_bucket",
        "Stage 1: embed the tiles of a bucket of slides.",
    ),
    "folds": (
        "her2.cohort.folds:make_folds",
        "Stage 2: patient-grouped, stratified folds of a task.",
    ),
    "similar": (
        "her2.cohort.similar:find_similar",
        "Stage 2: stop when slides of two patients show the same tissue, by their features.",
    ),
    "train": (
        "her2.mil.stage:train_folds",
        "Stage 2: train some folds of an encoder and head, predict what they hold out.",
    ),
    "evaluate": (
        "her2.evaluation.stage:evaluate",
        "Stage 2: out-of-fold figures of an encoder and head.",
    ),
    "compare": (
        "her2.evaluation.compare:compare",
        "Stage 2: differences between encoders on identical patients.",
    ),
    "control": (
        "her2.evaluation.controls.stage:control",
        "Stage 2: covariates alone, shuffled labels and parts of the cohort, beside one model.",
    ),
    "heatmap": (
        "her2.explanation.heatmap_stage:draw_heatmaps",
        "Stage 2: attention pictures of some held-out slides.",
    ),
    "attention": (
        "her2.explanation.attention_stage:measure_attention",
        "Stage 2: localisation, faithfulness and agreement of attention.",
    ),
    "report": (
        "her2.report.build:build_report",
        "Stage 2: one self-contained HTML page from the tables, and the tables beside it.",
    ),
}
"""Command -> (module:function, help). The function takes `spec`, of a class of `her2.config.jobs`,
and whatever else `_options` knows how to ask for."""

_RENAMED = {"output": "--out", "compiling": "--compile"}


class StageGroup(TyperGroup):
    """The commands of an app, after those of the stages."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        stages = {name: StageCommand(name, *row) for name, row in STAGES.items()}
        self.commands = {**stages, **self.commands}


class StageCommand(TyperCommand):
    """A command that imports its function when its options are needed."""

    def __init__(self, name: str, target: str, help: str) -> None:
        super().__init__(name, help=help)
        self.target = target

    def get_params(self, ctx: Any) -> Any:
        """Return the options, which depend on the function."""
        if self.callback is None:
            module, function = self.target.split(":")
            app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            app.command()(as_command(getattr(importlib.import_module(module), function)))
            built = typer.main.get_command(app)
            self.params, self.callback = built.params, built.callback
        return super().get_params(ctx)


def as_command(stage: Callable[..., object]) -> Callable[..., None]:
    """Return a function for typer: the stage's, with options in the place of its arguments."""
    parameters = inspect.signature(stage, eval_str=True).parameters
    words = _argument_help(stage)

    def run(**given: Any) -> None:
        spec = jobs.load(parameters["spec"].annotation, given["spec"])
        stage(**{name: _value(one, spec, given) for name, one in parameters.items()})

    options = [option for one in parameters.values() for option in _options(one, words)]
    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


def _options(one: Parameter, words: dict[str, str]) -> Iterator[Parameter]:
    """Yield the options that a parameter of a stage is made of."""
    flag = _RENAMED.get(one.name, f"--{one.name.replace('_', '-')}")
    if one.name == "spec":
        yield _option("spec", str, typer.Option(flag, help="what the job depends on, as JSON"))
    elif one.annotation is Cohort:
        yield _option("slides", Path, typer.Option(help="the manifest (.csv, .parquet)"))
        yield _option("root", Path | None, typer.Option(help="where relative paths start"), None)
    elif one.annotation is Cache:
        help_ = "the content-addressed cache"
        yield _option("cache", Path, typer.Option(flag, envvar="HER2_CACHE", help=help_))
    else:
        least = 1 if one.annotation is int else None
        option = typer.Option(flag, min=least, help=words.get(one.name))
        yield _option(one.name, one.annotation, option, one.default)


def _option(name: str, kind: Any, option: Any, default: Any = Parameter.empty) -> Parameter:
    annotation = Annotated[kind, option]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _value(one: Parameter, spec: Section, given: dict[str, Any]) -> Any:
    """Return the argument of a stage that its options stand for."""
    if one.name == "spec":
        return spec
    if one.annotation is Cohort:
        return read_labels(given["slides"], root=given["root"], labels=_label_columns(spec))
    return Cache(given["cache"]) if one.annotation is Cache else given[one.name]


def _label_columns(spec: Section) -> tuple[str, ...]:
    """Return the manifest's label columns that a job reads."""
    if isinstance(spec, jobs.AuditSpec | jobs.CohortSpec):
        return spec.labels
    return (spec.task.label,) if isinstance(spec, jobs.FoldsSpec) else ()


def _argument_help(stage: Callable[..., object]) -> dict[str, str]:
    """Return what the docstring's `Args:` says of each argument."""
    text = (inspect.getdoc(stage) or "").partition("Args:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    (\w+): ((?:.|\n {8})+)", text, re.MULTILINE)
    return {name: " ".join(words.split()).rstrip(".") for name, words in found}
