"""The `her2` command: stages as commands whose options come from their functions.

A stage is a row of `STAGES`. Its module is imported only when the command runs or prints its help,
so that `her2 --help` loads neither torch nor polars. The function's signature gives the options,
and the `Args:` of its docstring their help.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from inspect import Parameter
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from her2.cli.shared import filled_in_cache
from her2.cli.signatures import (
    LazyCommand,
    argument_help,
    argument_option,
    option,
    with_signature,
)
from her2.cohort.manifest import Cohort
from her2.cohort.reading import read_labels
from her2.config import Section, jobs
from her2.core.stamps import writing_stamp
from her2.storage.cache import Cache

STAGES = {
    "tile": (
        "her2.tiling.stage:tile_bucket",
        "Stage 1: find the tiles of a bucket of slides.",
    ),
    "segmenter": (
        "her2.tiling.segmenter:fetch_segmenter",
        "Stage 1: write the weights of a segmenter to a folder.",
    ),
    "audit": (
        "her2.cohort.audit:audit_cohort",
        "After tile: stop on duplicates, or when too many slides cannot be used.",
    ),
    "tabulate": (
        "her2.cohort.audit:tabulate_cohort",
        "After tile: write the table of the whole cohort.",
    ),
    "encoder": (
        "her2.encoders.stage:materialise_encoder",
        "Stage 1: write an encoder's weights and card to a folder.",
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
    "describe": (
        "her2.exchange.describe:describe_features",
        "Stage 1: write the card of features that another program computed.",
    ),
    "take": (
        "her2.exchange.take:take_features",
        "Stage 1: take in the features of a bucket of slides that another program computed.",
    ),
    "folds": (
        "her2.cohort.folds:make_folds",
        "Stage 2: make patient-grouped, stratified folds for a task.",
    ),
    "similar": (
        "her2.cohort.similar:find_similar",
        "Stage 2: stop when features show the same tissue in slides of two patients.",
    ),
    "train": (
        "her2.mil.stage:train_folds",
        "Stage 2: train some folds of an encoder and head, and predict their held-out slides.",
    ),
    "evaluate": (
        "her2.evaluation.stage:evaluate",
        "Stage 2: compute the out-of-fold metrics of an encoder and head.",
    ),
    "compare": (
        "her2.evaluation.compare:compare",
        "Stage 2: compare encoders, and heads, on identical patients.",
    ),
    "robustness": (
        "her2.evaluation.robustness.stage:measure_robustness",
        "Stage 2: measure what the features of each encoder know beside the label.",
    ),
    "control": (
        "her2.evaluation.controls.stage:control",
        "Stage 2: compare a model with covariates alone and chance, within sites and by subgroup.",
    ),
    "heatmap": (
        "her2.explanation.heatmap_stage:draw_heatmaps",
        "Stage 2: draw attention pictures of some held-out slides.",
    ),
    "attention": (
        "her2.explanation.attention_stage:measure_attention",
        "Stage 2: measure localisation, faithfulness and agreement of attention.",
    ),
    "apart": (
        "her2.cohort.apart:check_apart",
        "Stage 2: stop when a patient or slide is in both cohorts.",
    ),
    "similar-across": (
        "her2.cohort.similar:find_similar_across",
        "Stage 2: stop when features show the same tissue in both cohorts.",
    ),
    "refit": (
        "her2.mil.refit:refit_model",
        "Stage 2: train one model on all patients of the development cohort.",
    ),
    "apply": (
        "her2.frozen.stage:apply_models",
        "Stage 2: predict an external cohort by the trained models.",
    ),
    "validate": (
        "her2.evaluation.external.stage:validate",
        "Stage 2: compute the metrics of a model on an external cohort.",
    ),
    "external": (
        "her2.evaluation.external.compare:compare_external",
        "Stage 2: compare all models on an external cohort, and its cases with development's.",
    ),
    "external-heatmap": (
        "her2.explanation.external_heatmap:draw_external",
        "Stage 2: draw attention pictures of some external slides.",
    ),
    "external-attention": (
        "her2.explanation.external_attention:measure_external",
        "Stage 2: measure localisation and faithfulness of attention to external slides.",
    ),
    "report": (
        "her2.report.build:build_report",
        "Stage 2: build the self-contained HTML report, and its tables.",
    ),
}
"""Command -> (module:function, help). The function takes `spec`, of a class of `her2.config.jobs`,
and other arguments that `_options` supports."""

STAMP = typer.Option("--stamp", help="where to write what was asked for, read and made")

_RENAMED = {"output": "--out", "compiling": "--compile"}


class StageGroup(TyperGroup):
    """The commands of the stages, followed by those of an app."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        stages = {
            name: LazyCommand(name, partial(_imported, target), help)
            for name, (target, help) in STAGES.items()
        }
        self.commands = {**stages, **self.commands}


def _imported(target: str) -> Callable[..., None]:
    module, function = target.split(":")
    return as_command(getattr(importlib.import_module(module), function))


def as_command(stage: Callable[..., object]) -> Callable[..., None]:
    """Return the function of a stage for typer, with options in place of its arguments."""
    parameters = inspect.signature(stage, eval_str=True).parameters
    words = argument_help(stage)

    def run(**given: Any) -> None:
        stamp = given.pop("stamp")
        with writing_stamp(stamp, given["spec"]):
            spec = jobs.load(parameters["spec"].annotation, given["spec"])
            stage(**{name: _value(one, spec, given) for name, one in parameters.items()})

    options = [made for one in parameters.values() for made in _options(one, words)]
    return with_signature(run, [*options, option("stamp", Path | None, STAMP, None)])


def _options(one: Parameter, words: dict[str, str]) -> Iterator[Parameter]:
    """Yield the options that make up one parameter of a stage."""
    if one.name == "spec":
        yield option("spec", str, typer.Option("--spec", help="what the job depends on, as JSON"))
    elif one.annotation is Cohort:
        yield option("slides", Path, typer.Option(help="the manifest (.csv, .parquet)"))
        yield option("root", Path | None, typer.Option(help="where relative paths start"), None)
    elif one.annotation is Cache:
        help_ = "the content-addressed cache"
        described = typer.Option(
            "--cache", envvar="HER2_CACHE", callback=filled_in_cache, help=help_
        )
        yield option("cache", Path, described)
    else:
        yield argument_option(one, words, _RENAMED.get(one.name, ""))


def _value(one: Parameter, spec: Section, given: dict[str, Any]) -> Any:
    """Return the argument of a stage that its options make up."""
    if one.name == "spec":
        return spec
    if one.annotation is Cohort:
        named = spec.columns if isinstance(spec, jobs.CohortSpec) else ()
        labels = _label_columns(spec)
        return read_labels(given["slides"], root=given["root"], labels=labels, named=named)
    return Cache(given["cache"]) if one.annotation is Cache else given[one.name]


def _label_columns(spec: Section) -> tuple[str, ...]:
    """Return the manifest's label columns that a job reads."""
    if isinstance(spec, jobs.AuditSpec | jobs.CohortSpec):
        return spec.labels
    return (spec.task.label,) if isinstance(spec, jobs.FoldsSpec) else ()
