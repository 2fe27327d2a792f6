"""`her2 doctor`: SLURM, which is needed only on a cluster."""

import os
import shutil
import subprocess
from collections.abc import Iterator

from her2.cli.doctor.base import Check, Finding, Situation


def find(_: Situation) -> Iterator[Finding]:
    """Yield whether jobs could be submitted from here."""
    if shutil.which("sbatch") is None:
        yield Finding("ok", "not found: jobs run on this machine")
        return
    try:
        said = subprocess.run(
            ["sbatch", "--version"], capture_output=True, text=True, timeout=5, check=False
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        said = ""
    inside = os.environ.get("SLURM_JOB_ID")
    where = f", and this is job {inside}" if inside else ""
    yield Finding(
        "ok", f"{said or 'found'}{where}: `--profile profiles/slurm` submits jobs (docs/slurm.md)"
    )


CHECK = Check("SLURM", 60, find)
