"""All runs of a home that are not over: those that wait and those with a worker. The only writer of state.json."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence

from engine.config.run import RunConfig
from engine.errors import DeviceError, EngineError
from engine.executors.local import RunLeases, WorkerCommand, WorkerOrder, start_worker
from engine.hardware.cuda import energy_so_far_joules
from engine.hardware.device import Device
from engine.hardware.lease import LeaseBook, LeaseHolder, lease_name
from engine.paths import LoratoryHome
from engine.processes.identity import ProcessIdentity
from engine.runs.control import (
    attempt_to_follow,
    cancel_is_requested,
    clear_requests,
    forget_resume_request,
    resume_requests,
    start_anyway_is_requested,
    stop_is_requested,
)
from engine.runs.provenance import read_provenance, run_title
from engine.runs.reasons import Why
from engine.runs.run import Run, RunState, State
from engine.runs.store import RunStore, list_owners
from engine.runs.supervision.queue import Waiting
from engine.runs.supervision.state_files import OwnerFolder, StateFiles
from engine.runs.supervision.transitions import (
    begun,
    ended_waiting,
    goes_on_by_itself,
    put_back,
    recovered,
    requeued,
    why_not_started,
)
from engine.runs.supervision.worker_monitor import FollowedRun, Patience, with_advice, with_energy

_EXPLAINED_AT_MOST = 5  # reasons are saved for the first in line only; the others wait for these
_EXPLAIN_SECONDS = 10.0
_PUT_OFF_SECONDS = 30.0  # others come first meanwhile


class Ward:
    """The living runs of a home.

    Args:
        home: The Loratory home.
        command: How a worker is started.
        patience: How long to wait for what.
        book: Who holds which device.
        meter: Joules that the devices of a lease have used so far, where they measure it.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        home: LoratoryHome,
        command: WorkerCommand,
        patience: Patience,
        book: LeaseBook,
        meter: Callable[[str], float | None] = energy_so_far_joules,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._meter = meter
        self._home = home
        self._command = command
        self._patience = patience
        self._clock = clock
        self._complaints = Complaints()
        self._leases = RunLeases(book, self._complaints.say)
        self._states = StateFiles()
        self._owners: dict[str, OwnerFolder] = {}
        self._explained: dict[str, float] = {}  # when the reason of a waiting run was last saved
        self._put_off: dict[str, float] = {}  # when a run that could not be started is next in line again
        self.waiting: dict[str, Run] = {}
        self._needs: dict[str, Waiting] = {}
        self.followed: dict[str, FollowedRun] = {}

    def find_new(self) -> None:
        """Take in runs that appeared, and all that are not over after a start of ours."""
        for owner in list_owners(self._home):
            if owner not in self._owners:
                with self._complaints.noting(owner, "has a folder that cannot be looked after"):
                    store = RunStore(self._home, owner)
                    store.sweep()
                    self._owners[owner] = OwnerFolder(store)
        for owner, folder in self._owners.items():
            with self._complaints.noting(owner, "has a folder that cannot be looked at"):
                if folder.has_changed():
                    self._look_into(folder)

    def _look_into(self, folder: OwnerFolder) -> None:
        runs = {run.id: run for run in reversed(folder.store.list())}  # the oldest first
        for run_id, run in runs.items():
            if run_id in folder.known and not self._lost_its_state(run):
                continue
            with self._complaints.noting(run_id, "cannot be supervised"):
                self._take_in(run)
                folder.known.add(run_id)
        for gone in folder.known - runs.keys():
            self._forget(gone)
        folder.known &= runs.keys()

    def _lost_its_state(self, run: Run) -> bool:
        """Whether something deleted or damaged the state of a run that has ended."""
        if run.id in self.followed or run.id in self.waiting:
            return False  # `mend_states` sees to those
        with self._complaints.noting(run.id, "has a state that cannot be read"):
            return not self._states.is_intact(run)
        return False

    def mend_states(self) -> None:
        """Rebuild the state files of runs that are not over, where something deleted or damaged them."""
        for followed in self.followed.values():
            with self._complaints.noting(followed.run.id, "has a state that cannot be rebuilt"):
                if not self._states.is_intact(followed.run):
                    followed.state = self._states.rebuild(followed.run, followed.state)
        for run in self.waiting.values():
            with self._complaints.noting(run.id, "has a state that cannot be rebuilt"):
                if not self._states.is_intact(run):
                    self._states.rebuild(run, requeued(run.folder, self._clock()))

    def look_at_workers(self) -> None:
        """Look at every run with a worker, and save what changed."""
        for followed in list(self.followed.values()):
            with self._complaints.noting(followed.run.id, "could not be looked at"):
                self._look_at(followed)

    def _look_at(self, followed: FollowedRun) -> None:
        worker = followed.worker()
        self._leases.pass_on(followed.run, worker)
        if worker is not None and followed.state.device and worker.is_alive():
            self._leases.keep(followed.run, worker, followed.state.device.split(", "))
        state = followed.look()
        if state == followed.state:
            return
        if state.is_final or state.state == "queued":
            state = with_advice(followed, with_energy(followed, state, self._meter), self._home)
            self._leases.release(followed.run)
        if goes_on_by_itself(followed.run.folder, state):
            state = put_back(state, self._clock())  # at once, so that nobody takes it for one that has ended
        self._save(followed.run, state)
        followed.state = state
        if state.is_final or state.state == "queued":
            del self.followed[followed.run.id]
        if state.state == "queued":
            self._enqueue(followed.run)

    def obey_requests(self) -> None:
        """Put resumed runs into the queue, and take stopped ones out of it."""
        # In this order: a request to resume that finds its run waiting must not undo the stop that takes it out.
        for request in list(resume_requests(self._home)):
            with self._complaints.noting(request.run_id, "could not be resumed"):
                owner = self._owners.get(request.owner)
                if owner is None or not owner.store.folder.is_dir():
                    continue  # out of reach for now: whether there is such a run is not known
                if request.run_id in owner.store.ids():
                    self._resume(owner.store.get(request.run_id), attempt_to_follow(self._home, request))
                forget_resume_request(self._home, request)
        for run in list(self.waiting.values()):
            with self._complaints.noting(run.id, "could not be taken out of the queue"):
                self._take_out_if_asked(run)

    def _take_out_if_asked(self, run: Run) -> None:
        if cancel_is_requested(run.folder) or stop_is_requested(run.folder):
            began = run.folder.read_state().attempt > 0
            cause = "Taken out of the queue." if began else "Taken out of the queue before it began."
            self._end_waiting(run, "stopped", Why("left_the_queue", cause, "Resume it to put it back."))

    def needs(self, run_id: str) -> Waiting | None:
        """What a waiting run needs; None where its configuration cannot be read, so that it fails, or it was put off."""
        run = self.waiting[run_id]
        if self._clock() < self._put_off.get(run_id, 0.0):
            return None
        with self._complaints.noting(run_id, "cannot be made ready to start"):
            if run_id not in self._needs:
                config = self._config_of(run)
                if config is None:
                    return None
                predicted = read_provenance(run.folder)
                self._needs[run_id] = Waiting(run_id, config.run, predicted.predicted_bytes, predicted.predicted_on)
            needs = self._needs[run_id]
            return needs._replace(needed_bytes=None, needed_on={}) if start_anyway_is_requested(run.folder) else needs
        return None

    def holder(self, device: str) -> LeaseHolder | None:
        """The run that still has a device although no living process does: its worker ended since it was looked at.

        What the worker left behind is ended, and the end dated, when it is looked at next; nobody starts before that.
        """
        for followed in self.followed.values():
            if device in followed.state.device.split(", "):
                worker = None
                with self._complaints.noting(followed.run.id, "could not be looked at"):
                    worker = followed.worker()
                if worker is None or not worker.is_of_another_host():  # whose devices are other ones
                    return self._leases.holder_of(followed.run, worker)
        return None

    def start(self, run_id: str, devices: tuple[Device, ...]) -> None:
        """Start the worker of a waiting run on devices that are free; it stays in the queue where they no longer are.

        A run that can neither be started nor failed is put off, so that it keeps no other from its device.
        """
        run = self.waiting[run_id]
        try:
            self._start(run, devices)
        except (EngineError, OSError) as error:
            self._put_off[run_id] = self._clock() + _PUT_OFF_SECONDS
            self._complaints.say(run_id, f"{run_id} could not be started: {error}")
            if run_id in self.waiting:
                with self._complaints.noting(run_id, "could not give its device back"):
                    self._leases.release(run)

    def _start(self, run: Run, devices: tuple[Device, ...]) -> None:
        names = tuple(lease_name(device) for device in devices)
        if run.folder.has_living_worker():
            self._follow_found(run, names)
            return
        config = self._config_of(run)
        if config is None:
            return
        try:
            self._leases.take(run, run_title(config), names)
        except DeviceError:
            return
        try:
            device = ", ".join(names)
            before = run.folder.read_state()
            attempt = max(before.attempt, run.folder.attempts_seen()) + 1
            state = begun(before, attempt, device, self._meter(device), self._clock())
            self._save(run, state)
            process = start_worker(WorkerOrder(run, config, devices, state.attempt), self._command)
        except (EngineError, OSError) as error:
            self._end_waiting(run, "failed", why_not_started(run, error))
            return
        spawned = ProcessIdentity.of(process.pid)
        self._unqueue(run.id)  # from here on it has a worker, whatever else fails
        self.followed[run.id] = FollowedRun(run, state, self._patience, process, spawned, self._clock)
        self._leases.pass_on(run, spawned)

    def _follow_found(self, run: Run, devices: Sequence[str]) -> None:
        """Follow the worker that a person or a scheduler started for a waiting run; no second one is started."""
        record, before = run.folder.read_worker(), run.folder.read_state()
        if record is None or not (record.is_alive() or record.attempt > before.attempt):
            return  # it has the lock, and has not yet said which attempt it is
        # What it really uses is not known: what the queue would have given it. On another machine it is nothing of ours.
        held = devices if record.is_alive() else ()
        state = begun(before, record.attempt, ", ".join(held), None, self._clock())
        self._save(run, state)
        self._unqueue(run.id)
        followed = self.followed[run.id] = FollowedRun(run, state, self._patience, clock=self._clock)
        worker = followed.worker()
        if held and worker is not None:
            self._leases.hold_again(run, worker, held)

    def _config_of(self, run: Run) -> RunConfig | None:
        """The configuration of a waiting run; None, and the run fails, where it cannot be read."""
        try:
            return run.folder.read_config()
        except EngineError as error:
            self._end_waiting(run, "failed", why_not_started(run, error))
            return None

    def explain_waiting(self, reasons: Sequence[tuple[str, Why]]) -> None:
        """Save why the first in line wait; seldom enough that figures which change all the time cost nothing."""
        now = self._clock()
        still = [(run_id, why) for run_id, why in reasons if run_id in self.waiting]
        for run_id, why in still[:_EXPLAINED_AT_MOST]:
            run = self.waiting[run_id]
            if now - self._explained.get(run_id, 0.0) < _EXPLAIN_SECONDS:
                continue
            with self._complaints.noting(run_id, "cannot be told why it waits"):
                state = run.folder.read_state()
                if (state.reason, state.cause) != (why.reason, why.cause):
                    self._save(run, state.model_copy(update={**why._asdict(), "changed": now}))
                    self._explained[run_id] = now

    def _take_in(self, run: Run) -> None:
        state = self._states.load(run)
        if state is None:
            state = recovered(run.folder, self._leases.devices_of(run), self._clock())
            is_new = state.state == "queued" and not run.folder.state.exists()
            if is_new:
                self._save(run, state)
            else:
                state = self._states.rebuild(run, state)
        if state.state == "queued":
            self._enqueue(run)
        elif not state.is_final:
            self._follow_again(run, state)
        elif goes_on_by_itself(run.folder, state):
            self._resume_by_itself(run)

    def _follow_again(self, run: Run, state: RunState) -> None:
        spawned = self._leases.worker_of(run)
        followed = self.followed[run.id] = FollowedRun(run, state, self._patience, spawned=spawned, clock=self._clock)
        worker = followed.worker()
        if worker is not None and state.device and worker.is_alive():
            self._leases.hold_again(run, worker, state.device.split(", "))

    def _resume(self, run: Run, attempt: int | None) -> None:
        """Put a run that has ended back into the queue, unless it has gone on since `attempt`, or is at work."""
        with self._unclaimed(run) as state:
            if state is None or not state.is_final or state.state == "completed":
                return
            if attempt in (None, state.attempt):
                clear_requests(run.folder)
                self._put_back(run, state)

    def _resume_by_itself(self, run: Run) -> None:
        with self._unclaimed(run) as state:
            if state is not None and goes_on_by_itself(run.folder, state):
                self._put_back(run, state)

    def _put_back(self, run: Run, ended: RunState) -> None:
        self._save(run, put_back(run.folder.as_offered(ended), self._clock()))
        self._enqueue(run)

    @contextlib.contextmanager
    def _unclaimed(self, run: Run) -> Iterator[RunState | None]:
        """The state of a run that no worker takes up and nobody deletes meanwhile; None where a worker has it."""
        lock = run.folder.worker_lock()
        if not lock.acquire(timeout_seconds=1.0):
            yield None
            return
        try:
            yield run.folder.read_state_unclaimed()
        finally:
            lock.release()

    def _enqueue(self, run: Run) -> None:
        self.waiting[run.id] = run

    def _unqueue(self, run_id: str) -> None:
        self.waiting.pop(run_id, None)
        self._needs.pop(run_id, None)
        self._explained.pop(run_id, None)
        self._put_off.pop(run_id, None)

    def _end_waiting(self, run: Run, state: State, why: Why) -> None:
        self._leases.release(run)
        self._save(run, ended_waiting(run.folder.read_state(), state, why, self._clock()))
        self._unqueue(run.id)

    def _forget(self, run_id: str) -> None:
        """A run was deleted under us."""
        self._unqueue(run_id)
        self.followed.pop(run_id, None)
        self._complaints.forget(run_id)
        self._states.forget(run_id)

    def _save(self, run: Run, state: RunState) -> None:
        self._states.save(run, state)


_log = logging.getLogger(__name__)


class Complaints:
    """Remembers what was said about each run or owner, so that nothing is repeated twice a second."""

    def __init__(self) -> None:
        self._said: dict[str, dict[str, str]] = {}  # by whom it concerns, and by what was tried

    def say(self, about: str, text: str, tried: str = "") -> None:
        """Log what went wrong, unless it was the last thing that was said of the same attempt at the same thing."""
        said = self._said.setdefault(about, {})
        if said.get(tried) != text:
            _log.error(text)
        said[tried] = text

    @contextlib.contextmanager
    def noting(self, about: str, what: str) -> Iterator[None]:
        """Go on after the block whatever goes wrong in it; it is logged as `about what: why`."""
        try:
            yield
        except (EngineError, OSError) as error:
            self.say(about, f"{about} {what}: {error}", tried=what)

    def forget(self, about: str) -> None:
        """It is gone."""
        self._said.pop(about, None)
