"""CPU seconds of each stage, from the start of the process to the stage function.

    python benchmarks/startup.py [--repeats 5] [stage ...]

Prints the median of fresh processes that load the command line and the stage's module, and the slow
packages that they import. CPU seconds are used because a busy machine hardly changes them.
"""

import argparse
import statistics
import subprocess
import sys

from her2.cli.stages import STAGES

HEAVY = (
    "torch", "torch._dynamo", "timm", "torchvision", "sklearn", "statsmodels", "scipy", "pandas",
    "polars", "pyarrow", "matplotlib", "zarr", "cv2", "openslide", "tifffile",
)  # fmt: skip
_PROBE = """
import sys, time
import her2.cli.main, {module}
print(time.process_time(), *(name for name in {heavy!r} if name in sys.modules))
"""


def start(stage: str) -> tuple[float, list[str]]:
    """Return the CPU seconds of one start of a stage, and the heavy packages that it loads."""
    code = _PROBE.format(module=STAGES[stage][0].partition(":")[0], heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *loaded = done.stdout.split()
    return float(seconds), loaded


def main() -> None:
    """Print one line per stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("stages", nargs="*", default=[*STAGES])
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    for stage in given.stages:
        starts = [start(stage) for _ in range(given.repeats)]
        print(
            f"{stage:10} {statistics.median(s for s, _ in starts):6.2f} s  {' '.join(starts[0][1])}"
        )


if __name__ == "__main__":
    main()
