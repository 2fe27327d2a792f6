"""Hardware queries without torch: the job's CPUs, its GPU, and native bfloat16.

Loading torch takes seconds, which a job whose products are all in the cache need not spend.
"""

import ctypes
import importlib.util
import os
import re
from pathlib import Path
from typing import Literal

_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""CPU features in /proc/cpuinfo, of x86 (`flags`) and ARM (`Features`)."""
_COMPUTE_CAPABILITY_MAJOR = 75
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR of the CUDA driver API."""

SPIN_COUNT = 5000
"""Spins before a waiting thread sleeps (GOMP_SPINCOUNT).

Some hundred microseconds: longer than the gap between two operations of a network, shorter than
the time slice of another process. GNU OpenMP's default of 300,000 spins takes milliseconds: beside
another busy process, the waiting threads then use up the CPU time that the late one needs.
"""

Accelerator = Literal["none", "bfloat16", "float16"]
"""`none` without a usable CUDA device, else the half precision native to the first one."""


def allowed_cpus() -> int:
    """Return the number of CPUs that this process may use, not the machine's number of cores.

    These are the affinity and the cgroup quota, as joblib finds them, and SLURM's allocation.
    """
    import joblib  # takes a tenth of a second, which most commands need not spend

    allowed: int = joblib.cpu_count()
    allotted = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return max(1, min(allowed, int(allotted))) if allotted.isdigit() else allowed


def bound_busy_waiting() -> None:
    """Limit how long threads of this process and its children spin while they wait.

    OpenMP reads this when torch is loaded, so call it first. A user's own settings are kept.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


def cpu_has_bfloat16() -> bool:
    """Return True if the kernel lists bfloat16 for this CPU; torch has no public query for it."""
    try:
        with Path("/proc/cpuinfo").open(encoding="ascii", errors="ignore") as stream:
            line = next((line for line in stream if line.startswith(("flags", "Features"))), "")
    except OSError:
        return False
    return bool(_BF16_FLAGS & set(line.split()))


def gpu_withheld() -> bool:
    """Return True in a SLURM job without a GPU, which must not use those of the node."""
    given = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE")
    hidden = "CUDA_VISIBLE_DEVICES" not in os.environ
    return "SLURM_JOB_ID" in os.environ and hidden and not any(map(os.environ.get, given))


def accelerator() -> Accelerator | None:
    """Return what torch would find, without loading it; None if only torch can tell.

    The CUDA driver is asked (cuInit and cuDeviceGetCount respect CUDA_VISIBLE_DEVICES), and the
    CUDA version that torch was built for is read from torch's version file.
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
        return None  # an old driver may still work, by forward compatibility
    if driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetAttribute(
        ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device
    ):
        return None
    return "bfloat16" if major.value >= 8 else "float16"


def auto_precision() -> str | None:
    """Return what `precision: auto` means here, without torch; None if only torch can tell."""
    match accelerator():
        case None:
            return None
        case "none":
            return "bfloat16" if cpu_has_bfloat16() else "float32"
        case half:
            return half


def _torch_cuda() -> int | None:
    """Return the major CUDA version torch was built for: 0 for none, None if unknown."""
    found = importlib.util.find_spec("torch")  # does not run it
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
