"""Bound the size of what the server's folder collects: logs, keys of starts, old leases."""

import contextlib
import time
from collections.abc import Callable

from engine.hardware.lease import LeaseBook
from engine.paths import LoratoryHome
from engine.processes.spawn import cap_log
from engine.runs.store import KEYS_FOLDER, RUN_ID

_LOOK_SECONDS = 60.0
_SWEEP_SECONDS = 3600.0
_LOG_BYTES = 5_000_000  # of each log of a helper process, which may live for weeks
_KEY_WAITS_SECONDS = 24 * 3600.0  # for its run, which is made a moment after it


class Housekeeping:
    """Cuts logs and removes what refers to nothing any more.

    Args:
        home: The Loratory home.
        clock: Monotonic seconds.
    """

    def __init__(self, home: LoratoryHome, clock: Callable[[], float] = time.monotonic) -> None:
        self._home = home
        self._clock = clock
        self._looked = self._swept = float("-inf")

    def tick(self) -> None:
        """Do what is due; costs nothing in between."""
        now = self._clock()
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            for log in self._home.server.glob("*.log"):
                cap_log(log, _LOG_BYTES)
        if now - self._swept >= _SWEEP_SECONDS:
            self._swept = now
            self._sweep_keys()
            LeaseBook(self._home).sweep()

    def _sweep_keys(self) -> None:
        """Forget keys whose run was deleted; a request that comes back with one of them starts another run anyway."""
        runs = {path.name for path in self._home.runs.glob("*/*") if RUN_ID.fullmatch(path.name)}
        for key in (self._home.server / KEYS_FOLDER).glob("*"):
            with contextlib.suppress(OSError):
                is_old = time.time() - key.stat().st_mtime > _KEY_WAITS_SECONDS
                if is_old and key.read_text(encoding="ascii", errors="replace") not in runs:
                    key.unlink(missing_ok=True)
