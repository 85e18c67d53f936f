"""What a supervisor's own acts make of a run's state: found, put into the queue, begun, taken out again."""

from engine.errors import EngineError
from engine.runs.endings import out_of_memory_kills
from engine.runs.reasons import Why
from engine.runs.run import Run, RunFolder, RunState, State


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


def begun(before: RunState, attempt: int, device: str, meter_joules: float | None, now: float) -> RunState:
    """A worker is about to be started, or was found at work.

    Args:
        before: As it waited.
        attempt: The worker's.
        device: As the lease names it.
        meter_joules: What the meters of its devices show, where they measure.
        now: Seconds since the epoch.
    """
    changes = {
        "state": "starting",
        "reason": None,
        "cause": "",
        "advice": "",
        "attempt": attempt,
        "device": device,
        "changed": now,
        "started": before.started or now,
        "ended": None,
        "oom_kills": out_of_memory_kills(),
        "energy_meter_joules": meter_joules,
        "notice": "",
        "cancel_seen": None,
        "silent_since": None,
        "silence_limit_seconds": None,
    }
    return before.model_copy(update=changes)


def put_back(ended: RunState, now: float) -> RunState:
    """A run that has ended waits for another attempt."""
    step = ended.resumable_step
    cause = f"Goes on from step {step}." if step is not None else "Begins anew; there is no whole checkpoint."
    changes = {"state": "queued", "reason": "resumes", "cause": cause, "advice": "", "ended": None, "changed": now}
    return ended.model_copy(update=changes)


def ended_waiting(waiting: RunState, state: State, why: Why, now: float) -> RunState:
    """A waiting run leaves the queue without a worker."""
    changes = {"state": state, **why._asdict(), "changed": now, "ended": now}
    return waiting.model_copy(update=changes)


def why_not_started(run: Run, error: EngineError | OSError) -> Why:
    """Why the state of a run whose worker could not be started."""
    if isinstance(error, EngineError):
        return Why("not_started", error.what, error.fix)
    return Why(
        "not_started", f"{run.id} could not be started ({error.strerror}).", "Check the permissions of its folder."
    )
