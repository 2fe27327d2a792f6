"""Stages that compute with torch: which device, precision and threads a job really has."""

import logging
import os
import socket
from functools import cache
from pathlib import Path

import torch

from her2.config import Precision
from her2.core.hardware import allowed_cpus, cpu_has_bfloat16, gpu_withheld

log = logging.getLogger(__name__)

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
"""Is there where the kernel has NVIDIA's driver loaded."""

_claims: list[socket.socket] = []


def pick_device(threads: int) -> torch.device:
    """One CUDA device for this process, else the CPU with `threads` threads (said out loud).

    Only devices that CUDA_VISIBLE_DEVICES leaves visible are considered: SLURM sets it to the GPU
    that it gave the job. A job that it gave none leaves those alone that it can see all the same.
    Of several visible ones, as on a workstation, the first that no other her2 process has taken.
    """
    torch.set_num_threads(max(1, min(threads, allowed_cpus())))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    note = f"; CUDA_VISIBLE_DEVICES={visible!r}" if visible is not None else ""
    usable = torch.cuda.is_available()
    if usable and not gpu_withheld():
        device = torch.device("cuda", _own_gpu())
        torch.cuda.set_device(device)  # or pinned memory opens a context on the first one
        count = torch.cuda.device_count()
        log.info("device: %s (%s of %d%s)", torch.cuda.get_device_name(device), device, count, note)
        return device
    said = f"device: CPU, {torch.get_num_threads()} threads"
    if usable:
        log.warning("%s; SLURM gave this job no GPU, though the node has one: ask for it with the "
                    "resource `gpu: 1`, or set CUDA_VISIBLE_DEVICES", said)  # fmt: skip
    elif _expected(visible):
        log.warning("%s; no usable CUDA device%s, though there is a GPU: look at `nvidia-smi` and "
                    "at torch.version.cuda", said, note)  # fmt: skip
    else:
        log.info("%s; no usable CUDA device%s", said, note)
    return torch.device("cpu")


def _expected(visible: str | None) -> bool:
    """Whether running on the CPU is a surprise: a GPU was given, or the machine has one."""
    if visible is not None:
        return visible.strip() not in ("", "-1", "NoDevFiles")  # the last is old SLURM's for none
    return NVIDIA_DRIVER.exists() and not gpu_withheld()


@cache
def _own_gpu() -> int:
    """The index of the first visible GPU that no other process has taken, now taken by this one."""
    count = torch.cuda.device_count()
    for index in range(count):
        uuid = torch.cuda.get_device_properties(index).uuid
        # A name in Linux's abstract namespace: it needs no file, and goes when the process does.
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0her2-gpu-{uuid}")
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        return index
    log.warning("device: every visible GPU (%d) is in use by another her2 job; sharing one", count)
    return os.getpid() % count


def resolve_precision(wanted: Precision, device: torch.device) -> str:
    """`auto` -> bfloat16 where the hardware has it natively, else float32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if cpu_has_bfloat16() else "float32"
