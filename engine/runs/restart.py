"""Which runs go on by themselves after the machine was restarted: those that the restart ended, and nobody else."""

from engine.errors import EngineError
from engine.runs.control import cancel_is_requested, stop_is_requested
from engine.runs.event_log import last_event
from engine.runs.events import StatusEvent
from engine.runs.reasons import ENDED_BY_THE_SYSTEM, STOP_REASONS, Reason
from engine.runs.run import RunFolder, RunState


def goes_on_by_itself(folder: RunFolder, state: RunState) -> bool:
    """Whether a run that has ended is owed another attempt, as `resume_after_restart` promises.

    All of it stands on the disk, so that whoever supervises next comes to the same answer: a server that was killed or
    found no room before it had put the run back, as well as one that comes after a server that had seen the end. Within
    one boot the answer is no: a scheduler's SIGTERM looks like that of a shutdown until the machine has been restarted.

    Args:
        folder: The run's.
        state: As it stands, or as it is about to be saved.
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
    stopped_by = last.data.stopped_by if isinstance(last, StatusEvent) else None
    return STOP_REASONS[stopped_by] if stopped_by is not None else None


def _is_promised(folder: RunFolder) -> bool:
    try:
        return folder.read_config().run.resume_after_restart
    except EngineError:
        return False
