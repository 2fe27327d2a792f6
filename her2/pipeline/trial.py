"""Before every stage: what the jobs of a plan would refuse on the manifest alone."""

from her2.cohort.folds import draw_folds
from her2.config import jobs
from her2.config.names import folds_name
from her2.core.errors import UserError
from her2.pipeline.plan import Plan


def plan_problems(plan: Plan) -> list[str]:
    """Return what the folds of every task, and the demo's slides, cannot be made of.

    The jobs that make them find the same, the folds after hours of embedding.
    """
    found = []
    if plan.config.cohort.synthetic:
        try:
            _ = plan.synthetic_specs
        except UserError as error:
            found.append(str(error))
    names = dict.fromkeys(
        folds_name(task, model) for task in plan.config.tasks for model in plan.models
    )
    for name in names:
        try:
            draw_folds(jobs.load(jobs.FoldsSpec, plan.folds_spec(name)), plan.cohort)
        except UserError as error:
            found.append(f"the folds of task {name!r} cannot be drawn: {error}")
    return found
