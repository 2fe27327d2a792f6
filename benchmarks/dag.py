"""Cost of planning: dry runs of large cohorts, and a run of a finished project.

    python benchmarks/dag.py            every size (two minutes)
    python benchmarks/dag.py --quick    100 and 1,000 slides

A manifest and one small file per slide are generated in a temporary folder. Snakemake treats the
files as slides, and plans every job without running it. Seconds and peak memory are those of the
whole `snakemake` process. "ms per job" is the cost of a job beyond that of the smallest project.
The line below the table tells the overhead of running a job on this machine.
"""

import argparse
import csv
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import chdir
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from her2.cohort.reading import configured_cohort
from her2.config import load_config
from her2.core.stamps import Stamp, short_digest
from her2.pipeline.job_table import planned_jobs
from her2.pipeline.plan import Plan

REPOSITORY = Path(__file__).resolve().parents[1]
SNAKEMAKE = str(Path(sys.executable).with_name("snakemake"))
HEADS = ("mean", "abmil", "multibranch", "dsmil", "transmil")
CLASSES = ("0", "1+", "2+", "3+")


@dataclass(frozen=True, slots=True)
class Size:
    """A project to plan; `limit_seconds` and `limit_mb` limit its cost (None: no limit)."""

    slides: int
    encoders: int
    heads: int
    folds: int
    limit_seconds: float | None = None
    limit_mb: float | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one call of Snakemake: wall seconds, peak resident MB, jobs planned."""

    seconds: float
    peak_mb: float
    jobs: int


SIZES = (
    Size(100, 1, 1, 5),
    Size(1_000, 1, 1, 5, limit_seconds=5),
    Size(100, 10, 5, 25),
    Size(1_000, 10, 5, 25),
    Size(20_000, 10, 5, 25, limit_seconds=60, limit_mb=2_000),
)
FINISHED = Size(1_000, 10, 5, 25, limit_seconds=10)


def make_project(folder: Path, size: Size) -> None:
    """Write a manifest, one small file per slide and a config."""
    slides = folder / "slides"
    slides.mkdir(parents=True)
    with (folder / "slides.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["slide_id", "path", "patient_id", "her2", "site"])
        for index in range(size.slides):
            name = f"s{index:06d}"
            (slides / f"{name}.svs").write_bytes(b"x")
            row = [name, f"slides/{name}.svs", f"p{index:06d}", CLASSES[index % 4], "north"]
            writer.writerow(row)
    encoder = {"source": "random", "model": "timm/resnet18", "mpp": 0.5, "size": 224}
    config = {
        "cohort": {"slides": "slides.csv"},
        "tasks": {
            "score": {"label": "her2", "classes": {c: [c] for c in CLASSES}, "ordinal": True}
        },
        "encoders": {f"encoder{i}": encoder for i in range(size.encoders)},
        "heads": {name: {} for name in HEADS[: size.heads]},
        "folds": {"number": 5, "repeats": size.folds // 5},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def snakemake(folder: Path, *arguments: str) -> tuple[Cost, str]:
    """Run Snakemake in a project.

    Raises:
        RuntimeError: Snakemake failed.
    """
    command = [SNAKEMAKE, "--snakefile", str(REPOSITORY / "Snakefile"), "--cores", "2"]
    command += [*arguments, "--configfile", "config.yaml"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    begin = time.perf_counter()
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        output = process.stdout.read() if process.stdout else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begin
    if process.returncode:
        raise RuntimeError(f"snakemake {' '.join(arguments)}\n{output[-3000:]}")
    total = re.search(r"^total\s+(\d+)\s*$", output, re.MULTILINE)
    return Cost(seconds, usage.ru_maxrss / 1024, int(total[1]) if total else 0), output


def dry_run(folder: Path) -> Cost:
    """Plan every job, and return the cost."""
    return snakemake(folder, "--dry-run", "--quiet", "rules")[0]


def finish(folder: Path) -> None:
    """Make the project look finished: every output exists, all of one time, with current stamps."""
    summary = snakemake(folder, "--detailed-summary")[1]
    rows = [line.split("\t") for line in summary.splitlines() if line.startswith("results/")]
    for name, *_ in rows:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix:
            path.write_text("{}\n")
        else:  # a folder of pictures
            path.mkdir()
    digest = short_digest(folder / "results/cohort/audited.parquet")
    inputs = {row[0]: row[4].split(",") for row in rows}
    with chdir(folder):
        config = load_config(Path("config.yaml"))
        plan = Plan(config, configured_cohort(config, config.cohort.slides, config.cohort.root))
        for job in planned_jobs(plan):
            path = job.stamp(config.results)
            read = [name.removeprefix("results/") for name in inputs[str(path)] if name != "-"]
            stamp = Stamp(job.place, json.loads(job.spec(plan)), dict.fromkeys(read, digest), {})
            path.write_text(json.dumps(asdict(stamp)))
    for name, *_ in rows:
        os.utime(folder / name, ns=(0, 1_700_000_000 * 10**9))


def overhead_ms(folder: Path, jobs: int = 100) -> float:
    """Return the milliseconds in which Snakemake runs a job that does nothing."""
    folder.mkdir()
    outputs = [f"out/{number}" for number in range(jobs)]
    text = f"rule all:\n    input: {outputs!r}\nrule one:\n    output: 'out/{{n}}'\n"
    (folder / "Snakefile").write_text(text + "    shell: ': > {output}'\n")
    command = [SNAKEMAKE, "--cores", "1", "--quiet", "all"]
    seconds = []
    for targets in (["out/0"], ["all"]):
        begin = time.perf_counter()
        subprocess.run([*command, "--", *targets], cwd=folder, check=True, capture_output=True)
        seconds.append(time.perf_counter() - begin)
    return (seconds[1] - seconds[0]) / (jobs - 1) * 1e3


def start_seconds(module: str) -> float:
    """Return the seconds until a stage's module is imported, the lower of two."""
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], cwd=REPOSITORY, check=True)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def row(what: str, size: Size, cost: Cost, ms_per_job: str) -> str:
    """Return a line of the table."""
    held = []
    if size.limit_seconds is not None:
        held.append(f"{size.limit_seconds:g} s")
    if size.limit_mb is not None:
        held.append(f"{size.limit_mb:,.0f} MB")
    return (
        f"| {what} | {size.slides:,} x {size.encoders} x {size.heads} x {size.folds} "
        f"| {cost.jobs:,} | {cost.seconds:.1f} | {cost.peak_mb:,.0f} | {ms_per_job} "
        f"| {' and '.join(held) or '-'} |"
    )


def exceeded(size: Size, cost: Cost) -> bool:
    """Tell whether a cost exceeds the limits of its project."""
    slow = size.limit_seconds is not None and cost.seconds > size.limit_seconds
    return slow or (size.limit_mb is not None and cost.peak_mb > size.limit_mb)


def main() -> int:
    """Print the table; return 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 1,000 slides")
    quick = parser.parse_args().quick
    print(
        "| run | slides x encoders x heads x folds | jobs | seconds | peak MB | ms per job "
        "| limit |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    beyond, base = [], None
    with tempfile.TemporaryDirectory(prefix="her2-dag-") as temporary:
        for number, size in enumerate(s for s in SIZES if not (quick and s.slides > 1_000)):
            folder = Path(temporary) / str(number)
            make_project(folder, size)
            cost = dry_run(folder)
            base = base or cost
            jobs = cost.jobs - base.jobs
            each = f"{(cost.seconds - base.seconds) / jobs * 1e3:.2f}" if jobs > 50 else "-"
            print(row("dry run", size, cost, each), flush=True)
            if exceeded(size, cost):
                beyond.append(size)
        folder = Path(temporary) / "finished"
        make_project(folder, FINISHED)
        finish(folder)
        cost, output = snakemake(folder)
        if "Nothing to be done" not in output:
            raise RuntimeError(f"the finished project still has jobs to run:\n{output[-2000:]}")
        print(row("finished", FINISHED, cost, "-"), flush=True)
        if exceeded(FINISHED, cost):
            beyond.append(FINISHED)
        overhead = overhead_ms(Path(temporary) / "overhead")
    stages = {"tile": "her2.tiling.stage", "train": "her2.mil.stage", "report": "her2.report.build"}
    starts = ", ".join(f"{name} {start_seconds(module):.1f}" for name, module in stages.items())
    print(f"\nSnakemake runs an empty job in {overhead:.0f} ms. Stages start in (s): {starts}")
    for size in beyond:
        print(f"exceeds its limit: {size}", file=sys.stderr)
    return int(bool(beyond))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main())
