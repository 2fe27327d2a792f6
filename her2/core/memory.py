"""How the C library handles freed memory."""

import ctypes

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
