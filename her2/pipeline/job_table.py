"""Before every stage: all jobs of a plan by rule, with their wildcards, specs and stamps.

A rule takes its spec and its stamp from here (`her2.pipeline.wiring`). What asks about a run
without planning it, such as `her2 status`, goes through the same table.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from her2 import __version__
from her2.config.names import DEVELOPMENT, folds_name
from her2.core.stamps import FOLDER
from her2.pipeline import external
from her2.pipeline.plan import Plan

COHORT = "cohort"
"""Wildcard, always the first, of rules that are for every cohort, or every external one."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The names of a rule's wildcards, and the spec of its job for a plan and their values.

    `external` is True for a rule that the development cohort has no jobs of.
    """

    wildcards: tuple[str, ...]
    spec: Callable[..., str]
    external: bool = False


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """A job of a plan: its rule, and the values of the rule's wildcards in their order."""

    rule: str
    values: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name, such as `tile_bucket 224px-0.5mpp/0000-of-0002`."""
        return f"{self.rule} {values_in_words(self.values)}".rstrip()

    @property
    def place(self) -> str:
        """Where its stamp is, and what the stamp says of it."""
        return stamp_name(self.rule, self.values).removesuffix(".json")

    def stamp(self, results: Path) -> Path:
        """Return the path of its stamp."""
        return results / FOLDER / stamp_name(self.rule, self.values)

    def spec(self, plan: Plan) -> str:
        """Return its spec in a plan."""
        return RULES[self.rule].spec(plan, *self.values)


def planned_job(rule: str, wildcards: Mapping[str, str]) -> PlannedJob:
    """Return the job of a rule with these wildcards; without a cohort, that of the development."""
    given = {COHORT: DEVELOPMENT, **wildcards}
    return PlannedJob(rule, tuple(given[name] for name in RULES[rule].wildcards))


MODEL = ("task", "encoder", "head")

RULES = {
    "draw_slides": Rule(
        (COHORT, "bucket"), lambda plan, part, bucket: plan.of(part).synthetic_specs[bucket]
    ),
    "draw_patches": Rule(("kind",), Plan.patches_spec),
    "tile_bucket": Rule(
        (COHORT, "grid", "bucket"),
        lambda plan, part, grid, bucket: plan.of(part).tile_spec(grid, bucket),
    ),
    "fetch_segmenter": Rule(("segmenter",), Plan.segmenter_spec),
    "audit_cohort": Rule((COHORT,), lambda plan, part: plan.of(part).audit_spec()),
    "tabulate_cohort": Rule((COHORT,), lambda plan, part: plan.of(part).cohort_spec()),
    "check_apart": Rule((COHORT,), external.apart_spec, external=True),
    "materialise_encoder": Rule(("encoder",), Plan.encoder_spec),
    "pretrain_encoder": Rule(("encoder",), Plan.encoder_spec),
    "describe_features": Rule(("encoder",), Plan.describe_spec),
    "audit_overlap": Rule(
        (COHORT, "encoder"), lambda plan, part, encoder: plan.of(part).overlap_spec(encoder)
    ),
    "embed_bucket": Rule(
        (COHORT, "encoder", "bucket"),
        lambda plan, part, encoder, bucket: plan.of(part).embed_spec(encoder, bucket),
    ),
    "take_features": Rule(
        (COHORT, "encoder", "bucket"),
        lambda plan, part, encoder, bucket: plan.of(part).take_spec(encoder, bucket),
    ),
    "find_similar_slides": Rule(("encoder",), lambda plan, _: plan.similar_spec()),
    "find_similar_across": Rule(
        (COHORT, "encoder"), lambda plan, part, _: external.across_spec(plan, part), external=True
    ),
    "make_folds": Rule(("task",), Plan.folds_spec),
    "train_folds": Rule(
        (*MODEL, "chunk"), lambda plan, task, _, head, chunk: plan.train_spec(task, head, chunk)
    ),
    "refit_model": Rule(MODEL, lambda plan, task, _, head: external.refit_spec(plan, task, head)),
    "evaluate": Rule(MODEL, lambda plan, task, _, head: plan.evaluate_spec(task, head)),
    "compare_encoders": Rule((), Plan.compare_spec),
    "measure_robustness": Rule((), Plan.robustness_spec),
    "control": Rule(MODEL, lambda plan, task, encoder, _: plan.control_spec(task, encoder)),
    "draw_heatmaps": Rule(MODEL, lambda plan, task, *_: plan.heatmap_spec(task)),
    "measure_attention": Rule(MODEL, lambda plan, task, *_: plan.attention_spec(task)),
    "apply_models": Rule(
        (COHORT, *MODEL),
        lambda plan, part, task, *_: external.apply_spec(plan, part, task),
        external=True,
    ),
    "validate": Rule(
        (COHORT, *MODEL),
        lambda plan, part, task, encoder, _: external.validate_spec(plan, part, task, encoder),
        external=True,
    ),
    "compare_external": Rule((COHORT,), external.external_spec, external=True),
    "draw_external_heatmaps": Rule(
        (COHORT, *MODEL),
        lambda plan, part, task, *_: external.external_heatmap_spec(plan, part, task),
        external=True,
    ),
    "measure_external_attention": Rule(
        (COHORT, *MODEL),
        lambda plan, part, task, *_: external.external_attention_spec(plan, part, task),
        external=True,
    ),
    "build_report": Rule((), lambda plan: plan.report_spec(__version__)),
}
"""Rule -> its wildcards and spec, in the order of the stages. On external cohorts, a `task` is the
name of a truth, but that of `apply_models`, which predicts it."""


def stamp_name(rule: str, values: Iterable[str]) -> str:
    """Return the path of a job's stamp in the folder of all stamps."""
    names, found = RULES[rule].wildcards, tuple(values)
    part, rest = (found[0], found[1:]) if names[:1] == (COHORT,) else ("", found)
    return f"{part}{'/'.join((rule, *rest))}.json"


def values_in_words(values: Iterable[str]) -> str:
    """Return the values of wildcards as the end of a job's name."""
    return "/".join(value.rstrip("/") for value in values if value)


def planned_jobs(plan: Plan) -> Iterator[PlannedJob]:
    """Yield every job that a complete run of the plan has, in the order of the stages."""
    for rule, row in RULES.items():
        if row.wildcards[:1] != (COHORT,):
            cohorts: Iterable[Plan | None] = (None,)
        else:
            cohorts = plan.external.values() if row.external else plan.cohorts
        for own in cohorts:
            first = () if own is None else ([own.part],)
            names = (name for name in row.wildcards if name != COHORT)
            domains = (_values(plan, own or plan, rule, name) for name in names)
            for values in product(*first, *domains):
                yield PlannedJob(rule, values)


def _values(plan: Plan, own: Plan, rule: str, wildcard: str) -> Iterable[str]:
    """Return the values of a wildcard in a plan, for the cohort with the plan `own`."""
    config = plan.config
    trained = [name for name, encoder in config.encoders.items() if encoder.source == "pretrain"]
    match rule, wildcard:
        case "draw_slides", _:
            return own.buckets if config.cohort.synthetic else ()
        case "draw_patches", _:
            kinds = sorted({Path(plan.patch_source(name)).parent.name for name in trained})
            return kinds if config.cohort.synthetic else ()
        case "pretrain_encoder", _:
            return trained
        case "materialise_encoder", _:
            return [name for name in config.encoders if name not in {*trained, *config.given}]
        case (("describe_features" | "take_features"), "encoder"):
            return config.given
        case "embed_bucket", "encoder":
            return [name for name in config.encoders if name not in config.given]
        case "make_folds", _:
            return sorted({folds_name(task, head) for task in config.tasks for head in plan.models})
        case (("train_folds" | "evaluate"), "head"):
            return plan.models
        case "refit_model", "task":
            return external.refitted_tasks(plan)
        case "apply_models", "task":
            return external.applied_tasks(plan, own.part)
        case (("validate" | "draw_external_heatmaps" | "measure_external_attention"), "task"):
            return external.truths(config, Path(own.part).name)
    domains: dict[str, Iterable[str]] = {
        "grid": config.grids,
        "bucket": own.buckets,
        "segmenter": plan.segmenters,
        "task": config.tasks,
        "encoder": config.encoders,
        "head": config.heads,
        "chunk": plan.chunks,
    }
    return domains[wildcard]
