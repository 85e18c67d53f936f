"""The one module through which tests make training fail; inactive unless a test sets the environment variable.

`LORATORY_TEST_FAULT` holds `point=action`, several separated by semicolons. A point is reached by name, and an action
happens on its n-th time with `point#n=action`. Actions: `kill`, `disk_full`, `out_of_memory`, `wait:FILE` (until
it exists), `nan`, `raise`.
"""

import errno
import os
import signal
import time
from collections import Counter
from pathlib import Path

VARIABLE = "LORATORY_TEST_FAULT"

_reached: Counter[str] = Counter()  # visits of each point; counted only while a test sets the variable


class InjectedError(Exception):
    """An error that a test requested."""


def is_armed(point: str) -> bool:
    """Return whether a test requests an action at this point, this time. Counts the visit."""
    return VARIABLE in os.environ and _action(point) is not None


def reached(point: str, path: Path | None = None) -> None:
    """Do what a test requests at this point, with the file or folder at hand; does nothing outside tests."""
    action = _action(point) if VARIABLE in os.environ else None
    if action is None:
        return
    if action == "kill":
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    if action == "disk_full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path or ""))
    if action == "out_of_memory":
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB (injected by a test).")
    if action.startswith("wait:"):
        while not Path(action.removeprefix("wait:")).exists():
            time.sleep(0.01)
    if action == "raise":
        raise InjectedError(f"injected at {point}")


def _action(point: str) -> str | None:
    _reached[point] += 1
    for entry in os.environ[VARIABLE].split(";"):
        name, _, action = entry.partition("=")
        base, _, number = name.partition("#")
        if base == point and (not number or int(number) == _reached[point]):
            return action
    return None
