"""All runs of a home that are not over: those that wait and those with a worker. The only writer of state.json."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.errors import DeviceError, EngineError
from engine.hardware.device import Device
from engine.hardware.energy import energy_so_far_joules
from engine.hardware.lease import LeaseBook, LeaseHolder, lease_name
from engine.hardware.processor import describe_processor
from engine.paths import LoratoryHome
from engine.processes.identity import ProcessIdentity
from engine.runs.control import cancel_is_requested, clear_requests, start_anyway_is_requested, stop_is_requested
from engine.runs.endings import out_of_memory_kills
from engine.runs.event_log import last_event
from engine.runs.followed import FollowedRun, Patience
from engine.runs.memory_advice import advice_on_memory
from engine.runs.provenance import read_provenance, run_title
from engine.runs.queue import Waiting
from engine.runs.requests import forget_resume_request, resume_requests
from engine.runs.run import FINAL_STATES, Run, RunState
from engine.runs.store import RunStore, list_owners
from engine.runs.worker_command import WorkerCommand, WorkerOrder, start_worker

_UNSETTLED_SECONDS = 2.0  # a folder changed so recently may change again without another modification time
_LOOK_AGAIN_SECONDS = 30.0  # however unchanged a folder looks: network filesystems cache its times
_EXPLAINED_AT_MOST = 5  # reasons are saved for the first in line only; the others wait for these
_EXPLAIN_SECONDS = 10.0

_log = logging.getLogger(__name__)


class _OwnerFolder:
    """When an owner's folder was last looked at, so that an unchanged one costs nothing."""

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self.known: set[str] = set()
        self._modified = 0
        self._looked = 0.0

    def has_changed(self) -> bool:
        try:
            modified = self.store.folder.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        now = time.time()
        settled = now - modified / 1e9 > _UNSETTLED_SECONDS
        if modified == self._modified and settled and now - self._looked < _LOOK_AGAIN_SECONDS:
            return False
        self._modified, self._looked = modified, now
        return True


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
        self._book = book
        self._clock = clock
        self._owners: dict[str, _OwnerFolder] = {}
        self._explained: dict[str, float] = {}  # when the reason of a waiting run was last saved
        self._last_complaint = ""
        self.waiting: dict[str, Run] = {}
        self._needs: dict[str, Waiting] = {}
        self.followed: dict[str, FollowedRun] = {}

    def find_new(self) -> None:
        """Take in runs that appeared, and all that are not over after a start of ours."""
        for owner in list_owners(self._home):
            if owner not in self._owners:
                store = RunStore(self._home, owner)
                store.sweep()
                self._owners[owner] = _OwnerFolder(store)
        for folder in self._owners.values():
            if not folder.has_changed():
                continue
            runs = {run.id: run for run in reversed(folder.store.list())}  # the oldest first
            for run_id, run in runs.items():
                if run_id in folder.known:
                    continue
                try:
                    self._take_in(run)
                    folder.known.add(run_id)
                except (EngineError, OSError) as error:
                    self._complain(f"{run_id} cannot be supervised: {error}")
            for gone in folder.known - runs.keys():
                self._forget(gone)
            folder.known &= runs.keys()

    def look_at_workers(self) -> None:
        """Look at every run with a worker, and save what changed."""
        for followed in list(self.followed.values()):
            try:
                self._look_at(followed)
            except (EngineError, OSError) as error:
                self._complain(f"{followed.run.id} could not be looked at: {error}")

    def _look_at(self, followed: FollowedRun) -> None:
        state = followed.look()
        if state == followed.state:
            return
        if state.is_final or state.state == "queued":
            state = self._with_advice(followed, self._with_energy(followed, state))
            self._free_devices(followed)
        self._save(followed.run, state)
        followed.state = state
        if state.is_final:
            del self.followed[followed.run.id]
            self._resume_by_itself(followed, state)
        elif state.state == "queued":
            del self.followed[followed.run.id]
            self._enqueue(followed.run)

    def _with_advice(self, followed: FollowedRun, state: RunState) -> RunState:
        """Where the system ended a worker for want of RAM: what the estimate would change, in figures.

        The estimate of a run on a GPU is of the GPU's memory, and says nothing of what filled the RAM.
        """
        if not followed.memory_ran_out or state.device != "cpu":
            return state
        try:
            advice = advice_on_memory(followed.run.folder.read_config(), self._home, describe_processor())
        except EngineError:
            advice = None
        return state if advice is None else state.model_copy(update={"advice": advice})

    def _with_energy(self, followed: FollowedRun, state: RunState) -> RunState:
        """Add what the GPUs measured in this attempt; where one attempt was not measured, the whole is unknown."""
        began = state.energy_meter_joules
        now = self._meter(followed.state.device) if began is not None and not followed.was_rebooted else None
        before = 0.0 if state.attempt == 1 else state.energy_joules
        total = None
        # Meters begin anew when their driver is loaded again.
        if began is not None and now is not None and before is not None and now >= began:
            total = before + now - began
        return state.model_copy(update={"energy_joules": total, "energy_meter_joules": None})

    def obey_requests(self) -> None:
        """Take stopped runs out of the queue, and put resumed ones into it."""
        for run in list(self.waiting.values()):
            if cancel_is_requested(run.folder) or stop_is_requested(run.folder):
                state = run.folder.read_state()
                began = state.attempt > 0
                cause = "Taken out of the queue." if began else "Taken out of the queue before it began."
                self._end_waiting(run, "stopped", cause, "Resume it to put it back.")
        for request in resume_requests(self._home):
            store = self._owners[request.owner].store if request.owner in self._owners else None
            if store is not None and request.run_id in store.ids():
                run = store.get(request.run_id)
                if run.folder.read_state().is_final:
                    self._requeue(run)
            forget_resume_request(self._home, request)

    def needs(self, run_id: str) -> Waiting | None:
        """What a waiting run needs; None, and the run fails, where its configuration cannot be read."""
        if run_id not in self._needs:
            run = self.waiting[run_id]
            try:
                config = run.folder.read_config()
            except EngineError as error:
                self._end_waiting(run, "failed", error.what, error.fix)
                return None
            self._needs[run_id] = Waiting(run_id, config.run, read_provenance(run.folder).predicted_bytes)
        needs = self._needs[run_id]
        if start_anyway_is_requested(self.waiting[run_id].folder):
            return needs._replace(needed_bytes=None)
        return needs

    def start(self, run_id: str, devices: tuple[Device, ...]) -> None:
        """Start the worker of a waiting run on devices that are free; it stays in the queue where they no longer are."""
        run = self.waiting[run_id]
        config = run.folder.read_config()
        names = tuple(lease_name(device) for device in devices)
        ourselves = ProcessIdentity.current()
        title = run_title(config)
        try:
            self._book.take(names, LeaseHolder(purpose="training", title=title, process=ourselves, run_id=run_id))
        except DeviceError:
            return
        before = run.folder.read_state()
        state = before.model_copy(
            update={
                "state": "starting",
                "cause": "",
                "advice": "",
                "attempt": before.attempt + 1,
                "device": ", ".join(names),
                "changed": self._clock(),
                "started": before.started or self._clock(),
                "ended": None,
                "oom_kills": out_of_memory_kills(),
                "energy_meter_joules": self._meter(", ".join(names)),
            }
        )
        try:
            self._save(run, state)
            process = start_worker(WorkerOrder(run, config, devices, state.attempt), self._command)
        except EngineError as error:
            self._book.release(ourselves)
            self._end_waiting(run, "failed", error.what, error.fix)
            return
        spawned = ProcessIdentity.of(process.pid)
        self._unqueue(run_id)  # from here on it has a worker, whatever else fails
        self.followed[run_id] = FollowedRun(run, state, self._patience, process, spawned, self._clock)
        if spawned is not None:
            holder = LeaseHolder(purpose="training", title=title, process=spawned, run_id=run_id)
            self._book.hand_over(names, ourselves, holder)
        else:
            self._book.release(ourselves)

    def explain_waiting(self, reasons: Sequence[tuple[str, str]]) -> None:
        """Save why the first in line wait; seldom enough that figures which change all the time cost nothing."""
        now = self._clock()
        still = [(run_id, reason) for run_id, reason in reasons if run_id in self.waiting]
        for run_id, reason in still[:_EXPLAINED_AT_MOST]:
            run = self.waiting[run_id]
            if now - self._explained.get(run_id, 0.0) < _EXPLAIN_SECONDS:
                continue
            state = run.folder.read_state()
            if state.cause != reason:
                self._save(run, state.model_copy(update={"cause": reason, "changed": now}))
                self._explained[run_id] = now

    def _take_in(self, run: Run) -> None:
        state = run.folder.read_saved_state()
        if state is None:
            state = self._recovered(run)
            self._save(run, state)
        if state.state in FINAL_STATES:
            return
        if state.state == "queued":
            self._enqueue(run)
            return
        holder = self._book.holder_of_run(run.id)
        spawned = holder.process if holder is not None and holder.process != ProcessIdentity.current() else None
        followed = FollowedRun(run, state, self._patience, spawned=spawned, clock=self._clock)
        self.followed[run.id] = followed
        self._hold_devices_again(followed)

    def _recovered(self, run: Run) -> RunState:
        """The state of a run that has none: new, or robbed of its file; then its log and its lock tell."""
        last, worker = last_event(run.folder.events), run.folder.read_worker()
        attempt = max(last.attempt if last is not None else 0, worker.attempt if worker is not None else 0)
        if attempt == 0:
            return RunState(state="queued", changed=self._clock())
        began = last.time if last is not None else self._clock()
        return RunState(state="running", attempt=attempt, started=began, changed=self._clock())

    def _hold_devices_again(self, followed: FollowedRun) -> None:
        """A living worker keeps its device, also where the former supervisor died before it had written that down."""
        worker, device = followed.worker(), followed.state.device
        if worker is None or not device or not worker.is_alive():
            return
        title = followed.run.id
        try:
            title = run_title(followed.run.folder.read_config())
            holder = LeaseHolder(purpose="training", title=title, process=worker, run_id=followed.run.id)
            self._book.take(device.split(", "), holder)
        except EngineError:
            self._complain(f"The device of {followed.run.id} could not be leased again.")

    def _free_devices(self, followed: FollowedRun) -> None:
        for process in (followed.worker(), followed.spawned):
            if process is not None:
                self._book.release(process)

    def _resume_by_itself(self, followed: FollowedRun, state: RunState) -> None:
        if state.state != "interrupted" or not followed.was_rebooted:
            return
        try:
            wanted = followed.run.folder.read_config().run.resume_after_restart
        except EngineError:
            return
        if wanted:
            self._requeue(followed.run)

    def _requeue(self, run: Run) -> None:
        clear_requests(run.folder)
        state = run.folder.read_state()
        step = state.resumable_step
        cause = f"Goes on from step {step}." if step is not None else "Begins anew; no checkpoint was saved."
        changes = {"state": "queued", "cause": cause, "advice": "", "ended": None, "changed": self._clock()}
        self._save(run, state.model_copy(update=changes))
        self._enqueue(run)

    def _enqueue(self, run: Run) -> None:
        self.waiting[run.id] = run

    def _unqueue(self, run_id: str) -> None:
        self.waiting.pop(run_id, None)
        self._needs.pop(run_id, None)
        self._explained.pop(run_id, None)

    def _end_waiting(self, run: Run, state: str, cause: str, advice: str) -> None:
        now = self._clock()
        changes = {"state": state, "cause": cause, "advice": advice, "changed": now, "ended": now}
        self._save(run, run.folder.read_state().model_copy(update=changes))
        self._unqueue(run.id)

    def _complain(self, text: str) -> None:
        """Say it once, not twice a second for as long as a disk stays full."""
        if text != self._last_complaint:
            _log.error(text)
        self._last_complaint = text

    def _forget(self, run_id: str) -> None:
        """A run was deleted under us."""
        self._unqueue(run_id)
        self.followed.pop(run_id, None)

    def _save(self, run: Run, state: RunState) -> None:
        path: Path = run.folder.path
        if path.is_dir():
            run.folder.write_state(state)
