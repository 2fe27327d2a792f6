"""Cost of the demo: CPU and wall seconds, in total and per rule, and its resulting AUCs.

    python benchmarks/demo.py                   this checkout
    python benchmarks/demo.py OTHER .           two checkouts, side by side
    python benchmarks/demo.py --keep FOLDER     keep the folder of the run, for inspection

Copies the files that git tracks into an empty folder and runs `snakemake --cores 2` there, like a
new user, so nothing is reused from earlier runs. CPU seconds are the user and system time of all
processes of the run. Unlike wall seconds, they hardly change with the load of the machine. The
seconds of a rule are those of its shell and the shell's children, which the shell writes when it
exits; the rest is Snakemake's own.
"""

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

REPOSITORY = Path(__file__).resolve().parents[1]
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
OWN = "Snakemake itself"

# Sourced by every bash that Snakemake starts. A job's command names its rule's log.
ON_EXIT = """\
if [[ ${BASH_EXECUTION_STRING:-} =~ /logs/([a-z_]+)/ ]]; then
    trap '{ echo '"${BASH_REMATCH[1]}"'; times; } > "$HER2_TIMES/$$"' EXIT
fi
"""


@dataclass(frozen=True, slots=True)
class Rule:
    """All jobs of a rule: their number, and their CPU seconds in total."""

    jobs: int
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Cost:
    """One run of the demo; `auc` is encoder -> macro AUC over patients."""

    wall_seconds: float
    cpu_seconds: float
    rules: Mapping[str, Rule]
    auc: Mapping[str, float]


def copy_tracked(checkout: Path, folder: Path) -> None:
    """Copy the files of a checkout that git tracks, in their current state."""
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=checkout, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listing.split("\0")):
        if (checkout / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(checkout / name, folder / name)


def run_demo(checkout: Path, scratch: Path) -> Cost:
    """Run the demo of a checkout in `scratch`/demo, which must not exist.

    Raises:
        RuntimeError: the run failed.
    """
    folder, times = scratch / "demo", scratch / "times"
    for path in (folder, times):
        path.mkdir(parents=True)
    copy_tracked(checkout, folder)
    (scratch / "on-exit.sh").write_text(ON_EXIT)
    environment = {
        "PATH": f"{SNAKEMAKE.parent}:{os.environ['PATH']}",
        "HOME": str(scratch),
        "BASH_ENV": str(scratch / "on-exit.sh"),
        "HER2_TIMES": str(times),
    }
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with (scratch / "snakemake.log").open("w") as log:
        done = subprocess.run(
            [SNAKEMAKE, "--cores", "2"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    wall_seconds = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        tail = (scratch / "snakemake.log").read_text()[-3000:]
        raise RuntimeError(f"{checkout}: the demo failed\n{tail}")
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rules = read_times(times)
    own = cpu_seconds - sum(rule.cpu_seconds for rule in rules.values())
    return Cost(wall_seconds, cpu_seconds, rules | {OWN: Rule(1, own)}, read_auc(folder))


def read_times(folder: Path) -> dict[str, Rule]:
    """Return the jobs and CPU seconds of each rule, the most costly first."""
    seconds: dict[str, list[float]] = {}
    for path in folder.iterdir():
        name, *lines = path.read_text().splitlines()
        # Bash's `times`: a line for the shell and one for its children, each "0m1.234s 0m0.567s".
        found = re.findall(r"(\d+)m([\d.]+)s", " ".join(lines))
        seconds.setdefault(name, []).append(sum(60 * int(m) + float(s) for m, s in found))
    rules = {name: Rule(len(each), sum(each)) for name, each in seconds.items()}
    return dict(sorted(rules.items(), key=lambda item: -item[1].cpu_seconds))


def read_auc(folder: Path) -> dict[str, float]:
    """Return the macro AUC of each encoder at patient level, under the demo's only head."""
    wanted = (
        (pl.col("level") == "patient") & (pl.col("metric") == "auc") & (pl.col("class") == "macro")
    )
    found = {}
    for path in sorted(folder.glob("results/evaluation/score/*/abmil/metrics.parquet")):
        row = pl.read_parquet(path).row(by_predicate=wanted, named=True)
        found[path.parts[-3]] = float(row["value"])
    return found


def print_table(costs: list[Cost]) -> None:
    """Print costs side by side: a line per rule, the totals, then the AUC of every encoder."""
    rules = list(dict.fromkeys(name for cost in costs for name in cost.rules))
    head = ["CPU seconds (jobs)", *(f"checkout {i + 1}" for i in range(len(costs)))]
    print("| " + " | ".join(head) + " |\n" + "| --- " * len(head) + "|")
    for name in rules:
        found = [cost.rules.get(name) for cost in costs]
        cells = [f"{r.cpu_seconds:.1f} ({r.jobs})" if r else "-" for r in found]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("| all | " + " | ".join(f"{c.cpu_seconds:.1f}" for c in costs) + " |")
    print("| wall seconds | " + " | ".join(f"{c.wall_seconds:.1f}" for c in costs) + " |")
    for encoder in dict.fromkeys(name for cost in costs for name in cost.auc):
        cells = [f"{c.auc[encoder]:.3f}" if encoder in c.auc else "-" for c in costs]
        print(f"| AUC of {encoder} | " + " | ".join(cells) + " |")


def main() -> None:
    """Run the demo of each checkout in turn, and print the costs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkouts", type=Path, nargs="*", default=[REPOSITORY])
    parser.add_argument("--keep", type=Path, help="folder for the runs; it must not exist")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="her2-demo-") as temporary:
        folder = options.keep or Path(temporary)
        checkouts = [path.resolve() for path in options.checkouts]
        costs = [run_demo(path, folder / str(i + 1)) for i, path in enumerate(checkouts)]
    print_table(costs)
    if len(costs) == 2:
        first, second = costs
        ratio = second.cpu_seconds / first.cpu_seconds
        print(f"\nThe second takes {ratio:.2f} times the CPU seconds of the first.")


if __name__ == "__main__":
    main()
