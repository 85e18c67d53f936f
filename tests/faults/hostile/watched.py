"""An inspector under attack: how long it takes to answer, what its processes hold, and how others fare meanwhile."""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from engine.errors import EngineError
from engine.inspector.session import Inspector

ANSWERED_WITHIN_SECONDS = 10.0
OTHERS_WAIT_AT_MOST_SECONDS = 2.0
PEAK_BYTES = 2_000_000_000


class Attack(NamedTuple):
    """What came of one hostile question."""

    message: str  # the error, or what the answer says
    seconds: float
    peak_bytes: int  # of all processes of the inspector together, at one time
    waited_seconds: float  # the longest that a good question beside it took


def attack(inspector: Inspector, hostile: Callable[[], str], good: Callable[[], None]) -> Attack:
    """Ask something hostile, and good questions for as long as it is not answered, one at least."""
    answers: list[tuple[str, float]] = []
    started = time.monotonic()

    def ask() -> None:
        try:
            message = hostile()
        except EngineError as error:
            message = str(error)
        answers.append((message, time.monotonic() - started))

    asking = threading.Thread(target=ask, daemon=True)
    done = threading.Event()
    peaks: list[int] = [0]

    def watch() -> None:
        while not done.is_set():
            peaks.append(sum(map(_resident_bytes, inspector.pids)))
            done.wait(0.02)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    asking.start()
    waited = 0.0
    while not waited or asking.is_alive():
        before = time.monotonic()
        good()
        waited = max(waited, time.monotonic() - before)
        asking.join(0.05)
    done.set()
    watching.join()
    message, seconds = answers[0]
    return Attack(message, seconds, max(peaks), waited)


def require_survived(came: Attack) -> None:
    """Fail where the attack had any effect on others; on a machine with more to do than it has cores, all takes longer."""
    slowdown = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert came.seconds < ANSWERED_WITHIN_SECONDS * slowdown
    assert came.peak_bytes < PEAK_BYTES
    assert came.waited_seconds < OTHERS_WAIT_AT_MOST_SECONDS * slowdown


def _resident_bytes(pid: int) -> int:
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024
    return 0


def wait_until_calm(inspector: Inspector, good: Callable[[], None]) -> None:
    """Wait until all data processes answer: what an earlier attack ended has then started again."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        good()
        if inspector._data.ready == len(inspector._data.pids):
            return
        time.sleep(0.05)
