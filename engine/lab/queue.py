"""The queue of a lab for each person: everyone's devices and turns, but only their own runs by name."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import psutil

from loratory.engine.accounts.lab import RulesReader
from loratory.engine.accounts.limits import LabRules
from loratory.engine.accounts.people import Person
from loratory.engine.errors import EngineError
from loratory.engine.files import read_model
from loratory.engine.hardware.cuda import GpuProgram, list_gpu_programs
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.devices import list_devices
from loratory.engine.hardware.lease import LeaseBook, LeaseHolder, Purpose, lease_name
from loratory.engine.lab.fairness import UrgentSlot
from loratory.engine.lab.supervision import SNAPSHOT_FILE, QueueSnapshot
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.history.run_history import HistoryReader, seconds_left
from loratory.engine.runs.run import Reason, Run, RunFolder, RunState, State
from loratory.engine.runs.usage import Attempt, live_attempt, local_devices

_MOST_READERS = 100

# What other people see: only a reason, since a run's own text may name its settings.
_PUBLIC_TEXTS: dict[Reason, str] = {
    "memory": "Waits for free memory.",
    "device_in_use": "Waits for a device that is in use.",
    "device_missing": "Waits for a device that is not there.",
    "earlier_run": "Waits for an earlier run of the same person.",
    "other_persons_run": "Queued.",
    "urgent_run": "Waits for an urgent run.",
    "running_cap": "Waits: its owner has as many running runs as the lab allows.",
    "weekly_quota": "Waits: its owner has used this week's GPU-hours.",
    "maintenance": "Waits for the end of the maintenance.",
    "free_disk": "Waits for free disk space.",
    "other_program": "Waits for programs outside Loratory.",
    "resumes": "Waits to be resumed.",
    "executor_queue": "Waits in another queue.",
    "time_limit": "Stops: it reached the maximum run time.",
}


@dataclass(frozen=True)
class QueueEntry:
    """A run that waits or has a device."""

    owner: str
    state: State  # as the supervisor saw it last
    device: str  # that it has; empty while it waits
    position: int | None  # in the queue, from 1; None once it has a device
    since: float | None  # when it got its device
    expected_end: float | None  # in seconds since the epoch; None while it is unknown
    reason: Reason | None  # why it waits, or stops
    text: str  # the same for the viewer
    run_id: str  # empty where the viewer may do nothing with it
    urgent: str = ""  # why it comes first; empty where it does not


@dataclass(frozen=True)
class DeviceUse:
    """The current use of a device."""

    device: str
    title: str  # of the hardware
    owner: str  # who has it; empty where it is free, or where a command of the machine has it
    purpose: Purpose | None  # what for; None where it is free
    since: float | None  # when they got it
    programs: tuple[GpuProgram, ...]  # processes outside Loratory that compute on it


class QueueBoard:
    """Shows the queue of a lab; one for a server, which all its pages ask."""

    def __init__(
        self,
        home: LoratoryHome,
        devices: Callable[[], Sequence[Device]] = list_devices,
        programs: Callable[[int], Sequence[GpuProgram]] = list_gpu_programs,
    ) -> None:
        self._home = home
        self._book = LeaseBook(home)
        self._rules = RulesReader(home)
        self._devices = devices
        self._programs = programs
        self._lock = threading.Lock()  # guards the readers
        self._readers: dict[str, HistoryReader] = {}

    def entries(self, viewer: Person) -> tuple[QueueEntry, ...]:
        """Return the running, then the waiting runs, the next one first; empty before a supervisor has written the queue.

        A viewer gets the ids of the own runs, an admin those of all, to stop them.
        """
        snapshot, rules, urgent = self._snapshot(), self._rules.read() or LabRules(), None
        with contextlib.suppress(EngineError):
            urgent = UrgentSlot(self._home).run()
        entries = []
        for run, state in self._at_work(snapshot):
            text = _reason_text(run.owner, viewer, state.reason, state.cause)
            entries.append(
                QueueEntry(
                    run.owner, state.state, state.device, None, state.attempt_started, self._expected_end(run, state, rules),
                    state.reason, text, _id_for(viewer, run.owner, run.id),
                )
            )  # fmt: skip
        for position, queued in enumerate(snapshot.waiting, start=1):
            owner, reason, run_id = queued.owner, queued.reason, queued.run_id
            text, shown_id = _reason_text(owner, viewer, reason, queued.cause), _id_for(viewer, owner, run_id)
            first = urgent.text if urgent is not None and urgent.run_id == run_id else ""
            entries.append(QueueEntry(owner, "queued", "", position, None, None, reason, text, shown_id, first))
        return tuple(entries)

    def devices(self) -> tuple[DeviceUse, ...]:
        """Return the use of each device; everyone may see it."""
        holders = self._book.holders()
        return tuple(self._use(device, holders.get(lease_name(device))) for device in self._devices())

    def attempts(self) -> tuple[Attempt, ...]:
        """Return the current attempts, for `usage_by_week`."""
        now = time.time()
        live = (live_attempt(run, state, now) for run, state in self._at_work(self._snapshot()))
        return tuple(attempt for attempt in live if attempt is not None)

    def _snapshot(self) -> QueueSnapshot:
        return read_model(self._home.server / SNAPSHOT_FILE, QueueSnapshot) or QueueSnapshot()

    def _at_work(self, snapshot: QueueSnapshot) -> Iterator[tuple[Run, RunState]]:
        for owner, run_id in snapshot.active:
            run = Run(run_id, owner, RunFolder(self._home.runs / owner / run_id))
            with contextlib.suppress(EngineError):
                state = run.folder.read_saved_state()
                if state is not None and not state.is_final and state.state != "queued":
                    yield run, state

    def _expected_end(self, run: Run, state: RunState, rules: LabRules) -> float | None:
        now = time.time()
        with self._lock:
            if len(self._readers) > _MOST_READERS:
                self._readers.clear()
            reader = self._readers.setdefault(run.id, HistoryReader(run.folder.events))
            seconds = seconds_left(reader.update())
        ends = [] if seconds is None else [now + seconds]
        hours = rules.limits.guest_run_hours if run.owner in rules.guests else rules.limits.longest_run_hours
        # The lab limits the use of its own devices.
        if hours is not None and state.attempt_started is not None and local_devices(state.device):
            ends.append(state.attempt_started + hours * 3600)
        return min(ends, default=None)

    def _use(self, device: Device, holder: LeaseHolder | None) -> DeviceUse:
        programs = tuple(self._programs(device.index)) if device.kind == "cuda" else ()
        if holder is not None:
            programs = tuple(program for program in programs if program.pid not in _family_of(holder.process.pid))
        owner, purpose, since = (holder.owner, holder.purpose, holder.since) if holder is not None else ("", None, None)
        return DeviceUse(lease_name(device), device.name, owner, purpose, since, programs)


def _reason_text(owner: str, viewer: Person, reason: Reason | None, cause: str) -> str:
    return cause if owner == viewer.name else _PUBLIC_TEXTS.get(reason, "") if reason is not None else ""


def _id_for(viewer: Person, owner: str, run_id: str) -> str:
    return run_id if owner == viewer.name or viewer.role == "admin" else ""


def _family_of(pid: int) -> frozenset[int]:
    try:
        return frozenset({pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))})
    except psutil.Error:
        return frozenset({pid})
