"""`her2 doctor`: Python, her2 and Snakemake."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from her2 import __version__
from her2.cli.doctor.base import Check, Finding, Situation
from her2.core.hardware import allowed_cpus


def find(_: Situation) -> Iterator[Finding]:
    """Yield the versions, and what a run cannot do without."""
    yield Finding(
        "ok",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}, "
        f"{allowed_cpus()} CPUs for this process; her2 {__version__}",
    )
    try:
        yield Finding("ok", f"Snakemake {version('snakemake')}")
    except PackageNotFoundError:
        yield Finding("bad", "Snakemake is not installed", "install her2 again, as README.md says")


CHECK = Check("Python", 10, find)
