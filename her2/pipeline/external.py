"""Before every stage: the plans of external cohorts, and the specs of the jobs on them.

An external cohort is tiled and embedded by the rules, grids and encoders of the development cohort,
and predicted by the models that were trained on that. No job of the development depends on it.
"""

from dataclasses import replace
from pathlib import Path

from her2.cohort import apart
from her2.cohort.manifest import Cohort
from her2.cohort.reading import configured_cohort
from her2.config import CohortSection, Config, EvaluationSection, external_jobs, jobs
from her2.config.names import cohort_folder
from her2.core.errors import UserError, problem_list
from her2.pipeline.plan import Plan


def configured_plan(config: Config) -> Plan:
    """Read the manifests of a config, and return the plan with those of the external cohorts.

    Raises:
        UserError: a manifest has problems, or a patient is in both cohorts; all of the first
            manifest that has any.
    """
    cohort = configured_cohort(config, config.cohort.slides, config.cohort.root)
    plans = {name: external_plan(config, name, cohort) for name in config.validation}
    return Plan(config, cohort, external=plans)


def external_plan(
    config: Config, name: str, development: Cohort, slides: Path | None = None
) -> Plan:
    """Read the manifest of an external cohort, and return its plan.

    `slides` is another manifest than that of the config.

    Raises:
        UserError: the manifest has problems, or patients of the development cohort.
    """
    section = config.validation[name]
    found = configured_cohort(
        config,
        slides or section.slides,
        section.root,
        tasks={key: one.truth for key, one in truths(config, name).items()},
        asked={
            one.label: f"validation.{name}.tasks.{key}.label"
            for key, one in section.tasks.items()
            if one.label is not None
        },
        where=f"validation.{name}",
    )
    if problems := apart.shared_patients(development, found):
        raise problem_list(apart.headline(name), problems)
    doubts = tuple(apart.doubtful_ids(development, found))
    return _plan_of(config, name, replace(found, cautions=(*found.cautions, *doubts)))


def read_external(config: Config, name: str, slides: Path) -> Plan:
    """Read a manifest as that of an external cohort, and return its plan.

    Raises:
        UserError: the config has no such cohort, or a manifest has problems.
    """
    if name not in config.validation:
        known = ", ".join(config.validation) or "(none)"
        raise UserError(f"{name!r}: `validation` has no such cohort; it has {known}.")
    development = configured_cohort(config, config.cohort.slides, config.cohort.root)
    return external_plan(config, name, development, slides)


def truths(config: Config, name: str) -> dict[str, external_jobs.Truth]:
    """Return how an external cohort tells the truth of each task, by the name of the truth."""
    return {
        own: external_jobs.Truth(
            of=of,
            task=config.tasks[of],
            truth=section.truth(config.tasks[of]),
            sides=section.sides(config.tasks[of]),
        )
        for own, (of, section) in config.truths(name).items()
    }


def cohort_section(config: Config, name: str) -> CohortSection:
    """Return an external cohort as a section `cohort`: the development's, with other files."""
    section = config.validation[name]
    files = {key: getattr(section, key) for key in ("slides", "root", "masks", "tissue_masks")}
    return config.cohort.model_copy(update=files)


def _plan_of(config: Config, name: str, cohort: Cohort) -> Plan:
    labelled = {label for row in cohort.rows for label in row.labels}
    further = {column for row in cohort.rows for column in row.other}
    section = config.evaluation
    columns = {
        key: tuple(one for one in getattr(section, key) if one in further)
        for key in ("subgroups", "covariates")
    }
    own = config.model_copy(
        update={
            "cohort": cohort_section(config, name),
            "tasks": {
                key: one.truth
                for key, one in truths(config, name).items()
                if one.truth.label in labelled
            },
            "evaluation": section.model_copy(update=columns),
            "validation": {},
        }
    )
    return Plan(own, cohort, cohort_folder(name))


def applied_tasks(plan: Plan, part: str) -> tuple[str, ...]:
    """Return the tasks of the config whose models predict an external cohort."""
    return tuple(dict.fromkeys(one.of for one in truths(plan.config, Path(part).name).values()))


def refitted_tasks(plan: Plan) -> tuple[str, ...]:
    """Return the tasks of which an external cohort asks for models trained on all patients."""
    asked = (name for name, one in plan.config.validation.items() if one.final == "refit")
    return tuple(
        dict.fromkeys(truth.of for n in asked for truth in truths(plan.config, n).values())
    )


def apart_spec(plan: Plan, part: str) -> str:
    """Return the spec of the search for patients and slides in both cohorts; tables are files."""
    return jobs.dump(external_jobs.ApartSpec(cohort=Path(part).name))


def across_spec(plan: Plan, part: str) -> str:
    """Return the spec of the search for tissue that both cohorts show; the features are files."""
    return jobs.dump(
        external_jobs.ApartSpec(
            cohort=Path(part).name,
            buckets=plan.of(part).buckets,
            development_buckets=plan.buckets,
            max_shared_tiles=plan.config.folds.max_shared_tiles,
        )
    )


def refit_spec(plan: Plan, task: str, head: str) -> str:
    """Return the spec of training one model on all patients."""
    return jobs.dump(
        external_jobs.RefitSpec(
            task=plan.config.tasks[task],
            head=plan.config.heads[head],
            training=plan.config.training.of_one_model,
            chunks=tuple(plan.chunks),
            buckets=plan.buckets,
            seed=plan.config.seed,
        )
    )


def apply_spec(plan: Plan, part: str, task: str) -> str:
    """Return the spec of predicting an external cohort; models and features come as files."""
    name = Path(part).name
    return jobs.dump(
        external_jobs.ApplySpec(
            cohort=name,
            task=plan.config.tasks[task],
            chunks=tuple(plan.chunks),
            buckets=plan.of(part).buckets,
            development_buckets=plan.buckets,
            max_excluded=plan.config.cohort.max_excluded,
            final=plan.config.validation[name].final,
            seed=plan.config.seed,
        )
    )


def validate_spec(plan: Plan, part: str, truth: str, encoder: str) -> str:
    """Return the spec of evaluating a model on an external cohort."""
    name = Path(part).name
    return jobs.dump(
        external_jobs.ValidateSpec(
            cohort=name,
            truth=truths(plan.config, name)[truth],
            grid=plan.config.encoders[encoder].grid,
            patient_label=plan.config.cohort.patient_label,
            first=_first_labels(plan, name, truth),
            final=plan.config.validation[name].final,
            evaluation=_of_one_model(plan),
            seed=plan.config.seed,
        )
    )


def external_spec(plan: Plan, part: str) -> str:
    """Return the spec of comparing all models on an external cohort."""
    encoders = plan.config.encoders
    return jobs.dump(
        external_jobs.ExternalSpec(
            cohort=Path(part).name,
            truths=truths(plan.config, Path(part).name),
            encoders=tuple(encoders),
            domains={name: section.domain or "none" for name, section in encoders.items()},
            grids={name: section.grid for name, section in encoders.items()},
            heads=tuple(plan.config.heads),
            evaluation=_of_one_model(plan),
            seed=plan.config.seed,
        )
    )


def external_heatmap_spec(plan: Plan, part: str, truth: str) -> str:
    """Return the spec of the attention pictures of a model on an external cohort."""
    name, own = Path(part).name, plan.of(part)
    return jobs.dump(
        external_jobs.ExternalHeatmapSpec(
            cohort=name,
            truth=truths(plan.config, name)[truth],
            patient_label=plan.config.cohort.patient_label,
            first=_first_labels(plan, name, truth),
            buckets=own.buckets,
            slides=plan.config.heatmaps.slides,
            formats=plan.config.heatmaps.formats,
            mask_classes=plan.config.cohort.mask_classes,
            annotation_origin=plan.config.tiling.annotation_origin,
            seed=plan.config.seed,
            synthetic=plan.config.cohort.synthetic,
            files=own.state(own.truth_files),
        )
    )


def external_attention_spec(plan: Plan, part: str, truth: str) -> str:
    """Return the spec of measuring the attention of a model on an external cohort."""
    name, own = Path(part).name, plan.of(part)
    return jobs.dump(
        external_jobs.ExternalAttentionSpec(
            cohort=name,
            truth=truths(plan.config, name)[truth],
            patient_label=plan.config.cohort.patient_label,
            first=_first_labels(plan, name, truth),
            chunks=tuple(plan.chunks),
            buckets=own.buckets,
            mask_classes=plan.config.cohort.mask_classes,
            annotation_origin=plan.config.tiling.annotation_origin,
            faithfulness_slides=plan.config.heatmaps.faithfulness_slides,
            confidence=plan.config.evaluation.confidence,
            final=plan.config.validation[name].final,
            seed=plan.config.seed,
            files=own.state(own.truth_files),
        )
    )


def _first_labels(plan: Plan, name: str, truth: str) -> dict[str, str]:
    if plan.config.cohort.patient_label != "first":
        return {}
    task = truths(plan.config, name)[truth].truth
    conflicts = plan.of(cohort_folder(name)).cohort.conflicts(task)
    return {one.patient_id: one.labels[0][0] for one in conflicts}


def _of_one_model(plan: Plan) -> EvaluationSection:
    return plan.config.evaluation.model_copy(update={"selection": "none"})
