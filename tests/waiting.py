"""Waiting for other processes and threads."""

import time
from collections.abc import Callable, Iterable

import psutil

PATIENCE_SECONDS = 300.0  # ends a test that hangs: no limit of what is tested, nor of a busy machine


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for something that happens in another process or thread."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def count_living(pids: Iterable[int]) -> int:
    """Return how many of these processes live on: as they were all seen before, they lived at the same time."""
    return sum(1 for pid in tuple(pids) if _lives(pid))


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
