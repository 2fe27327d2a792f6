"""Beside every stage: the progress and the failures of a run as lines of text."""

from collections.abc import Iterable

from her2.core.pace import duration
from her2.pipeline.status import JobProgress, Stage


def working_lines(found: Iterable[Stage], now: float) -> list[str]:
    """Return one line per stage that has begun and not ended."""
    return [
        stage_line(stage, now)
        for stage in found
        if 0 < len(stage.jobs) != stage.count("done") and stage.count("waiting") < len(stage.jobs)
    ]


def stage_line(stage: Stage, now: float) -> str:
    """Return `embed_bucket: 3 of 20 jobs, 96 of 300 slides, 12,345 of 60,000 tiles, 8 min left`."""
    parts = [f"{stage.count('done'):,} of {len(stage.jobs):,} jobs"]
    for (done, total), what in ((stage.slides, "slides"), (stage.tiles, "tiles")):
        if total:
            parts.append(f"{done:,} of {total:,} {what}")
    if failed := stage.count("failed"):
        parts.append(f"{failed:,} failed")
    left = stage.seconds_left(now)
    if left is not None and stage.count("done") < len(stage.jobs):
        parts.append(f"{duration(left)} left")
    return f"{stage.rule}: {', '.join(parts)}"


def failure_lines(failed: Iterable[JobProgress]) -> list[str]:
    """Return, for each failed job, its name, the reason (with the slide, if known) and its log."""
    lines = []
    for job in failed:
        reason = job.reason.replace("\n", "\n    ")
        lines.append(f"{' '.join((job.job.rule, job.job.name)).strip()}: {reason}")
        if job.job.log:
            lines.append(f"    log: {job.job.log}")
    return lines
