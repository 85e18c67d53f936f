"""All runs of a home that have not ended: those that wait and those with a job. The only writer of state.json."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from loratory.engine.config.run import RunConfig
from loratory.engine.errors import DeviceError, EngineError, RunError, explain_os_errors
from loratory.engine.files import stamp_of
from loratory.engine.hardware.cuda import GpuProgram, energy_so_far_joules, list_gpu_programs
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.devices import list_devices
from loratory.engine.hardware.lease import LeaseBook, LeaseHolder, lease_name
from loratory.engine.paths import LoratoryHome
from loratory.engine.places import ExecutorFactory, make_executors
from loratory.engine.places.local import LocalContext, LocalExecutor
from loratory.engine.runs.control import clear_requests, end_is_requested, resume_requests, with_requested_target
from loratory.engine.runs.job import Executor, JobSpec
from loratory.engine.runs.provenance import read_provenance, run_title
from loratory.engine.runs.run import Run, RunState, State, StateReason
from loratory.engine.runs.store import RunStore, list_owners
from loratory.engine.supervision import states
from loratory.engine.supervision.queue import WaitingRun
from loratory.engine.supervision.seat import SeatTimes
from loratory.engine.supervision.worker_monitor import Timeouts, WorkerMonitor, with_advice, with_energy

_EXPLAINED_OF_EACH = 3  # reasons are saved for the first runs of each person only; the rest waits for these
_EXPLAIN_SECONDS = 10.0
_PUT_OFF_SECONDS = 30.0  # other runs come first meanwhile

OnEnd = Callable[[Run, RunState, RunState], None]  # called for each ended attempt, with the states before and after
OnFinal = Callable[[Run, RunState], None]  # called for each run that has ended and does not resume automatically


@dataclass(frozen=True)
class SupervisorSettings:
    """Dependencies that tests and demos replace."""

    executors: ExecutorFactory = make_executors
    devices: Callable[[], Sequence[Device]] = list_devices
    meter: Callable[[str], float | None] = energy_so_far_joules  # joules that the devices of a lease have used so far
    programs: Callable[[int], Sequence[GpuProgram]] = list_gpu_programs  # what computes on a GPU
    timeouts: Timeouts = field(default_factory=Timeouts)
    seat: SeatTimes = field(default_factory=SeatTimes)
    tick_seconds: float = 0.5
    take_over_seconds: float = 2.0  # between two checks whether the current supervisor is alive


class Scheduler:
    """The runs of a home that have not ended: those that wait and those with a job."""

    def __init__(self, home: LoratoryHome, settings: SupervisorSettings, on_end: OnEnd, on_final: OnFinal) -> None:
        self._home = home
        self._on_end = on_end
        self._on_final = on_final
        self._meter = settings.meter
        self._timeouts = settings.timeouts
        self._problems = states.ProblemLog()
        context = LocalContext(LeaseBook(home), self._problems.report, settings.timeouts.claim_seconds)
        self._executors = settings.executors(context)
        self._owners: dict[str, states.OwnerFolder] = {}
        self._stamps: dict[str, object] = {}  # of process.json and log of runs that have ended, by run
        self._explained_at: dict[str, float] = {}  # when the reason of a waiting run was last saved
        self._put_off: dict[str, float] = {}  # when a run that could not be started is next in line again
        self.waiting: dict[str, Run] = {}
        self._needs: dict[str, WaitingRun] = {}
        self.active: dict[str, WorkerMonitor] = {}

    def close(self) -> None:
        """Stop polling jobs, which continue."""
        for executor in self._executors.values():
            executor.close()

    def poll(self) -> None:
        """Find new runs, check every run with a job, and handle requests."""
        self._find_new()
        for monitor in [monitor for monitor in self.active.values() if monitor.is_due()]:
            with self._problems.guard(monitor.run.id, "could not be checked"):
                self._poll_job(monitor)
        self._apply_requests()

    def _find_new(self) -> None:
        """Add new runs, and after a start all that have not ended."""
        for owner in list_owners(self._home):
            if owner not in self._owners:
                with self._problems.guard(owner, "has a folder that cannot be supervised"):
                    store = RunStore(self._home, owner)
                    store.sweep()
                    self._owners[owner] = states.OwnerFolder(store)
        for owner, folder in self._owners.items():
            with self._problems.guard(owner, "has a folder that cannot be read"):
                if folder.has_changed():
                    self._scan_folder(folder)

    def _scan_folder(self, folder: states.OwnerFolder) -> None:
        runs = {run.id: run for run in reversed(folder.store.list())}  # the oldest first
        for run_id, run in runs.items():
            if run_id not in folder.known or self._was_continued(run):
                with self._problems.guard(run_id, "cannot be supervised"):
                    self._adopt(run)
                    folder.known.add(run_id)
        for deleted in folder.known - runs.keys():  # deleted under us
            self._unqueue(deleted)
            self.active.pop(deleted, None)
            self._stamps.pop(deleted, None)
        folder.known &= runs.keys()

    def _was_continued(self, run: Run) -> bool:
        """Whether a worker that a person or a cluster started continues a run that had ended; see `has_later_worker`."""
        if run.id in self.active or run.id in self.waiting:
            return False
        stamp = stamp_of(run.folder.process), stamp_of(run.folder.events)
        if stamp[0] is None or stamp == self._stamps.get(run.id):  # unchanged files cost one `stat` each
            return False
        with self._problems.guard(run.id, "has a worker that cannot be checked"):
            if states.has_later_worker(run):
                return True
            self._stamps[run.id] = stamp
        return False

    def _poll_job(self, monitor: WorkerMonitor) -> None:
        state = monitor.poll()
        if state == monitor.state:
            return
        if state.is_final or state.state == "queued":
            state = with_advice(monitor, with_energy(monitor, state, self._meter), self._home)
            self._release(monitor.run)
        if state.is_final:
            state = states.with_progress(monitor.state, state)
            self._on_end(monitor.run, monitor.state, state)
        if states.resumes_automatically(monitor.run.folder, state):
            state = states.put_back(state)  # at once, so it never shows as ended
        monitor.run.folder.write_state(state)
        monitor.state = state
        if state.is_final or state.state == "queued":
            del self.active[monitor.run.id]
        if state.state == "queued":
            self.waiting[monitor.run.id] = monitor.run
        elif state.is_final:
            self._on_final(monitor.run, state)

    def _apply_requests(self) -> None:
        """Put resumed runs into the queue, and remove stopped ones from it."""
        # In this order: a request to resume that finds its run waiting must not undo the stop that takes it out.
        for request in list(resume_requests(self._home)):
            with self._problems.guard(request.run_id, "could not be resumed"):
                owner = self._owners.get(request.owner)
                if owner is None or not owner.store.folder.is_dir():
                    continue  # out of reach for now: whether there is such a run is not known
                if request.run_id in owner.store.ids():
                    run = owner.store.get(request.run_id)
                    if self._was_continued(run):
                        self._adopt(run)
                    else:
                        self._resume(run, request.attempt)
                request.path.unlink(missing_ok=True)
        for run in list(self.waiting.values()):
            with self._problems.guard(run.id, "could not be removed from the queue"):
                if end_is_requested(run.folder):
                    when = "" if run.folder.read_state().attempt else " before it began"
                    why = StateReason("left_the_queue", f"Removed from the queue{when}.", "Resume it to put it back.")
                    self._end_waiting(run, "stopped", why)

    def needs(self, run_id: str) -> WaitingRun | None:
        """Return the needs of a waiting run; None if it fails because its configuration cannot be read, or was put off."""
        run = self.waiting[run_id]
        if time.time() < self._put_off.get(run_id, 0.0):
            return None
        with self._problems.guard(run_id, "cannot be prepared to start"):
            if run_id not in self._needs:
                config = self._config_of(run)
                if config is None:
                    return None
                self._executor(config.run.executor)  # without it, no other one may start the run
                provenance = read_provenance(run.folder)
                self._needs[run_id] = WaitingRun(
                    run_id, config.run, provenance.predicted_bytes, provenance.predicted_on, title=run_title(config)
                )
            needs = self._needs[run_id]
            if run.folder.start_anyway_request.exists():
                return needs._replace(needed_bytes=None, needed_on={}, starts_anyway=True)
            return needs
        return None

    def holder(self, device: str) -> LeaseHolder | None:
        """Return the run that still holds a device although its process has ended since the last poll.

        What the worker left behind is ended, and the end dated, at its next poll; nothing starts before that.
        """
        holders = (monitor.job.holder(device) for monitor in self.active.values())
        return next((holder for holder in holders if holder is not None), None)

    def start(self, run_id: str, devices: tuple[Device, ...]) -> None:
        """Submit the job of a waiting run; it stays in the queue where its devices are no longer free.

        A run that can neither be started nor failed is put off, so it keeps no other from its device. An executor that
        does not use devices of this machine gets none.
        """
        run = self.waiting[run_id]
        with self._problems.guard(run_id, "could not be started"):
            self._start(run, devices)
            return
        self._put_off[run_id] = time.time() + _PUT_OFF_SECONDS
        if run_id in self.waiting:
            with self._problems.guard(run_id, "could not give its device back"):
                self._release(run)

    def _start(self, run: Run, devices: tuple[Device, ...]) -> None:
        device = ", ".join(map(lease_name, devices))
        if run.folder.has_living_worker():
            self._attach_found(run, device)
            return
        config = self._config_of(run)
        if config is None:
            return
        executor = self._executor(config.run.executor)
        before = run.folder.read_state()
        spec = JobSpec(run, config, devices, max(before.attempt, run.folder.attempts_seen()) + 1)
        try:
            executor.reserve(spec)
        except DeviceError:
            return
        try:
            with explain_os_errors(f"{run.id} could not be started", "Check the permissions of its folder."):
                state = states.starting_state(before, executor, spec.attempt, device)
                state = state.model_copy(update={"energy_meter_joules": self._meter(device)})
                run.folder.write_state(state)
                job = executor.submit(spec)
        except EngineError as error:
            self._end_waiting(run, "failed", StateReason("not_started", error.what, error.fix))
            return
        self._unqueue(run.id)  # from here on it has a job, even if something else fails
        monitor = self.active[run.id] = WorkerMonitor(run, state, job, self._timeouts)
        if job.id:
            monitor.state = state.model_copy(update={"job_id": job.id})
            run.folder.write_state(monitor.state)

    def _attach_found(self, run: Run, device: str) -> None:
        """Follow the worker that a person or a scheduler started for a waiting run; no second one is started."""
        record, before = run.folder.read_worker(), run.folder.read_state()
        if record is not None and record.attempt == before.attempt and before.job_id:  # its job had been given up
            running = {"state": "running", "ended": None, "changed": time.time()}
            state = before.model_copy(update=StateReason(None, "")._asdict() | running)
        elif record is not None and (record.is_alive() or record.attempt > before.attempt):
            # Its real devices are unknown: assume those that the queue would choose. Another machine's are not ours.
            held_device = device if record.is_alive() else ""
            state = states.starting_state(before, self._executor(LocalExecutor.name), record.attempt, held_device)
        else:
            return  # it has the lock, and has not yet written its attempt
        run.folder.write_state(state)
        self._unqueue(run.id)
        self._attach(run, state)

    def _attach(self, run: Run, state: RunState) -> None:
        job = self._executor(state.executor).attach(run, state)
        self.active[run.id] = WorkerMonitor(run, state, job, self._timeouts)

    def _executor(self, name: str) -> Executor:
        if name not in self._executors:
            raise RunError(f"There is no executor {name!r} in this version.", "Start the version that made the run.")
        return self._executors[name]

    def _release(self, run: Run) -> None:
        for executor in self._executors.values():
            executor.release(run)

    def _config_of(self, run: Run) -> RunConfig | None:
        """Return the configuration of a waiting run; None, and the run fails, where it cannot be read."""
        try:
            return with_requested_target(run.folder.read_config(), run.folder)
        except EngineError as error:
            self._end_waiting(run, "failed", StateReason("not_started", error.what, error.fix))
            return None

    def needs_local_devices(self, waiting: WaitingRun) -> bool:
        """Whether the queue must find devices of this machine for a run."""
        return self._executor(waiting.section.executor).uses_local_devices

    def explain_waiting(self, reasons: Mapping[str, StateReason]) -> None:
        """Save why the first runs of each person wait, rarely enough that changing figures cost nothing."""
        now, counts = time.time(), Counter[str]()
        for run_id, why in reasons.items():
            if (run := self.waiting.get(run_id)) is None:
                continue
            counts[run.owner] += 1
            is_due = now - self._explained_at.get(run_id, 0.0) >= _EXPLAIN_SECONDS
            if not is_due or counts[run.owner] > _EXPLAINED_OF_EACH:
                continue
            with self._problems.guard(run_id, "could not save why it waits"):
                state = run.folder.read_state()
                if (state.state, state.reason, state.cause) != ("queued", why.reason, why.cause):
                    changes = {"state": "queued", **why._asdict(), "changed": now}
                    run.folder.write_state(state.model_copy(update=changes))
                    self._explained_at[run_id] = now

    def _adopt(self, run: Run) -> None:
        state = run.folder.read_saved_state()
        if state is None:  # new, or its file was lost: what has begun goes through its end again
            state = run.folder.read_state().model_copy(update={"changed": time.time()})
            if state.state == "running":
                with contextlib.suppress(EngineError):
                    state = state.model_copy(update={"executor": run.folder.read_config().run.executor})
            run.folder.write_state(state)
        if state.state == "queued":
            self.waiting[run.id] = run
        elif not state.is_final:
            self._attach(run, state)
        elif self._was_continued(run):
            self._attach_found(run, "")
        elif states.resumes_automatically(run.folder, state):
            self._resume(run)

    def _resume(self, run: Run, requested_for: int | None = None) -> None:
        """Put an ended run back into the queue: automatically, or as requested for an attempt, unless it has continued."""
        with run.folder.keep_workers_away(timeout_seconds=1.0) as is_ours:
            state = run.folder.read_state()
            if not is_ours or not state.is_final or state.state == "completed":
                return
            if requested_for is None and not states.resumes_automatically(run.folder, state):
                return
            if requested_for is not None:
                if requested_for != state.attempt:
                    return
                clear_requests(run.folder)
                state = state.model_copy(update={"fruitless_attempts": 0})
            run.folder.write_state(states.put_back(run.folder.as_offered(state)))
            self.waiting[run.id] = run

    def _unqueue(self, run_id: str) -> None:
        for table in (self.waiting, self._needs, self._explained_at, self._put_off):
            table.pop(run_id, None)

    def _end_waiting(self, run: Run, state: State, why: StateReason) -> None:
        self._release(run)
        now = time.time()
        changes = {"state": state, **why._asdict(), "changed": now, "ended": now}
        end_state = run.folder.read_state().model_copy(update=changes)
        run.folder.write_state(end_state)
        self._unqueue(run.id)
        if state == "failed":
            self._on_final(run, end_state)
