"""States that the supervisor's own acts lead to: found, queued, begun, removed from the queue, resumed."""

from engine.errors import EngineError
from engine.executors.base import Executor
from engine.runs.control import cancel_is_requested, stop_is_requested
from engine.runs.history.events import StatusData
from engine.runs.history.log import last_event
from engine.runs.reasons import ENDED_BY_THE_SYSTEM, STOP_REASONS, Reason, Why
from engine.runs.run import Run, RunFolder, RunState, State
from engine.runs.supervision.diagnosis import out_of_memory_kills


def recovered(folder: RunFolder, device: str, now: float) -> RunState:
    """The state of a run that has none: new, or robbed of its file.

    One that has ended goes through its end again, where all that is known of it is weighed.

    Args:
        folder: The run's.
        device: What is leased for it at present.
        now: Seconds since the epoch.
    """
    state = folder.state_by_other_files()
    if state.state == "queued":
        return RunState(changed=now)
    return RunState(state="running", attempt=state.attempt, started=state.started or now, device=device, changed=now)


def requeued(folder: RunFolder, now: float) -> RunState:
    """The state of a run that waits and has none."""
    return RunState(attempt=folder.attempts_seen(), resumable_step=folder.newest_checkpoint_step(), changed=now)


def begun(before: RunState, executor: Executor, attempt: int, device: str, now: float) -> RunState:
    """Return the state of a run whose worker is about to be started, or was found at work.

    Args:
        before: As it waited.
        executor: Where the worker runs.
        attempt: The worker's.
        device: As the lease names it.
        now: Seconds since the epoch.
    """
    changes = {
        "state": "starting" if executor.uses_local_devices else "submitted",
        "executor": executor.name,
        "job_id": "",
        "reason": None,
        "cause": "",
        "advice": "",
        "attempt": attempt,
        "device": device,
        "changed": now,
        "started": before.started or now,
        "ended": None,
        "oom_kills": out_of_memory_kills(),
        "energy_meter_joules": None,
        "notice": "",
        "cancel_seen": None,
        "silent_since": None,
        "silence_limit_seconds": None,
    }
    return before.model_copy(update=changes)


def put_back(ended: RunState, now: float) -> RunState:
    """A run that has ended waits for another attempt."""
    step = ended.resumable_step
    cause = f"Resumes from step {step}." if step is not None else "Starts over; there is no complete checkpoint."
    changes = {"state": "queued", "reason": "resumes", "cause": cause, "advice": "", "ended": None, "changed": now}
    return ended.model_copy(update=changes)


def ended_waiting(waiting: RunState, state: State, why: Why, now: float) -> RunState:
    """A waiting run leaves the queue without a worker."""
    changes = {"state": state, **why._asdict(), "changed": now, "ended": now}
    return waiting.model_copy(update=changes)


def start_failure(run: Run, error: EngineError | OSError) -> Why:
    """Return why the worker of a run could not be started."""
    if isinstance(error, EngineError):
        return Why("not_started", error.what, error.fix)
    return Why(
        "not_started", f"{run.id} could not be started ({error.strerror}).", "Check the permissions of its folder."
    )


def resumes_automatically(folder: RunFolder, state: RunState) -> bool:
    """Whether a run that has ended is resumed without a request, as `resume_after_restart` promises.

    All of it is on the disk, so the next supervisor comes to the same answer: a server that was killed or
    found no room before it had put the run back, as well as one that comes after a server that had seen the end. Within
    one boot the answer is no: a scheduler's SIGTERM looks like that of a shutdown until the machine has been restarted.

    Args:
        folder: The run's.
        state: As it is, or as it is about to be saved.
    """
    if state.state not in ("stopped", "interrupted"):
        return False
    worker = folder.read_worker()
    if worker is None or worker.attempt != state.attempt or worker.is_of_this_boot():
        return False
    # What a person asked for holds, also where the restart was quicker than the worker.
    if stop_is_requested(folder) or cancel_is_requested(folder):
        return False
    return (state.reason or _logged_reason(folder)) in ENDED_BY_THE_SYSTEM and _is_promised(folder)


def _logged_reason(folder: RunFolder) -> Reason | None:
    last = last_event(folder.events)
    stopped_by = last.data.stopped_by if last is not None and isinstance(last.data, StatusData) else None
    return STOP_REASONS[stopped_by] if stopped_by is not None else None


def _is_promised(folder: RunFolder) -> bool:
    try:
        return folder.read_config().run.resume_after_restart
    except EngineError:
        return False
