"""`her2 doctor`: the manifests, and the files that they and the config name."""

from collections.abc import Iterator

from her2.cli.doctor.base import Check, Finding, Situation
from her2.core.errors import UserError


def find(situation: Situation) -> Iterator[Finding]:
    """Yield how many slides there are, or all that a run would refuse before its first job."""
    config = situation.config
    if config is None:
        yield Finding("note", "known from a config only")
        return
    if config.cohort.synthetic:
        yield Finding("ok", "the demo draws its own")
        return
    from her2.pipeline.inputs import check_inputs

    mend = f"her2 cohort check {config.cohort.slides} --config {situation.path}"
    try:
        plan = situation.plan
        others = {name: (own.config.cohort, own.cohort) for name, own in plan.external.items()}
        check_inputs(config, plan.cohort, others)
    except UserError as error:
        yield Finding("bad", str(error), mend)
        return
    counts = [("cohort", plan.cohort), *((name, own) for name, (_, own) in others.items())]
    words = ", ".join(f"{name} {len(own.rows):,} slides" for name, own in counts)
    yield Finding("ok", f"{words}; all files are there")


CHECK = Check("files", 85, find)
