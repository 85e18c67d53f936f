"""Disk use of each person of a lab: measured every few minutes, saved once a day, summed by week."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from datetime import date, datetime

from pydantic import BaseModel, ConfigDict

from engine.errors import StorageError
from engine.files import read_models, write_atomically
from engine.paths import LoratoryHome
from engine.runs.disk import DiskUse, disk_use
from engine.runs.usage import Week

_FILE = "disk.jsonl"
_KEPT_DAYS = 400

_log = logging.getLogger(__name__)


class DiskSample(BaseModel):
    """Bytes that a person had on a day."""

    model_config = ConfigDict(frozen=True)

    day: date
    owner: str
    runs: int
    uploads: int
    exports: int
    models: int = 0
    cache: int = 0
    transfers: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.runs + self.uploads + self.exports + self.models + self.cache + self.transfers

    @property
    def week(self) -> Week:
        """Of its day, as ISO 8601 numbers it."""
        return Week(*self.day.isocalendar()[:2])


class DiskSamples:
    """Measures people's folders; one for a server.

    Args:
        owners: Lists whose folders.
    """

    def __init__(
        self, home: LoratoryHome, owners: Callable[[], Iterable[str]], clock: Callable[[], float] = time.time
    ) -> None:
        self._home = home
        self._owners = owners
        self._clock = clock
        self._path = home.server / _FILE
        self._lock = threading.Lock()  # one measurement at a time
        self._newest: Mapping[str, DiskUse] = {}

    def measure(self) -> Mapping[str, DiskUse]:
        """Measure the folders of all people, keep a sample of those who have none of today, and return the measures.

        A file that cannot be written is logged: the measures are still right.
        """
        with self._lock:
            newest = {owner: disk_use(self._home, owner) for owner in sorted(set(self._owners()))}
            self._newest = newest
            try:
                self._keep(newest)
            except StorageError as error:
                _log.error("The disk use of today could not be saved: %s", error)
        return newest

    def newest(self, owner: str) -> DiskUse | None:
        """Return the last measure of a person; None before the first."""
        return self._newest.get(owner)

    def by_week(self) -> Mapping[tuple[str, Week], int]:
        """Return the bytes of each person and week: the last sample of a week, and for this week the last measure."""
        weeks = {
            (one.owner, one.week): one.total
            for one in sorted(read_models(self._path, DiskSample), key=lambda one: one.day)
        }
        week = Week(*self._today().isocalendar()[:2])
        return weeks | {(owner, week): use.total for owner, use in self._newest.items()}

    def _keep(self, newest: Mapping[str, DiskUse]) -> None:
        today, samples = self._today(), read_models(self._path, DiskSample)
        owners = {one.owner for one in samples if one.day == today}
        more = [DiskSample(day=today, **asdict(use)) for owner, use in newest.items() if owner not in owners]
        if more:
            recent = [one for one in samples if (today - one.day).days < _KEPT_DAYS]
            lines = "".join(f"{one.model_dump_json()}\n" for one in (*recent, *more))
            write_atomically(self._path, lines, makes_folder=True)

    def _today(self) -> date:
        return datetime.fromtimestamp(self._clock()).date()
