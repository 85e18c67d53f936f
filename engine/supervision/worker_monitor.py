"""A supervisor's view of one run with a job: waiting, running, silent, asked to stop, ended."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from loratory.engine.errors import EngineError
from loratory.engine.hardware.processor import describe_processor
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.activity import ProgressWatch, Silence, SilenceLimits
from loratory.engine.runs.control import end_is_requested, time_limit_hours
from loratory.engine.runs.history.log import noted_failure
from loratory.engine.runs.history.run_history import HistoryReader
from loratory.engine.runs.job import EXIT_REFUSED, Job, JobStatus
from loratory.engine.runs.prediction import advice_on_memory
from loratory.engine.runs.run import Run, RunState, State, StateReason
from loratory.engine.supervision.diagnosis import EndedByUs, Evidence, diagnose, out_of_memory_kills, time_limit_words

_NOT_SILENT: dict[str, object] = {"silent_since": None, "silence_limit_seconds": None}
_NO_REASON = StateReason(None, "")
_NO_SILENCE = Silence(0.0, math.inf, is_suspended=False)


@dataclass(frozen=True)
class Timeouts:
    """Time limits of a supervisor, in seconds."""

    silence: SilenceLimits = field(default_factory=SilenceLimits)
    cancel_seconds: float = 5.0  # for a worker to obey `cancel` by itself
    claim_seconds: float = 30.0  # for a worker that a former supervisor may have started to show itself


class WorkerMonitor:
    """Watches one attempt at one run. The supervisor calls `poll` and saves what comes back."""

    def __init__(self, run: Run, state: RunState, job: Job, timeouts: Timeouts) -> None:
        self.run = run
        self.state = state
        self.job = job
        self._timeouts = timeouts
        self._history = HistoryReader(run.folder.events)
        self._watch = ProgressWatch(run.folder, timeouts.silence)
        self._cancel_seen = state.cancel_seen
        self._stop_was_passed_on = False
        self._ended_by_us: EndedByUs | None = None
        self._last_silence = Silence(0.0, 0.0, False)
        self._last_poll = float("-inf")
        self.ended_on_this_boot = True  # known once it has ended

    def is_due(self) -> bool:
        """Whether it is time to look again."""
        return time.monotonic() - self._last_poll >= self.job.poll_seconds()

    def poll(self) -> RunState:
        """Return the current state; it differs from `state` if something changed.

        A final state comes back only when no process of the run is left. A queued state comes back where no worker of
        ours ever had the run, so it must be polled again.

        Raises:
            EngineError: If the executor does not answer now.
        """
        self._last_poll = time.monotonic()
        has_reported = self.state.state == "running" or self._history.update().attempt >= self.state.attempt
        status = self.job.poll(has_reported=has_reported)
        match status.phase:
            case "never_started":
                return self._give_up()
            case "superseded":
                # The next poll of the queue finds the other worker.
                return self._waits_again()
            case "waiting":
                return self._poll_waiting(status)
            case "alive":
                return self._poll_running(status.why)
            case "unknown":
                return self._poll_running(status.why, is_seen=False)
        # What the worker reported last decides, so it must be here.
        self.job.fetch_logs()
        return self._ending()

    def _give_up(self) -> RunState:
        folder = self.run.folder
        with folder.keep_workers_away(timeout_seconds=0) as is_ours:
            record = folder.read_worker()
            if not is_ours or (record is not None and record.attempt == self.state.attempt):
                return self.state  # it came after the poll
            # Saved while the lock is ours: a worker that comes late can claim the run only after it, and then reads
            # that its attempt is over.
            state = self._waits_again()
            folder.write_state(state)
            return state

    def _poll_waiting(self, status: JobStatus) -> RunState:
        if end_is_requested(self.run.folder):
            self._ended_by_us = "cancel"  # it has nothing to save
            self.job.cancel()
            return self._with_state("stopping", StateReason("cancel_requested", "Removing from the executor's queue."))
        return self._with_state("submitted", status.why or _NO_REASON)

    def _poll_running(self, out_of_sight: StateReason | None, *, is_seen: bool = True) -> RunState:
        with contextlib.suppress(EngineError):  # of a living job they only come later
            self.job.fetch_logs()
        history = self._history.update()
        has_reported = history.attempt == self.state.attempt
        silence = self._observe(is_training=has_reported and history.last_step > 0)
        self._note_cancel()
        own_silence = silence if is_seen else _NO_SILENCE  # nothing follows from that of a worker out of sight
        self._enforce(own_silence)
        self._pass_on_stop()
        has_begun = has_reported or self.state.state == "running"  # also where its log was lost
        state: State = "running" if has_begun else "starting"
        reason = out_of_sight if is_seen or silence.is_unusual else None  # else what it writes shows that it lives
        state, reason = self._suspension(silence, state) or self._request() or (state, reason or _NO_REASON)
        return self._with_state(state, reason, cancel_seen=self._cancel_seen, **self._silent(own_silence))

    def _observe(self, *, is_training: bool) -> Silence:
        activity = self.job.activity()
        if activity is None:
            return _NO_SILENCE
        self._last_silence = self._watch.update(activity, is_training=is_training)
        return self._last_silence

    def _pass_on_stop(self) -> None:
        if self.run.folder.stop_request.exists() and not self._stop_was_passed_on:
            self.job.request_stop()
            self._stop_was_passed_on = True

    def _suspension(self, silence: Silence, state: State) -> tuple[State, StateReason] | None:
        if not silence.is_suspended:
            return None
        reason = StateReason(
            "suspended",
            "The worker process is suspended (SIGSTOP) and makes no progress.",
            f"Send it SIGCONT; it is ended after {silence.limit_seconds:.0f} seconds.",
        )
        return (state if self.state.state == "starting" else self.state.state), reason

    def _request(self) -> tuple[State, StateReason] | None:
        """Return the state of a run that was requested to end; None if it was not."""
        folder = self.run.folder
        if folder.cancel_request.exists():
            return "stopping", StateReason("cancel_requested", "Stopping at once, as requested.")
        if not folder.stop_request.exists():
            return None
        hours = time_limit_hours(folder)
        if hours is None:
            return "stopping", StateReason("stop_requested", "Saving and stopping, as requested.")
        return "stopping", StateReason("time_limit", f"{time_limit_words(hours)} Saving and stopping.")

    def _note_cancel(self) -> None:
        # By our clock: that of a file server, which dates the request, may be another.
        if not self.run.folder.cancel_request.exists():
            self._cancel_seen = None
        elif self._cancel_seen is None:
            self._cancel_seen = time.monotonic()

    def _silent(self, silence: Silence) -> dict[str, object]:
        """Return the start of its silence, not its length, so the state need not be saved every second."""
        if not silence.is_unusual:
            return _NOT_SILENT
        since = self.state.silent_since if self.state.silent_since is not None else time.time() - silence.seconds
        return {"silent_since": since, "silence_limit_seconds": silence.limit_seconds}

    def _enforce(self, silence: Silence) -> None:
        """End a worker that ignores a cancel, or hangs."""
        since = self._cancel_seen
        if silence.is_too_long:
            self._ended_by_us = "suspended" if silence.is_suspended else "hung"
        elif since is not None and abs(time.monotonic() - since) > self._timeouts.cancel_seconds:
            self._ended_by_us = "cancel"
        else:
            return
        self.job.cancel()

    def _ending(self) -> RunState:
        folder = self.run.folder
        end = self.job.end()
        history = self._history.update()
        has_reported = history.attempt == self.state.attempt
        self.ended_on_this_boot = end.on_this_boot
        if end.exit_code == EXIT_REFUSED and folder.adapter.is_dir() and history.status is not None:
            has_reported |= history.status.phase == "finished"  # an earlier attempt, which had been given up
        before, now = self.state.oom_kills, out_of_memory_kills()
        kills = now - before if end.on_this_boot and before is not None and now is not None else 0
        evidence = Evidence(
            end,
            self._last_silence,
            status=history.status if has_reported else None,
            failed=(history.failed if has_reported else None) or noted_failure(folder.path, self.state.attempt),
            out_of_memory_kills=max(kills, 0),
            cancel_requested=folder.cancel_request.exists(),
            time_limit_hours=time_limit_hours(folder),
            ended_by_us=self._ended_by_us,
            last_step=history.last_step,
            total_steps=history.total_steps,
            has_adapter=folder.adapter.is_dir(),
            resumable_step=folder.newest_checkpoint_step(),
        )
        diagnosis = diagnose(evidence)
        # A server that comes back later dates the end by the worker's last event.
        was_watched = end.exit_code is not None or self._ended_by_us is not None
        ended_at = time.time() if was_watched or not has_reported or history.last_time is None else history.last_time
        resumable_step = None if diagnosis.state == "completed" else evidence.resumable_step
        return self._with_changes(**diagnosis._asdict(), ended=ended_at, resumable_step=resumable_step, **_NOT_SILENT)

    def _waits_again(self) -> RunState:
        return self._with_changes(state="queued", **_NO_REASON._asdict(), device="", job_id="", **_NOT_SILENT)

    def _with_state(self, state: State, why: StateReason, **changes: object) -> RunState:
        where = {"device": self.job.describe(), "job_id": self.job.id}  # some executors know the id only later
        return self._with_changes(state=state, **why._asdict(), **where, **changes)

    def _with_changes(self, **changes: object) -> RunState:
        if all(getattr(self.state, name) == value for name, value in changes.items()):
            return self.state
        return self.state.model_copy(update={**changes, "changed": time.time()})


def with_advice(monitor: WorkerMonitor, state: RunState, home: LoratoryHome) -> RunState:
    """Return advice, from the estimate, for a worker that the system killed because RAM ran out.

    The estimate of a run on a GPU is of the GPU's memory, and shows nothing of what filled the RAM.
    """
    if state.reason != "out_of_memory" or state.device != "cpu":
        return state
    try:
        report = monitor.run.folder.read_dataset_report()
        rows = report.row_lengths if report is not None else None
        advice = advice_on_memory(monitor.run.folder.read_config(), home, describe_processor(), rows)
    except EngineError:
        advice = None
    return state if advice is None else state.model_copy(update={"advice": advice})


def with_energy(monitor: WorkerMonitor, state: RunState, meter: Callable[[str], float | None]) -> RunState:
    """Add what the GPUs measured in this attempt; where one attempt was not measured, the whole is unknown.

    `meter` gives the joules that the devices of a lease have used so far, where they measure it.
    """
    began = state.energy_meter_joules
    now = meter(monitor.state.device) if began is not None and monitor.ended_on_this_boot else None
    before = 0.0 if state.attempt == 1 else state.energy_joules
    total = None
    # Meters restart from zero when their driver is loaded again.
    if began is not None and now is not None and before is not None and now >= began:
        total = before + now - began
    return state.model_copy(update={"energy_joules": total, "energy_meter_joules": None})
