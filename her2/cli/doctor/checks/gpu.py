"""`her2 doctor`: the GPUs that a job would see here, with memory, driver and bfloat16."""

import re
import shutil
import subprocess
from collections.abc import Iterator

from her2.cli.doctor.base import Check, Finding, Situation
from her2.core.hardware import cpu_has_bfloat16, gpu_withheld
from her2.encoders.device import NVIDIA_DRIVER


def find(_: Situation) -> Iterator[Finding]:
    """Yield each GPU, or why none is used and what follows from that."""
    import torch

    if gpu_withheld():
        yield Finding(
            "note",
            "SLURM allotted no GPU to this job, so none is used",
            "start it with --gres=gpu:1, or look at a node as a job would: "
            "srun --gres=gpu:1 her2 doctor",
        )
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            own = torch.cuda.get_device_properties(index)
            with torch.cuda.device(index):
                bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            yield Finding(
                "ok",
                f"{own.name}, {own.total_memory / 2**30:.0f} GiB, driver {_driver() or '?'}, "
                f"{'bfloat16' if bf16 else 'no bfloat16: precision auto is float16'}",
            )
        return
    cpu = "bfloat16" if cpu_has_bfloat16() else "no bfloat16"
    slow = f"encoders run on the CPU ({cpu}), about 30 tiles/s per core for a small transformer"
    if NVIDIA_DRIVER.exists():
        yield Finding(
            "note",
            f"there is one (driver {_driver() or '?'}), but torch, built for CUDA "
            f"{torch.version.cuda or 'none'}, cannot use it: {slow}",
            "compare the CUDA version at the top of `nvidia-smi` with that; update the driver or "
            "install torch for it",
        )
        return
    yield Finding("note", f"none; {slow}", "choose a small encoder, or embed on a machine with one")


def _driver() -> str:
    """Return the version of NVIDIA's driver; "" if nobody says it."""
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
        except (OSError, subprocess.SubprocessError):
            return ""
        if said.returncode == 0 and said.stdout.strip():
            return said.stdout.split()[0]
    try:
        found = re.search(r"Module\s+([\d.]+)", NVIDIA_DRIVER.read_text())
    except OSError:
        return ""
    return found[1] if found else ""


CHECK = Check("GPU", 30, find)
