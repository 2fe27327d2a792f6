"""Before torch is loaded: the CPUs of this job's allocation, and whether bfloat16 is native.

Loading torch takes seconds. A job whose products are all in the cache asks here instead.
"""

import ctypes
import importlib.util
import os
import re
from pathlib import Path
from typing import Literal

_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Of x86 (`flags`) and of ARM (`Features`) in /proc/cpuinfo."""
_COMPUTE_CAPABILITY_MAJOR = 75
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR of the CUDA driver API."""

SPIN_COUNT = 1000
"""Turns that a thread waits busily for the others of its job before it sleeps (GOMP_SPINCOUNT).

Tens of microseconds: longer than the gap between two operations of a network, far shorter than the
time that the kernel gives another process. GNU OpenMP's own 300,000 turns are milliseconds: beside
another busy process the threads that wait burn the very time that the late one needs.
"""

Accelerator = Literal["none", "bfloat16", "float16"]
"""No usable CUDA device, or the half precision that the first one has natively."""


def allowed_cpus() -> int:
    """Return the number of CPUs that this process may use, never the machine's number of cores.

    It is the least of the affinity and the quota of the cgroup (a container), as joblib finds
    them, and of SLURM's allocation.
    """
    import joblib  # takes a tenth of a second, which most commands need not spend

    allowed: int = joblib.cpu_count()
    allotted = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return max(1, min(allowed, int(allotted))) if allotted.isdigit() else allowed


def bound_busy_waiting() -> None:
    """Let the threads of this process and its children wait busily for a moment only.

    OpenMP reads these settings when torch is loaded, so this has to come before. What a user has
    set stays.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


def cpu_has_bfloat16() -> bool:
    """From the kernel's list of CPU features; torch has no public question for it."""
    try:
        with Path("/proc/cpuinfo").open(encoding="ascii", errors="ignore") as stream:
            line = next((line for line in stream if line.startswith(("flags", "Features"))), "")
    except OSError:
        return False
    return bool(_BF16_FLAGS & set(line.split()))


def gpu_withheld() -> bool:
    """Whether this is a SLURM job that was given no GPU: it leaves those of the node alone."""
    given = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE")
    hidden = "CUDA_VISIBLE_DEVICES" not in os.environ
    return "SLURM_JOB_ID" in os.environ and hidden and not any(map(os.environ.get, given))


def accelerator() -> Accelerator | None:
    """What torch would find, without loading it; None: only torch can tell.

    Asks the CUDA driver (cuInit, cuDeviceGetCount: they honour CUDA_VISIBLE_DEVICES) and reads
    for which CUDA torch was built from its version file.
    """
    built_for = _torch_cuda()
    if built_for is None:
        return None
    if built_for == 0 or gpu_withheld():
        return "none"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "none"
    count, version, device, major = (ctypes.c_int() for _ in range(4))
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or count.value == 0:
        return "none"
    if driver.cuDriverGetVersion(ctypes.byref(version)) or version.value // 1000 < built_for:
        return None  # an old driver may still do, by forward compatibility
    if driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetAttribute(
        ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device
    ):
        return None
    return "bfloat16" if major.value >= 8 else "float16"


def auto_precision() -> str | None:
    """What `precision: auto` becomes here, without loading torch; None: only torch can tell."""
    match accelerator():
        case None:
            return None
        case "none":
            return "bfloat16" if cpu_has_bfloat16() else "float32"
        case half:
            return half


def _torch_cuda() -> int | None:
    """Major version of CUDA that torch was built for, 0 for none; None when it does not say."""
    found = importlib.util.find_spec("torch")  # finds it, runs nothing of it
    if found is None or found.origin is None:
        return None
    try:
        text = Path(found.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    hip = re.search(r"^hip\b[^=]*=\s*(.+)$", text, re.MULTILINE)
    cuda = re.search(r"^cuda\b[^=]*=\s*(?:None|'(\d+)[^']*')", text, re.MULTILINE)
    if cuda is None or (hip is not None and hip[1].strip() != "None"):
        return None
    return int(cuda[1] or 0)
