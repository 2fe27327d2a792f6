"""Stages that compute with torch: the device, precision and threads that a job has."""

import logging
import os
import socket
from functools import cache
from pathlib import Path

import torch

from her2.config import Precision
from her2.core.hardware import allowed_cpus, cpu_has_bfloat16, gpu_withheld
from her2.core.memory import keep_freed_memory

log = logging.getLogger(__name__)

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
"""A file that exists where the kernel has loaded NVIDIA's driver."""

_claims: list[socket.socket] = []


def pick_device(threads: int) -> torch.device:
    """Pick a CUDA device for this process, or the CPU with `threads` threads, and log which.

    Only devices visible under CUDA_VISIBLE_DEVICES are considered; SLURM sets it to the GPU that it
    allotted to the job. A SLURM job without an allotted GPU uses none, even where it can see one.
    Where several are visible, as on a workstation, the first one that no other her2 process has
    claimed is picked.
    """
    torch.set_num_threads(max(1, min(threads, allowed_cpus())))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    note = f"; CUDA_VISIBLE_DEVICES={visible!r}" if visible is not None else ""
    usable = torch.cuda.is_available()
    if usable and not gpu_withheld():
        device = torch.device("cuda", _own_gpu())
        torch.cuda.set_device(device)  # else pinned memory would open a context on the first GPU
        count = torch.cuda.device_count()
        log.info("device: %s (%s of %d%s)", torch.cuda.get_device_name(device), device, count, note)
        return device
    keep_freed_memory()
    cpu = f"device: CPU, {torch.get_num_threads()} threads"
    if usable:
        log.warning("%s; SLURM allotted no GPU to this job, though the node has one. Request it "
                    "with the resource `gpu: 1`, or set CUDA_VISIBLE_DEVICES", cpu)  # fmt: skip
    elif _expected(visible):
        log.warning("%s; no usable CUDA device%s, though there is a GPU. Compare the driver's "
                    "version in `nvidia-smi` with torch.version.cuda", cpu, note)  # fmt: skip
    else:
        log.info("%s; no usable CUDA device%s", cpu, note)
    return torch.device("cpu")


def _expected(visible: str | None) -> bool:
    """Tell whether a GPU was to be expected: the job was allotted one, or the machine has one."""
    if visible is not None:
        return visible.strip() not in ("", "-1", "NoDevFiles")  # old SLURM: NoDevFiles for no GPU
    return NVIDIA_DRIVER.exists() and not gpu_withheld()


@cache
def _own_gpu() -> int:
    """Claim the first visible GPU that no other her2 process has claimed, and return its index.

    Where all are claimed, one is shared.
    """
    count = torch.cuda.device_count()
    for index in range(count):
        uuid = torch.cuda.get_device_properties(index).uuid
        # A name in Linux's abstract namespace needs no file and vanishes with the process.
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
    """Return the precision for a device; `auto` is bfloat16 where the hardware has it natively.

    Elsewhere `auto` is float16 on a GPU and float32 on a CPU.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if cpu_has_bfloat16() else "float32"
