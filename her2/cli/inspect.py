"""The `her2` command: the progress of a run, and the state of one slide."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from her2.config import Config, load_config
from her2.core.errors import UserError
from her2.pipeline import record, status
from her2.pipeline.current import outdated_jobs
from her2.pipeline.external import configured_plan
from her2.pipeline.lines import failure_lines, working_lines
from her2.pipeline.plan import Plan
from her2.storage.entries import FeatureEntry, TileEntry, read_entries

ConfigOption = Annotated[Path, typer.Option("--config", help="the run's config")]
_SLIDES_SHOWN = 20
_JOBS_SHOWN = 10
_STATE_WORDS = {
    "running": "is running",
    "finished": "has finished",
    "failed": "has ended with failed jobs. Fix the cause, then rerun the same command",
    "stopped": "was stopped. Rerun the same command to continue from there",
    "killed": "was killed and left the folder locked. Run `snakemake --unlock` (with the same "
    "--configfile), then rerun the same command",
    "elsewhere": "is running on that machine, or was killed there and left the folder locked (then "
    "run `snakemake --unlock` and rerun the same command)",
}


def show_status(
    config: ConfigOption = Path("config.yaml"),
    watch: Annotated[
        float | None, typer.Option(min=1, help="print again every N seconds until the run ends")
    ] = None,
) -> None:
    """Show what is done, running, failed and left out, and the disk space used."""
    settings = load_config(config)
    while True:
        try:
            run = record.read_run(settings.results)
        except UserError as error:  # the rest can be said without it
            print(error)
            break
        state = record.run_state(run, settings.results)
        print("\n".join(_run_lines(run, state, _outdated(settings, run, state))))
        if watch is None or state not in ("running", "elsewhere"):
            break
        time.sleep(watch)
        print()
    print("\n".join([*_slide_lines(settings), *_disk_lines(settings)]))


def explain_slide(
    slide: Annotated[str, typer.Argument(help="a slide_id of the manifest")],
    config: ConfigOption = Path("config.yaml"),
    cohort: Annotated[
        str | None,
        typer.Option(help="an external cohort of the config; default: the first with the slide"),
    ] = None,
    snakefile: Annotated[
        Path | None, typer.Option(help="default: the one here, or next to the package")
    ] = None,
) -> None:
    """Show what exists for one slide, under which keys, and what would run again and why."""
    from her2.pipeline.explain import explain, planned_jobs

    settings = load_config(config)
    plan = configured_plan(settings)
    part = _part_with(plan, slide, cohort)
    if snakefile is None:
        here = Path("Snakefile")
        snakefile = here if here.exists() else Path(__file__).parents[2] / "Snakefile"
    for line in explain(plan, slide, planned_jobs(snakefile, config), part=part):
        print(line)


def _part_with(plan: Plan, slide: str, cohort: str | None) -> str:
    """Return the folder of the cohort with a slide: the named one, or the first that has it."""
    if cohort is not None and cohort not in plan.external:
        known = ", ".join(plan.external) or "(none)"
        raise UserError(f"--cohort {cohort}: `validation` has no such cohort; it has {known}.")
    own = plan.cohorts if cohort is None else (plan.external[cohort],)
    return next((one.part for one in own if slide in one.slides), own[0].part)


def _outdated(
    settings: Config, run: record.RunRecord, state: record.RunState
) -> list[tuple[str, str]]:
    """Return the jobs of a run that is over that would run again under this config, and why.

    A job without a stamp counts if the run finished and had jobs of its rule.
    """
    if state in ("running", "elsewhere"):
        return []
    try:
        found = outdated_jobs(configured_plan(settings), unstamped=True)
    except UserError:  # of a manifest that cannot be read; said below
        return []
    rules = run.rules if state == "finished" else ()
    return [
        (one.job.name, "; ".join((one.reason, *one.changes)))
        for one in found
        if one.stamped or one.job.rule in rules
    ]


def _run_lines(
    run: record.RunRecord, state: record.RunState, stale: Sequence[tuple[str, str]] = ()
) -> list[str]:
    """Return how far a run is; `stale` are jobs that would run again under this config, and why."""
    over = state not in ("running", "elsewhere")
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.began))
    progress_of_run = status.RunProgress(run)
    found = progress_of_run.close() if over else progress_of_run.update()
    words = _STATE_WORDS[state]
    if over and stale:
        words += f"; {len(stale):,} job(s) would run again under this config"
    lines = [f"The run that started {began} on {run.host} (process {run.pid}) {words}.", ""]
    lines.append(
        f"{'stage':22}{'up to date':>11}{'done':>7}{'running':>9}{'failed':>8}{'waiting':>9}"
    )
    for stage in found:
        counts = [stage.count(name) for name in ("done", "running", "failed", "waiting")]
        numbers = zip((stage.up_to_date, *counts), (11, 7, 9, 8, 9), strict=True)
        lines.append(f"{stage.rule:22}" + "".join(f"{n:>{width},}" for n, width in numbers))
    if not over and (working := working_lines(found, time.time())):
        lines += ["", *working]
    if failed := status.failures(found):
        lines += ["", f"Failed jobs: {len(failed)}", *failure_lines(failed)]
    if over and stale:
        lines += [
            "",
            "Would run again:",
            *(f"    {job}: {why}" for job, why in stale[:_JOBS_SHOWN]),
        ]
        if len(stale) > _JOBS_SHOWN:
            lines.append(f"    ... and {len(stale) - _JOBS_SHOWN:,} more")
    return lines


def _slide_lines(settings: Config) -> list[str]:
    """Return the numbers of slides by status, and the reasons for those that were left out."""
    counts: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    entries: list[tuple[str, str, TileEntry | FeatureEntry]] = []
    try:
        for own in configured_plan(settings).cohorts:
            for path in _entries_files(own.folder / "tiles", settings.all_grids, own.buckets):
                found = read_entries(path, TileEntry)
                entries += [("tiles", f"{own.part}{name}", one) for name, one in found.items()]
            for path in _entries_files(own.folder / "features", settings.encoders, own.buckets):
                made = read_entries(path, FeatureEntry)
                entries += [("features", f"{own.part}{name}", one) for name, one in made.items()]
    except UserError as error:
        return ["", str(error)]
    for stage, slide, entry in entries:
        counts[f"{stage} {entry.status}"] += 1
        if entry.status != "ok":
            reasons.setdefault(slide, f"{entry.status}: {entry.reason}")
    lines = [""]
    for stage, per in (("tiles", "slides x grids"), ("features", "slides x encoders")):
        words = ", ".join(
            f"{counts[key]:,} {key.split()[1]}" for key in sorted(counts) if key.startswith(stage)
        )
        lines.append(f"{stage} ({per}): {words or 'none yet'}")
    if reasons:
        lines.append(f"Slides left out: {len(reasons)}")
        lines += [
            f"    {slide}: {reason}" for slide, reason in sorted(reasons.items())[:_SLIDES_SHOWN]
        ]
        if len(reasons) > _SLIDES_SHOWN:
            lines.append(f"    ... see {settings.results}/cohort/slides.csv")
    return lines


def _entries_files(folder: Path, names: Iterable[str], buckets: Iterable[str]) -> list[Path]:
    paths = (folder / name / f"{bucket}.json" for name in names for bucket in buckets)
    return [path for path in paths if _is_file(path)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # in a folder that may not be entered
        return False


def _disk_lines(settings: Config) -> list[str]:
    """Return the disk space of cache and results; links into the cache count only once."""
    cache = settings.cache_folder
    parts = [
        f"{path.name} {_megabytes(status.disk_usage(path))}"
        for path in sorted(cache.glob("*"))
        if path.is_dir()
    ]
    own = status.disk_usage(settings.results, without=cache)
    return [
        "",
        f"Disk: cache {_megabytes(status.disk_usage(cache))} ({', '.join(parts) or 'empty'}); "
        f"results {_megabytes(own)} in addition",
    ]


def _megabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
