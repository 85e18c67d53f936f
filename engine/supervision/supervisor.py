"""The thread that starts and monitors workers; only it writes the states of runs."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Literal

from loratory.engine.errors import EngineError, StorageError
from loratory.engine.hardware.lease import LeaseBook, lease_name
from loratory.engine.lab.fairness import LabTurn, lab_reasons
from loratory.engine.lab.supervision import LabSupervision
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.liveness import FileLock, ProcessIdentity
from loratory.engine.processes.spawn import cap_log
from loratory.engine.runs.projects import request_project_tests, start_answering
from loratory.engine.runs.run import Run, RunState, StateReason
from loratory.engine.runs.webhook import Notifier
from loratory.engine.supervision.queue import QueueOrder, StartRules, WaitingRun, plan_starts
from loratory.engine.supervision.scheduler import Scheduler, SupervisorSettings
from loratory.engine.supervision.seat import SupervisorSeat, seat_holder
from loratory.engine.supervision.states import ProblemLog

Role = Literal["stopped", "supervising", "standing_by"]

_log = logging.getLogger(__name__)


class Supervisor:
    """Supervises all runs of a home. There is one per home, on any host; a second one waits and takes over.

    Workers outlive it: after a restart it finds them again.
    """

    def __init__(self, home: LoratoryHome, settings: SupervisorSettings | None = None) -> None:
        self._home = home
        self._settings = settings or SupervisorSettings()
        self._lock = FileLock(home.server / "supervisor.lock")
        self._seat = SupervisorSeat(home, self._settings.seat)
        self._problems = ProblemLog()
        self._ending = threading.Event()
        self.role: Role = "stopped"  # whether this one supervises, or waits for another one to end
        self._thread: threading.Thread | None = None

    def start(self) -> Role:
        """Start to supervise in a background thread; return at once with the current role.

        Raises:
            StorageError: If the home cannot be written.
        """
        assert self._thread is None, "a supervisor is started once"
        self.role = "standing_by"
        if self._lock.acquire(timeout_seconds=0.2):
            with contextlib.suppress(StorageError):  # a full disk: tried again in the background
                self.role = "supervising" if self._seat.acquire() else "standing_by"
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()
        return self.role

    def stop(self) -> None:
        """End the thread, so another process can supervise; workers continue."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._seat.release()
        self._lock.release()
        self.role = "stopped"

    def explain_standing_by(self) -> str:
        """Return a sentence about who supervises the runs of this home; empty if this process does."""
        if self.role != "standing_by":
            return ""
        other = supervisor_of(self._home)
        if other is None and self._lock.is_held:
            return "Runs are not supervised yet: the home folder cannot be written. It is tried again."
        where = f" on {other.host}" if other is not None and other.is_of_another_host() else ""
        who = "Another Loratory process" + (f" (pid {other.pid}{where})" if other is not None else "")
        return f"{who} already supervises the runs of this home; this one waits, and takes over when it ends."

    def _run(self) -> None:
        while not self._ending.is_set():
            if self.role == "supervising":
                self._supervise()
            else:
                self._stand_by()

    def _stand_by(self) -> None:
        """Wait until this host's lock and the seat are free, and take both."""
        while not self._ending.wait(self._settings.take_over_seconds):
            try:
                self._seat.is_free()  # also while the lock is not: it counts how long another host is silent
                if (self._lock.is_held or self._lock.acquire(timeout_seconds=0)) and self._seat.acquire():
                    self.role = "supervising"
                    return
            except Exception as error:
                self._problems.report(
                    "seat", f"The seat of the current supervisor cannot be read; trying again: {error}"
                )

    def _supervise(self) -> None:
        """Supervise until the end, or until another host has the seat."""
        loop, housekeeping = SupervisorLoop(self._home, self._settings), Housekeeping(self._home)
        while not self._ending.is_set():
            try:
                if not self._seat.renew():
                    self.role = "standing_by"
                    break
                loop.tick()
                housekeeping.tick()
            except Exception as error:
                # A full disk, a missing folder: the runs still need a supervisor.
                self._problems.report("runs", f"Runs cannot be supervised at present; trying again: {error}")
            self._ending.wait(loop.pause_seconds())
        loop.close()


class SupervisorLoop:
    """The rounds of a supervisor; the caller of `tick` holds the supervisor's lock of the home."""

    def __init__(self, home: LoratoryHome, settings: SupervisorSettings) -> None:
        self._home, self._settings = home, settings
        self._book = LeaseBook(home)
        self._order = QueueOrder(home)
        self._lab = LabSupervision(home, settings.programs)
        self._notifier = Notifier(home)
        self._scheduler = Scheduler(home, settings, self._lab.note_end, self._note_final)

    def close(self) -> None:
        """Stop looking at jobs, which continue."""
        self._scheduler.close()

    def tick(self, *, starts_runs: bool = True) -> None:
        """Find new runs, check every run with a job, and start waiting runs.

        Raises:
            EngineError: If the home cannot be read or written.
        """
        self._scheduler.poll()
        if not starts_runs:
            return
        turn = self._lab.take_turn(self._scheduler.waiting, self._active())
        reasons: Mapping[str, StateReason] = {}
        if self._scheduler.waiting:
            reasons = self._start_waiting(turn)
        if turn is not None:
            self._lab.publish(turn, reasons, self._active())

    def pause_seconds(self) -> float:
        """Return when to look again: while no run waits, starts or stops, for as long as the last polls are valid."""
        active, least = self._scheduler.active.values(), self._settings.tick_seconds
        if self._scheduler.waiting or any(monitor.state.state != "running" for monitor in active):
            return least
        return max(least, min((monitor.job.poll_seconds() for monitor in active), default=least))

    def _note_final(self, run: Run, state: RunState) -> None:
        self._notifier.note_end(run, state)
        request_project_tests(self._home, run, state)

    def _active(self) -> dict[str, tuple[Run, RunState]]:
        return {run_id: (monitor.run, monitor.state) for run_id, monitor in self._scheduler.active.items()}

    def _start_waiting(self, turn: LabTurn | None) -> Mapping[str, StateReason]:
        order = self._order.sort(list(self._scheduler.waiting)) if turn is None else turn.order
        waiting = [needs for run_id in order if (needs := self._scheduler.needs(run_id)) is not None]
        devices = tuple(self._settings.devices())
        holders = {
            name: holder
            for name in map(lease_name, devices)
            if (holder := self._book.holder(name) or self._scheduler.holder(name)) is not None
        }
        rules = StartRules()
        if turn is not None:
            waiting = [turn.known(needs) for needs in waiting]
            rules = self._lab.start_rules(turn, devices, holders)
        here: list[WaitingRun] = []
        elsewhere: list[str] = []
        admission_reasons: dict[str, StateReason] = {}
        for needs in waiting:
            if self._scheduler.needs_local_devices(needs):
                here.append(needs)
            elif (why := rules.hold(needs, elsewhere)) is not None:
                admission_reasons[needs.run_id] = why
            else:
                elsewhere.append(needs.run_id)
                self._scheduler.start(needs.run_id, ())
        plan = plan_starts(here, devices, holders, rules)
        for device in plan.awaited_leases:
            self._book.request_preemption(device)
        for run_id, start_devices in plan.starts.items():
            self._scheduler.start(run_id, start_devices)
        reasons = {**plan.reasons, **admission_reasons}
        if turn is not None:
            reasons = lab_reasons(reasons, here, turn.rules, turn.standing)
        self._scheduler.explain_waiting(reasons)
        return reasons


def supervisor_of(home: LoratoryHome) -> ProcessIdentity | None:
    """Return the process that supervises a home; None if there is none.

    One of another host may have ended without notice.
    """
    holder = seat_holder(home)
    is_there = holder is not None and holder.is_of_another_host()
    return holder if is_there or FileLock(home.server / "supervisor.lock").is_held_by_another() else None


def reconcile(home: LoratoryHome, settings: SupervisorSettings | None = None) -> None:
    """Update the states of runs if no process supervises; starts nothing. For commands that run once.

    Raises:
        EngineError: If the home cannot be read or written.
    """
    lock, seat = FileLock(home.server / "supervisor.lock"), SupervisorSeat(home)
    try:
        if not lock.acquire(timeout_seconds=0) or not seat.acquire():
            return
        loop = SupervisorLoop(home, settings or SupervisorSettings())
        loop.tick(starts_runs=False)
        loop.close()
    except EngineError as error:
        _log.error("Runs could not be brought up to date: %s", error)
    finally:
        seat.release()
        lock.release()


_LOOK_SECONDS = 60.0
_SWEEP_SECONDS = 3600.0


class Housekeeping:
    """Truncates logs, removes old leases, and has test sets of projects answered."""

    def __init__(self, home: LoratoryHome, clock: Callable[[], float] = time.monotonic) -> None:
        self._home = home
        self._clock = clock
        self._last_look = self._last_sweep = float("-inf")

    def tick(self) -> None:
        """Run the due tasks; costs nothing in between."""
        now = self._clock()
        if now - self._last_look >= _LOOK_SECONDS:
            self._last_look = now
            for log in self._home.logs.glob("*.log"):  # of helper processes, which may live for weeks
                cap_log(log, most_bytes=5_000_000)
            start_answering(self._home)  # what an earlier process left
        if now - self._last_sweep >= _SWEEP_SECONDS:
            self._last_sweep = now
