"""The seat of a home's one supervisor, even if several hosts share the home and do not see each other's locks.

On one host, the supervisor's lock decides. Between hosts it cannot: Lustre with `localflock` and NFS with `nolock` show
other hosts' locks as free. So the seat is also a numbered file that is created exclusively: only one host gets the next
number. Its holder increments a counter; another host takes the seat if the counter stays the same for long, by its own
clock. File servers show changes after up to 60 seconds (nfs(5), acregmax and acdirmax).
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from loratory.engine.errors import StorageError, explain_os_errors
from loratory.engine.files import read_model, write_atomically
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.liveness import ProcessIdentity

_FOLDER = "supervisor"


@dataclass(frozen=True)
class SeatTimes:
    """How often a holder shows that it lives, and when another host takes its place; in seconds."""

    beat_seconds: float = 10.0
    stale_seconds: float = 150.0
    clock: Callable[[], float] = time.monotonic


class _Record(BaseModel, frozen=True):
    process: ProcessIdentity
    beat: int = 0
    released: bool = False


class _Seat(NamedTuple):
    number: int  # 0 where it was never taken
    record: _Record | None  # None where it cannot be read at present


class SupervisorSeat:
    """Takes and keeps the seat for one process; the caller holds the supervisor's lock of this host."""

    def __init__(self, home: LoratoryHome, times: SeatTimes | None = None) -> None:
        self._folder = home.server / _FOLDER
        self._times = times or SeatTimes()
        self._last_seen: tuple[tuple[int, int], float] | None = None  # number and beat of another host, and since when
        self._number = 0  # that we hold
        self._beat = 0
        self._beaten = 0.0

    def is_free(self) -> bool:
        """Return whether the seat is free; call it regularly, since silence counts from the first call."""
        number, record = _newest(self._folder)
        if number == 0:
            return True
        if record is not None and (record.released or not record.process.is_of_another_host()):
            return True
        # One that cannot be read may just be replaced.
        now, figure = self._times.clock(), (number, record.beat if record is not None else -1)
        if self._last_seen is None or self._last_seen[0] != figure:
            self._last_seen = figure, now
        return now - self._last_seen[1] > self._times.stale_seconds

    def acquire(self) -> bool:
        """Take the seat if it is free; return whether that worked.

        Raises:
            StorageError: If the folder cannot be written.
        """
        number = _newest(self._folder).number + 1
        if not self.is_free() or not self._create(number):
            return False
        if _newest(self._folder).number != number:  # several took and left it meanwhile, and removed older numbers
            self._path(number).unlink(missing_ok=True)
            return False
        self._number, self._beat, self._beaten = number, 0, self._times.clock()
        for path in self._folder.glob("*.json"):
            if _number_of(path) < number:
                path.unlink(missing_ok=True)
        return True

    def renew(self) -> bool:
        """Increment the counter when due; return whether this process still has the seat.

        It does not if another host took it while this one was suspended; this one must then stop supervising.
        """
        now = self._times.clock()
        if now - self._beaten < self._times.beat_seconds:
            return True
        if _newest(self._folder).number != self._number:
            self._number = 0
            return False
        with contextlib.suppress(StorageError):  # on a full disk, nor can another host take it
            self._write(self._beat + 1)
            self._beat, self._beaten = self._beat + 1, now
        return True

    def release(self) -> None:
        """Release the seat at once; does nothing without it."""
        if self._number and _newest(self._folder).number == self._number:
            with contextlib.suppress(StorageError):
                self._write(self._beat + 1, released=True)
        self._number = 0

    def _write(self, beat: int, *, released: bool = False) -> None:
        record = _Record(process=ProcessIdentity.current(), beat=beat, released=released)
        write_atomically(self._path(self._number), record.model_dump_json())

    def _create(self, number: int) -> bool:
        """Create the file of a number; return whether this process did. One that is torn, or being written, is not free."""
        with explain_os_errors("The supervisor's seat cannot be taken", "Check the permissions of LORATORY_HOME."):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                self._path(number).touch(mode=0o600, exist_ok=False)  # exclusive, on NFS too
            except FileExistsError:
                return False
            self._path(number).write_text(_Record(process=ProcessIdentity.current()).model_dump_json())
        return True

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.json"


def seat_holder(home: LoratoryHome) -> ProcessIdentity | None:
    """Return the last known holder of the seat; None if it was released or never taken."""
    record = _newest(home.server / _FOLDER).record
    return None if record is None or record.released else record.process


def _newest(folder: Path) -> _Seat:
    number = max(map(_number_of, folder.glob("*.json")), default=0)
    return _Seat(number, read_model(folder / f"{number}.json", _Record) if number else None)


def _number_of(path: Path) -> int:
    return int(path.stem) if path.stem.isdecimal() else 0
