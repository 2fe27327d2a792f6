"""The `her2` command: how far a run is, and what is true of one slide."""

import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from her2.cohort.manifest import read_cohort
from her2.config import Config, load_config
from her2.core.errors import UserError
from her2.pipeline import progress, record, status
from her2.pipeline.plan import Plan
from her2.storage.entries import FeatureEntry, TileEntry, read_entries

ConfigOption = Annotated[Path, typer.Option("--config", help="the run's config")]
_SLIDES_SHOWN = 20
_STATE_WORDS = {
    "running": "running",
    "finished": "finished",
    "failed": "ended, and some jobs failed; after the mend give the same command again",
    "stopped": "was stopped; the same command goes on from there",
    "killed": "was killed and has left the folder locked: `snakemake --unlock`, then the same "
    "command again",
    "elsewhere": "runs on that machine, or was killed there and has left the folder locked (then: "
    "`snakemake --unlock`, and the same command again)",
}


def show_status(
    config: ConfigOption = Path("config.yaml"),
    watch: Annotated[
        float | None, typer.Option(min=1, help="print again every so many seconds until it ends")
    ] = None,
) -> None:
    """Say what is done, running, failed and left out, and how much disk it takes."""
    settings = load_config(config)
    while True:
        run = record.read_run(settings.results)
        state = record.run_state(run)
        print("\n".join(_run_lines(run, state)))
        if watch is None or state not in ("running", "elsewhere"):
            break
        time.sleep(watch)
        print()
    print("\n".join([*_slide_lines(settings), *_disk_lines(settings)]))


def explain_slide(
    slide: Annotated[str, typer.Argument(help="slide_id of the manifest")],
    config: ConfigOption = Path("config.yaml"),
    snakefile: Annotated[
        Path | None, typer.Option(help="default: the one here, or beside the package")
    ] = None,
) -> None:
    """Say for one slide what exists, under which identity, what would run again and why."""
    from her2.pipeline.explain import explain, planned_jobs

    settings = load_config(config)
    section = settings.cohort
    plan = Plan(settings, read_cohort(section.slides, root=section.root, tasks=settings.tasks))
    if snakefile is None:
        here = Path("Snakefile")
        snakefile = here if here.exists() else Path(__file__).parents[2] / "Snakefile"
    for line in explain(plan, slide, planned_jobs(snakefile, config)):
        print(line)


def _run_lines(run: record.RunRecord, state: record.RunState) -> list[str]:
    over = state not in ("running", "elsewhere")
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.began))
    progress_of_run = status.RunProgress(run)
    found = progress_of_run.close() if over else progress_of_run.update()
    lines = [f"The run of {began} on {run.host} (process {run.pid}) {_STATE_WORDS[state]}.", ""]
    lines.append(
        f"{'stage':22}{'up to date':>11}{'done':>7}{'running':>9}{'failed':>8}{'waiting':>9}"
    )
    for stage in found:
        counts = [stage.count(name) for name in ("done", "running", "failed", "waiting")]
        numbers = zip((stage.up_to_date, *counts), (11, 7, 9, 8, 9), strict=True)
        lines.append(f"{stage.rule:22}" + "".join(f"{n:>{width},}" for n, width in numbers))
    if not over and (working := progress.working_lines(found, time.time())):
        lines += ["", *working]
    if failed := status.failures(found):
        lines += ["", f"Failed jobs: {len(failed)}", *progress.failure_lines(failed)]
    return lines


def _slide_lines(settings: Config) -> list[str]:
    """Slides by what became of them, and the reasons of those that were left out."""
    counts: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    entries: list[tuple[str, str, TileEntry | FeatureEntry]] = []
    try:
        section = settings.cohort
        cohort = read_cohort(section.slides, root=section.root, tasks=settings.tasks)
        buckets = Plan(settings, cohort).buckets
        for path in _manifests(settings.results / "tiles", settings.grids, buckets):
            entries += [("tiles", *item) for item in read_entries(path, TileEntry).items()]
        for path in _manifests(settings.results / "features", settings.encoders, buckets):
            entries += [("features", *item) for item in read_entries(path, FeatureEntry).items()]
    except UserError as error:
        return ["", str(error)]
    for stage, slide, entry in entries:
        counts[f"{stage} {entry.status}"] += 1
        if entry.status != "ok":
            reasons.setdefault(slide, f"{entry.status}: {entry.reason}")
    lines = [""]
    for stage, of in (("tiles", "slides x grids"), ("features", "slides x encoders")):
        found = ", ".join(
            f"{counts[key]:,} {key.split()[1]}" for key in sorted(counts) if key.startswith(stage)
        )
        lines.append(f"{stage} ({of}): {found or 'none yet'}")
    if reasons:
        lines.append(f"Slides left out: {len(reasons)}")
        lines += [
            f"    {slide}: {reason}" for slide, reason in sorted(reasons.items())[:_SLIDES_SHOWN]
        ]
        if len(reasons) > _SLIDES_SHOWN:
            lines.append(f"    ... see {settings.results}/cohort/slides.csv")
    return lines


def _manifests(folder: Path, names: Iterable[str], buckets: Iterable[str]) -> list[Path]:
    paths = (folder / name / f"{bucket}.json" for name in names for bucket in buckets)
    return [path for path in paths if path.exists()]


def _disk_lines(settings: Config) -> list[str]:
    """Names in results/ that are links into the cache take no room of their own."""
    cache = settings.cache_folder
    parts = [
        f"{path.name} {_megabytes(status.disk_usage(path))}"
        for path in sorted(cache.glob("*"))
        if path.is_dir()
    ]
    own = status.disk_usage(settings.results, without=status.inodes(cache))
    return [
        "",
        f"Disk: cache {_megabytes(status.disk_usage(cache))} ({', '.join(parts) or 'empty'}); "
        f"results {_megabytes(own)} beside it",
    ]


def _megabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
