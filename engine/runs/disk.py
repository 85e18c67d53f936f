"""Disk space of a lab: what each person uses, whether there is room for more, and which models have to stay."""

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime

from pydantic import BaseModel

from loratory.engine.accounts.lab import read_settings
from loratory.engine.accounts.limits import LabLimits, is_lab
from loratory.engine.errors import EngineError, StorageError
from loratory.engine.files import read_models, write_atomically
from loratory.engine.hardware.device_job import models_in_use
from loratory.engine.models.cache_space import ModelUse
from loratory.engine.models.catalog import find_in_catalog
from loratory.engine.paths import LoratoryHome
from loratory.engine.quantities import size
from loratory.engine.runs.provenance import read_provenance
from loratory.engine.runs.store import RunStore, folder_size_bytes, list_owners
from loratory.engine.runs.usage import Week, week_of

_GB = 10**9
_WARNED_FROM = 0.85  # of the quota
_FLOORS_WARNED_FROM = 2.0  # of the space that stays free


@dataclass(frozen=True)
class DiskUse:
    """Bytes that one person has in a lab."""

    owner: str
    parts: Mapping[str, int]  # by what they are of; what has none is left out

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.parts.values())


def disk_use(home: LoratoryHome, owner: str) -> DiskUse:
    """Measure a person's folders; slow for thousands of files."""
    own = home.for_person(owner)
    folders = {
        "runs": own.own_runs, "uploads": own.uploads, "exports": own.exports, "own models": own.own_models,
        "sets": own.datasets, "images": own.media, "cache": own.cache, "transfers": own.transfers,
    }  # fmt: skip
    sizes = {name: folder_size_bytes(folder) for name, folder in folders.items()}
    return DiskUse(owner, {name: bytes_ for name, bytes_ in sizes.items() if bytes_})


def free_bytes(home: LoratoryHome) -> int:
    """Return the free space of the disk that a home is on."""
    return shutil.disk_usage(home.root).free


def require_disk_space(home: LoratoryHome, owner: str, more_bytes: int = 0) -> None:
    """With accounts, refuse so many more bytes (0 where unknown) if the disk or the person's quota is full.

    Raises:
        StorageError: If it exceeds the person's quota, or leaves less free than the lab keeps.
    """
    limits = _limits(home)
    if limits is None:
        return
    free = free_bytes(home)
    if free - more_bytes < limits.free_disk_gb * _GB:
        need = f", and {_gb(more_bytes)} GB are needed" if more_bytes else ""
        raise StorageError(
            f"The disk has {_gb(free)} GB free{need}; the lab keeps {limits.free_disk_gb:g} GB free.",
            "Delete runs, uploads or exports that are no longer needed, or ask an admin for space.",
        )
    room = _room(home, owner, limits)
    if room is not None and (more_bytes > room.bytes or room.bytes <= 0):
        need = f"; {size(more_bytes)} more are needed" if more_bytes else ""
        raise StorageError(f"{room.use}{need}.", FREE_SPACE)


FREE_SPACE = "Delete runs, uploads, exports, sets or own models that you no longer need."
_SHARE_OF_TIME = 20  # measuring thousands of files takes long: a twentieth of the time at most


@dataclass(frozen=True)
class DiskRoom:
    """What a person may still store."""

    bytes: float  # below zero where it is more than that already
    use: str  # such as: You use 1.9 GB of 2.0 GB (runs 1.8 GB, uploads 100 MB)


class QuotaWatch:
    """Follows a person's disk quota from the process that writes their checkpoints; needs `lab.yaml`, not the accounts."""

    def __init__(self, home: LoratoryHome, owner: str) -> None:
        self._home = home
        self._owner = owner
        self._room: DiskRoom | None = None
        self._measure_from = float("-inf")

    def room(self, needed_bytes: float) -> DiskRoom | None:
        """Return what is left, as measured just now where that may not be enough; None where there is no limit."""
        began = time.monotonic()
        if self._room is None or self._room.bytes < needed_bytes or began >= self._measure_from:
            try:
                limits = _limits(self._home)
                self._room = None if limits is None else _room(self._home, self._owner, limits)
            except EngineError as error:  # lab.yaml is damaged: what was last known holds
                print(error, flush=True)
            now = time.monotonic()
            self._measure_from = now + _SHARE_OF_TIME * (now - began)
        return self._room

    def count(self, bytes_: float) -> None:
        """Count bytes that were written since, or deleted where negative."""
        if self._room is not None:
            self._room = replace(self._room, bytes=self._room.bytes - bytes_)


def _limits(home: LoratoryHome) -> LabLimits | None:
    return read_settings(home).limits if is_lab(home) else None


def _room(home: LoratoryHome, owner: str, limits: LabLimits) -> DiskRoom | None:
    if limits.disk_gb_per_person is None:
        return None
    quota, use = limits.disk_gb_per_person * _GB, disk_use(home, owner)
    parts = ", ".join(f"{name} {size(bytes_)}" for name, bytes_ in use.parts.items())
    text = f"You use {size(use.total)} of {size(quota)}" + (f" ({parts})" if parts else "")
    return DiskRoom(quota - use.total, text)


def disk_warning(use: DiskUse, limits: LabLimits, free: int) -> str:
    """Return a warning before starts and uploads are refused; empty while there is enough space."""
    quota = limits.disk_gb_per_person
    sentences = []
    if quota is not None and use.total >= _WARNED_FROM * quota * _GB:
        effect = ", so" if use.total >= quota * _GB else f". At {quota:g} GB,"
        sentences.append(
            f"You use {_gb(use.total)} of {quota:g} GB of disk space{effect} starts and uploads are refused: "
            "delete runs, uploads or exports that you no longer need."
        )
    if free < _FLOORS_WARNED_FROM * limits.free_disk_gb * _GB:
        below = "so" if free < limits.free_disk_gb * _GB else f"and below {limits.free_disk_gb:g} GB"
        sentences.append(f"The disk of the lab has {_gb(free)} GB free, {below} no run starts.")
    return " ".join(sentences)


def _gb(count: int) -> str:
    return f"{count / _GB:,.1f}"


_FILE = "disk.jsonl"
_KEPT_DAYS = 400

_log = logging.getLogger(__name__)


class DiskSample(BaseModel, frozen=True):
    """What a person had on a day."""

    day: date
    use: DiskUse


class DiskSamples:
    """Measures the folders of the people that `owners` lists; one for a server."""

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
        samples = sorted(read_models(self._path, DiskSample), key=lambda sample: sample.day)
        weeks = {(sample.use.owner, Week(*sample.day.isocalendar()[:2])): sample.use.total for sample in samples}
        week = week_of(self._clock())
        return weeks | {(owner, week): use.total for owner, use in self._newest.items()}

    def _keep(self, newest: Mapping[str, DiskUse]) -> None:
        today, samples = self._today(), read_models(self._path, DiskSample)
        owners = {sample.use.owner for sample in samples if sample.day == today}
        more = [DiskSample(day=today, use=use) for owner, use in newest.items() if owner not in owners]
        if more:
            recent = [sample for sample in samples if (today - sample.day).days < _KEPT_DAYS]
            lines = "".join(f"{sample.model_dump_json()}\n" for sample in (*recent, *more))
            write_atomically(self._path, lines, makes_folder=True)

    def _today(self) -> date:
        return datetime.fromtimestamp(self._clock()).date()


def model_uses(home: LoratoryHome) -> Mapping[str, ModelUse]:
    """Return the use of each model by its id on the Hub, read from every run; milliseconds for a hundred of them.

    Other work of the present counts as need alone, as `owner/purpose`. A run whose state cannot be read needs its model.
    """
    uses: dict[str, ModelUse] = {}
    for owner in list_owners(home):
        runs = []
        with contextlib.suppress(EngineError, OSError):  # a mount that is gone
            runs = RunStore(home, owner).list()
        for run in runs:
            provenance = read_provenance(run.folder)
            if provenance.model_source is None:
                continue
            is_over = False
            with contextlib.suppress(EngineError):
                is_over = run.folder.read_state().is_final
            use = uses.get(provenance.model_source, ModelUse())
            needed_by = use.needed_by if is_over else (*use.needed_by, f"{owner}/{run.id}")
            uses[provenance.model_source] = ModelUse(max(use.last, provenance.created), use.runs + 1, needed_by)
    for owner, name, purpose in _needed_now(home):
        use = uses.get(name, ModelUse())
        uses[name] = use._replace(needed_by=(*use.needed_by, f"{owner}/{purpose}"))
    return uses


def models_needed_by(runs: RunStore) -> set[str]:
    """Return the ids on the Hub of the models that one person's runs need, and their other present work."""
    present = [run for run in runs.list() if not run.folder.read_state().is_final]
    sources = {read_provenance(run.folder).model_source for run in present}
    now = {name for owner, name, _ in _needed_now(runs.home) if owner == runs.owner}
    return {source for source in sources if source} | now


def _needed_now(home: LoratoryHome) -> Iterator[tuple[str, str, str]]:
    for work in models_in_use(home):
        entry = find_in_catalog(work.model)
        yield work.owner, entry.hub_id if entry is not None else work.model.strip(), work.purpose
