"""The one place where tests can make training break; inactive unless a test sets the environment variable.

`LORATORY_TEST_FAULT` holds `place=action`, several separated by semicolons. A place is reached by name, and an action
happens on its n-th time with `place#n=action`. Actions: `kill`, `disk_full`, `out_of_memory`, `wait:FILE` (until
it exists), `nan`, `raise`.
"""

import errno
import os
import signal
import time
from collections import Counter
from pathlib import Path

VARIABLE = "LORATORY_TEST_FAULT"

_reached: Counter[str] = Counter()  # how often each place was passed; counted only while a test asks for it


class InjectedError(Exception):
    """What a test asked for."""


def is_armed(place: str) -> bool:
    """Whether a test wants something at this place, this time. Counts the visit."""
    return VARIABLE in os.environ and _action(place) is not None


def reached(place: str, path: Path | None = None) -> None:
    """Say that training came to `place`, with the file or folder at hand; does nothing outside tests."""
    action = _action(place) if VARIABLE in os.environ else None
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
        raise InjectedError(f"injected at {place}")


def _action(place: str) -> str | None:
    _reached[place] += 1
    for entry in os.environ[VARIABLE].split(";"):
        name, _, action = entry.partition("=")
        base, _, number = name.partition("#")
        if base == place and (not number or int(number) == _reached[place]):
            return action
    return None
