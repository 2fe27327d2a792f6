"""Stages that compute with torch: which device, precision and threads a job really has."""

import logging
import os
from pathlib import Path

import torch

from her2.config import Precision

log = logging.getLogger(__name__)

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def allowed_cpus() -> int:
    """CPUs this process may use: its affinity, which SLURM and cgroup sets narrow."""
    return len(os.sched_getaffinity(0))


def pick_device(threads: int) -> torch.device:
    """The first visible CUDA device, else the CPU with `threads` threads (said out loud)."""
    torch.set_num_threads(max(1, min(threads, allowed_cpus())))
    if torch.cuda.is_available():
        device = torch.device("cuda", 0)
        log.info("device: %s", torch.cuda.get_device_name(device))
        return device
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    note = f" (CUDA_VISIBLE_DEVICES={visible!r})" if visible is not None else ""
    log.info("device: CPU, %d threads; no usable CUDA device%s", torch.get_num_threads(), note)
    return torch.device("cpu")


def resolve_precision(wanted: Precision, device: torch.device) -> str:
    """`auto` -> bfloat16 where the hardware has it natively, else float32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if _cpu_has_bfloat16() else "float32"


def _cpu_has_bfloat16() -> bool:
    """From the kernel's list of CPU features; torch has no public question for it."""
    try:
        with Path("/proc/cpuinfo").open(encoding="ascii", errors="ignore") as stream:
            flags = next((line.split() for line in stream if line.startswith("flags")), [])
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(flags))
