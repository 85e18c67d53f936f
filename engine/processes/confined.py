"""Hard bounds on code that reads what strangers wrote: they hold where the interpreter is stuck in a library's C code.

The kernel keeps them. Too much memory is a `MemoryError` in Python; in other languages it ends the process (SIGABRT). Too
much computing ends the process with `DEADLINE_SIGNAL`, without asking Python; whoever asked that process knows what it
was working on. On Linux both bounds hold, on macOS the one on time, on Windows none.
"""

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import resource

DEADLINE_SIGNAL = int(getattr(signal, "SIGPROF", 0))
OVERRUN_EXIT_CODES = frozenset({-DEADLINE_SIGNAL, -int(signal.SIGABRT)}) if DEADLINE_SIGNAL else frozenset[int]()


@contextlib.contextmanager
def confined(seconds: float, memory_bytes: int) -> Iterator[None]:
    """Bound what the code inside computes and allocates; costs some 30 microseconds. Inside another, it adds no bound.

    Args:
        seconds: Of computing, of all threads together; the process ends after it.
        memory_bytes: Beyond what the process has allocated already.
    """
    if not DEADLINE_SIGNAL or signal.getitimer(signal.ITIMER_PROF)[0]:
        yield
        return
    with _headroom(memory_bytes):
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)


def limit_memory(memory_bytes: int) -> None:
    """Bound what this process may allocate from now on, for good."""
    allocated = _allocated_bytes()
    if allocated is not None:
        limit = _within_hard_limit(allocated + memory_bytes)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


@contextlib.contextmanager
def _headroom(memory_bytes: int) -> Iterator[None]:
    allocated = _allocated_bytes()
    if allocated is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_within_hard_limit(allocated + memory_bytes), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _within_hard_limit(wanted: int) -> int:
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def _allocated_bytes() -> int | None:
    """What RLIMIT_DATA counts: private memory that can be written, whether touched or not; None where it is not enforced."""
    if sys.platform != "linux":
        return None
    pages = int(Path("/proc/self/statm").read_bytes().split()[5])
    return pages * resource.getpagesize()
