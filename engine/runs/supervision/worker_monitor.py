"""One run with a worker, as its supervisor follows it: alive, silent, asked to stop, gone."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.errors import EngineError
from engine.hardware.processor import describe_processor
from engine.paths import LoratoryHome
from engine.processes.identity import ProcessIdentity, end_group
from engine.processes.spawn import cap_log
from engine.runs.history.log import noted_failure
from engine.runs.history.reader import HistoryReader
from engine.runs.history.run_history import RunHistory
from engine.runs.prediction import advice_on_memory
from engine.runs.run import RUN_VARIABLE, Run, RunState
from engine.runs.supervision.diagnosis import EndedByUs, Evidence, judge, out_of_memory_kills
from engine.runs.supervision.progress_watch import ProgressWatch, Silence, SilenceLimits

_HELD_BY_ANOTHER = 3  # exit code of a worker that found another one at work
_NOT_SILENT: dict[str, object] = {"silent_since": None, "silence_limit_seconds": None}


@dataclass(frozen=True)
class Patience:
    """How long a supervisor waits for what, in seconds."""

    silence: SilenceLimits = field(default_factory=SilenceLimits)
    cancel_seconds: float = 5.0  # for a worker to obey `cancel` by itself
    claim_seconds: float = 30.0  # for a worker that a former supervisor may have started to show itself


class FollowedRun:
    """Follows one attempt of one run. The supervisor asks `look` and saves what comes back.

    Args:
        run: The run.
        state: As it stands; live.
        patience: How long to wait for what.
        process: The worker where we are its parent; None after a restart of ours.
        spawned: Identity of the worker where somebody wrote it down, as the lease book does.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        run: Run,
        state: RunState,
        patience: Patience,
        process: subprocess.Popen[bytes] | None = None,
        spawned: ProcessIdentity | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.run = run
        self.state = state
        self._patience = patience
        self._process = process
        self.spawned = spawned
        self._clock = clock
        self._history = HistoryReader.of_run(run)
        self._watch = ProgressWatch(run.folder, patience.silence)
        self._since = time.monotonic()
        self._cancel_seen = state.cancel_seen
        self._ended_by_us: EndedByUs | None = None
        self._last_silence = Silence(0.0, 0.0, False)
        self._exit_code: int | None = None
        self.is_of_this_boot = True  # known once it has ended

    def look(self) -> RunState:
        """See how it is; the state that comes back differs from `state` where something changed.

        A final state comes back only when no process of the run is left. A queued state comes back where no worker of
        ours ever had the run, so that it must be looked at anew.
        """
        if self._is_alive():
            return self._look_at_living(self._history.update())
        if self._was_never_claimed():
            return self._given_up()
        if self._exit_code == _HELD_BY_ANOTHER and self.run.folder.has_living_worker():
            return self._held_by_another()
        self._end_group()
        return self._ending(self._history.update())

    def worker(self) -> ProcessIdentity | None:
        """The worker of this attempt, alive or not, where it is known."""
        record = self.run.folder.read_worker()
        if record is not None and record.attempt == self.state.attempt:
            return record.identity
        return self.spawned

    def _is_alive(self) -> bool:
        if self._process is not None:
            self._exit_code = self._process.poll()
            return self._exit_code is None
        if self.run.folder.has_living_worker():
            return True
        worker = self.worker()
        if worker is not None:
            if not worker.is_of_another_host():
                return worker.is_alive()  # within one machine, a lock that is free has no living worker
            # A file server may not show the lock of another host's worker; what that writes shows it.
            self._last_silence = self._watch.look(worker, is_training=self.state.state == "running")
            return self._last_silence.seconds < self._patience.silence.idle_seconds
        # A former supervisor may have started a worker without having written it down: it would show itself soon.
        return self._has_not_reported() and time.monotonic() - self._since < self._patience.claim_seconds

    def _has_not_reported(self) -> bool:
        return self.state.state != "running" and self._history.update().attempt < self.state.attempt

    def _was_never_claimed(self) -> bool:
        return self._process is None and self.worker() is None and self._has_not_reported()

    def _held_by_another(self) -> RunState:
        """Somebody else had started a worker before ours came: from now on it is the one that is followed.

        Where it goes by another number, or has not said any, whoever looks at the queue next finds it at work.
        """
        record = self.run.folder.read_worker()
        if record is None or record.attempt != self.state.attempt:
            return self._changed(state="queued", reason=None, cause="", advice="", device="", **_NOT_SILENT)
        # Not by way of the queue: it may end at any moment, and a run that waits is started.
        self._process = self._exit_code = self.spawned = None
        return self._look_at_living(self._history.update())

    def _given_up(self) -> RunState:
        lock = self.run.folder.worker_lock()
        if not lock.acquire(timeout_seconds=0):
            return self.state
        try:
            # Saved while the lock is ours: a worker that comes late can claim the run only after it, and then reads
            # that its attempt is over.
            queued = self._changed(state="queued", reason=None, cause="", advice="", device="", **_NOT_SILENT)
            self.run.folder.write_state(queued)
        finally:
            lock.release()
        return queued

    def _look_at_living(self, history: RunHistory) -> RunState:
        folder = self.run.folder
        cap_log(folder.log)
        worker = self.worker()
        self._note_cancel()
        reported = history.attempt == self.state.attempt
        noted: dict[str, object] = {"cancel_seen": self._cancel_seen, **_NOT_SILENT}
        if worker is not None:
            is_training = reported and history.last_step > 0
            silence = self._watch.look(worker, is_training=is_training)
            self._enforce(worker, silence)
            noted |= self._silent(silence)
            if silence.is_suspended:
                return self._changed(
                    state="running" if reported and self.state.state == "starting" else self.state.state,
                    reason="suspended",
                    cause="The worker process is suspended (SIGSTOP) and makes no progress.",
                    advice=f"Send it SIGCONT; it is ended after {silence.limit_seconds:.0f} seconds.",
                    **noted,
                )
        if folder.cancel_request.exists():
            cause = "Ends at once, as asked."
            return self._changed(state="stopping", reason="cancel_requested", cause=cause, advice="", **noted)
        if folder.stop_request.exists():
            cause = "Saves and stops, as asked."
            return self._changed(state="stopping", reason="stop_requested", cause=cause, advice="", **noted)
        has_begun = reported or self.state.state == "running"  # also where its log was lost
        return self._changed(state="running" if has_begun else "starting", reason=None, cause="", advice="", **noted)

    def _note_cancel(self) -> None:
        """Note when a cancel was first seen; the clock of a file server, which dates the request, may be another."""
        if not self.run.folder.cancel_request.exists():
            self._cancel_seen = None
        elif self._cancel_seen is None:
            self._cancel_seen = time.monotonic()

    def _silent(self, silence: Silence) -> dict[str, object]:
        """What people are told of a silence: since when, so that it need not be saved anew every second."""
        if not silence.is_unusual:
            return _NOT_SILENT
        before = self.state.silent_since
        since = before if before is not None else self._clock() - silence.seconds
        return {"silent_since": since, "silence_limit_seconds": silence.limit_seconds}

    def _enforce(self, worker: ProcessIdentity, silence: Silence) -> None:
        """End a worker that does not obey a cancel, or hangs."""
        if silence.is_too_long:
            self._ended_by_us = "suspended" if silence.is_suspended else "hung"
            self._last_silence = silence
        elif self._cancel_is_overdue():
            self._ended_by_us = "cancel"
        else:
            return
        worker.kill()
        self._end_group()

    def _cancel_is_overdue(self) -> bool:
        seen = self._cancel_seen
        return seen is not None and abs(time.monotonic() - seen) > self._patience.cancel_seconds

    def _end_group(self) -> None:
        """End what the worker started and left behind: no process of a run outlives it."""
        record = self.run.folder.read_worker()
        groups = {self._process.pid} if self._process is not None else set()
        if record is not None and record.is_of_this_boot():
            groups.add(record.process_group)
        for group in groups:
            end_group(group, (RUN_VARIABLE, self.run.id))

    def _ending(self, history: RunHistory) -> RunState:
        folder = self.run.folder
        reported = history.attempt == self.state.attempt
        worker = self.worker()
        before, now = self.state.oom_kills, out_of_memory_kills()
        lost_host = worker.host if worker is not None and worker.is_of_another_host() else None
        self.is_of_this_boot = worker is None or worker.is_of_this_boot()
        evidence = Evidence(
            finished_phase=history.finished_phase if reported else None,
            last_words=history.status.message if reported and history.status is not None else "",
            stopped_by=history.status.stopped_by if reported and history.status is not None else None,
            failed=(history.failed or noted_failure(folder.path)) if reported else None,
            exit_code=self._exit_code,
            out_of_memory_kills=0
            if before is None or now is None or not self.is_of_this_boot
            else max(now - before, 0),
            rebooted=not self.is_of_this_boot and lost_host is None,
            lost_host=lost_host,
            cancel_requested=folder.cancel_request.exists(),
            ended_by_us=self._ended_by_us,
            silent_seconds=self._last_silence.seconds,
            limit_seconds=self._last_silence.limit_seconds,
            last_step=history.last_step,
            total_steps=history.total_steps,
            has_adapter=folder.adapter.is_dir(),
            resumable_step=folder.newest_checkpoint_step(),
        )
        ending = judge(evidence)
        # A server that comes back later dates the end by the last thing that the worker said.
        watched = self._process is not None or self._ended_by_us is not None
        ended = self._clock() if watched or not reported or history.last_time is None else history.last_time
        return self._changed(
            state=ending.state,
            reason=ending.reason,
            cause=ending.cause,
            advice=ending.advice,
            ended=ended,
            resumable_step=None if ending.state == "completed" else evidence.resumable_step,
            **_NOT_SILENT,
        )

    def _changed(self, **changes: object) -> RunState:
        if all(getattr(self.state, name) == value for name, value in changes.items()):
            return self.state
        return self.state.model_copy(update={**changes, "changed": self._clock()})


def with_advice(followed: FollowedRun, state: RunState, home: LoratoryHome) -> RunState:
    """Where the system ended a worker for want of RAM: what the estimate would change, in figures.

    The estimate of a run on a GPU is of the GPU's memory, and says nothing of what filled the RAM.
    """
    if state.reason != "out_of_memory" or state.device != "cpu":
        return state
    try:
        advice = advice_on_memory(followed.run.folder.read_config(), home, describe_processor())
    except EngineError:
        advice = None
    return state if advice is None else state.model_copy(update={"advice": advice})


def with_energy(followed: FollowedRun, state: RunState, meter: Callable[[str], float | None]) -> RunState:
    """Add what the GPUs measured in this attempt; where one attempt was not measured, the whole is unknown.

    Args:
        followed: The attempt, as it stood before its end.
        state: As it stands now.
        meter: Joules that the devices of a lease have used so far, where they measure it.
    """
    began = state.energy_meter_joules
    now = meter(followed.state.device) if began is not None and followed.is_of_this_boot else None
    before = 0.0 if state.attempt == 1 else state.energy_joules
    total = None
    # Meters begin anew when their driver is loaded again.
    if began is not None and now is not None and before is not None and now >= began:
        total = before + now - began
    return state.model_copy(update={"energy_joules": total, "energy_meter_joules": None})
