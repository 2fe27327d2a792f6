"""The memory that a process may use, and how the C library handles freed memory."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

# <malloc.h>
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 32 << 20
"""Size in bytes from which glibc accepts no threshold, so that such blocks are always returned."""


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for what is allocated next.

    glibc returns blocks of some megabytes to the kernel, which clears them page by page when they
    are needed again: in every batch of a small network, a tenth of the CPU time of embedding and
    pre-training. The peak of a process hardly changes. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_MMAP_THRESHOLD, _LARGEST)


def available_bytes() -> int:
    """Return how much more memory this process can use.

    The least of what the machine has free, the limits of the control groups that the process is in
    (containers, SLURM) and SLURM's allocation on this node.
    """
    found = [_meminfo_bytes("MemAvailable")]
    found += [limit - used for limit, used in _control_groups()]
    allotted = os.environ.get("SLURM_MEM_PER_NODE", "")
    if allotted.isdigit() and int(allotted):
        own = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        found.append((int(allotted) << 20) - own * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(found))


def _meminfo_bytes(name: str) -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def _control_groups() -> Iterator[tuple[int, int]]:
    """Yield limit and use, in bytes, of each control group of this process that has a limit.

    Files that can be dropped from memory are not in use.
    """
    own = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    for line in own:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup", controllers)
        names = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if controllers
            else ("memory.max", "memory.current", "inactive_file")
        )
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            try:
                limit = (folder / names[0]).read_text(encoding="ascii").strip()
                used = int((folder / names[1]).read_text(encoding="ascii"))
                stat = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
            except OSError:  # the root group, or a folder that a container hides
                continue
            dropped = sum(int(one.split()[1]) for one in stat if one.split()[0] == names[2])
            if limit.isdigit():
                yield int(limit), used - dropped
