"""Before every stage: all jobs of a plan by rule, with their wildcards, specs and stamps.

A rule takes its spec and its stamp from here (`her2.pipeline.wiring`). What asks about a run
without planning it, such as `her2 status`, goes through the same table.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from her2 import __version__
from her2.config.names import folds_name
from her2.core.stamps import FOLDER
from her2.pipeline.plan import Plan


@dataclass(frozen=True, slots=True)
class Rule:
    """The names of a rule's wildcards, and the spec of its job for a plan and their values."""

    wildcards: tuple[str, ...]
    spec: Callable[..., str]


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """A job of a plan: its rule, and the values of the rule's wildcards in their order."""

    rule: str
    values: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name, such as `tile_bucket 224px-0.5mpp/0000-of-0002`."""
        return f"{self.rule} {'/'.join(self.values)}".rstrip()

    @property
    def place(self) -> str:
        """Where its stamp is, and what the stamp says of it."""
        return "/".join((self.rule, *self.values))

    def stamp(self, results: Path) -> Path:
        """Return the path of its stamp."""
        return results / FOLDER / stamp_name(self.rule, self.values)

    def spec(self, plan: Plan) -> str:
        """Return its spec in a plan."""
        return RULES[self.rule].spec(plan, *self.values)


def planned_job(rule: str, wildcards: Mapping[str, str]) -> PlannedJob:
    """Return the job of a rule with these wildcards."""
    return PlannedJob(rule, tuple(wildcards[name] for name in RULES[rule].wildcards))


MODEL = ("task", "encoder", "head")

RULES = {
    "draw_slides": Rule(("bucket",), lambda plan, bucket: plan.synthetic_specs[bucket]),
    "draw_patches": Rule(("kind",), Plan.patches_spec),
    "tile_bucket": Rule(("grid", "bucket"), Plan.tile_spec),
    "audit_cohort": Rule((), Plan.audit_spec),
    "tabulate_cohort": Rule((), Plan.cohort_spec),
    "materialise_encoder": Rule(("encoder",), Plan.encoder_spec),
    "pretrain_encoder": Rule(("encoder",), Plan.encoder_spec),
    "audit_overlap": Rule(("encoder",), Plan.overlap_spec),
    "embed_bucket": Rule(("encoder", "bucket"), lambda plan, _, bucket: plan.embed_spec(bucket)),
    "find_similar_slides": Rule(("encoder",), lambda plan, _: plan.similar_spec()),
    "make_folds": Rule(("task",), Plan.folds_spec),
    "train_folds": Rule(
        (*MODEL, "chunk"), lambda plan, task, _, head, chunk: plan.train_spec(task, head, chunk)
    ),
    "evaluate": Rule(MODEL, lambda plan, task, _, head: plan.evaluate_spec(task, head)),
    "compare_encoders": Rule((), Plan.compare_spec),
    "control": Rule(MODEL, lambda plan, task, encoder, _: plan.control_spec(task, encoder)),
    "draw_heatmaps": Rule(MODEL, lambda plan, task, *_: plan.heatmap_spec(task)),
    "measure_attention": Rule(MODEL, lambda plan, task, *_: plan.attention_spec(task)),
    "build_report": Rule((), lambda plan: plan.report_spec(__version__)),
}
"""Rule -> its wildcards and spec, in the order of the stages."""


def stamp_name(rule: str, values: Iterable[str]) -> str:
    """Return the path of a job's stamp in the folder of all stamps."""
    return f"{'/'.join((rule, *values))}.json"


def planned_jobs(plan: Plan) -> Iterator[PlannedJob]:
    """Yield every job that a complete run of the plan has, in the order of the stages."""
    for rule, row in RULES.items():
        for values in product(*(_values(plan, rule, name) for name in row.wildcards)):
            yield PlannedJob(rule, values)


def _values(plan: Plan, rule: str, wildcard: str) -> Iterable[str]:
    config = plan.config
    trained = [name for name, encoder in config.encoders.items() if encoder.source == "pretrain"]
    match rule, wildcard:
        case "draw_slides", _:
            return plan.buckets if config.cohort.synthetic else ()
        case "draw_patches", _:
            kinds = sorted({Path(plan.patch_source(name)).parent.name for name in trained})
            return kinds if config.cohort.synthetic else ()
        case "pretrain_encoder", _:
            return trained
        case "materialise_encoder", _:
            return [name for name in config.encoders if name not in trained]
        case "make_folds", _:
            return sorted({folds_name(task, head) for task in config.tasks for head in plan.models})
        case (("train_folds" | "evaluate"), "head"):
            return plan.models
    domains: dict[str, Iterable[str]] = {
        "grid": config.grids,
        "bucket": plan.buckets,
        "task": config.tasks,
        "encoder": config.encoders,
        "head": config.heads,
        "chunk": plan.chunks,
    }
    return domains[wildcard]
