"""Limits on memory and computing time of code that reads untrusted input, and the peak memory of this process.

The kernel enforces `limited`, also while the interpreter is stuck in a library's C code. Too much memory is a
`MemoryError` in Python; in other languages it ends the process (SIGABRT). Too much computing ends the process with
`DEADLINE_SIGNAL`, without asking Python; its asker knows what it was working on. On Linux both bounds hold, on macOS the
one on time.
"""

import contextlib
import re
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

DEADLINE_SIGNAL = int(signal.SIGPROF)
OVERRUN_EXIT_CODES = frozenset({-DEADLINE_SIGNAL, -int(signal.SIGABRT)})


@contextlib.contextmanager
def limited(seconds: float, memory_bytes: int) -> Iterator[None]:
    """Bound what the code inside computes and allocates; costs some 30 microseconds. Inside another, the smaller bound holds.

    Args:
        seconds: Of computing, of all threads together; the process ends after it.
        memory_bytes: Beyond what the process has allocated already.
    """
    outer = signal.getitimer(signal.ITIMER_PROF)[0]
    budget = min(seconds, outer) if outer else seconds
    with memory_limited(memory_bytes):
        signal.setitimer(signal.ITIMER_PROF, budget)
        try:
            yield
        finally:
            used = budget - signal.setitimer(signal.ITIMER_PROF, 0)[0]
            if outer:
                signal.setitimer(signal.ITIMER_PROF, max(outer - used, 0.001))


@contextlib.contextmanager
def memory_limited(memory_bytes: int) -> Iterator[None]:
    """Bound what the code inside allocates, beyond what the process has allocated already."""
    former = limit_memory(memory_bytes)
    try:
        yield
    finally:
        if former is not None:
            resource.setrlimit(resource.RLIMIT_DATA, former)


def renew_deadline(seconds: float) -> None:
    """Restart the time limit, for the next of several pieces of work inside `limited`; does nothing outside."""
    if signal.getitimer(signal.ITIMER_PROF)[0]:
        signal.setitimer(signal.ITIMER_PROF, seconds)


def limit_memory(memory_bytes: int) -> tuple[int, int] | None:
    """Bound what this process, and those that it starts, may allocate from now on.

    Returns:
        The earlier bounds; a smaller one stays. None where the system enforces none.
    """
    if sys.platform != "linux":
        return None
    # RLIMIT_DATA counts private memory that can be written, whether touched or not.
    current = int(Path("/proc/self/statm").read_bytes().split()[5]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = current + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit if soft == resource.RLIM_INFINITY else min(limit, soft), hard))
    return soft, hard


def lift_memory_limit() -> None:
    """Drop the bound that this process got from the one that started it, for work that needs more."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


class TimeLimitError(Exception):
    """The code inside `time_limit` computed for longer than it may."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt pure Python code that computes for more than `seconds`.

    The clock counts this process's computing time, not waiting, so a busy machine does not interrupt good code. It
    works in the main thread, where signals arrive; elsewhere the code runs without a bound.

    Raises:
        TimeLimitError: Out of the code inside, when its time is up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise TimeLimitError

    previous = signal.signal(signal.SIGVTALRM, interrupt)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)


def peak_process_bytes() -> int:
    """Return the peak RAM of this process, its starter not counted."""
    if sys.platform == "linux":
        # Rather than ru_maxrss, in which a process inherits what the one that started it had held.
        status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
        if (match := re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)) is not None:
            return int(match[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
