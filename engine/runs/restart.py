"""Which runs go on by themselves after the machine was restarted: those that the restart ended, and nobody else."""

from engine.errors import EngineError
from engine.processes.identity import boot_id
from engine.runs.control import cancel_is_requested, stop_is_requested
from engine.runs.endings import blames_the_system
from engine.runs.event_log import last_event
from engine.runs.events import StatusEvent
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
    if worker is None or worker.attempt != state.attempt or worker.boot_id == boot_id():
        return False
    # What a person asked for holds, also where the restart was quicker than the worker.
    if stop_is_requested(folder) or cancel_is_requested(folder):
        return False
    return blames_the_system(state.cause or _last_words(folder)) and _is_promised(folder)


def _last_words(folder: RunFolder) -> str:
    last = last_event(folder.events)
    return last.data.message if isinstance(last, StatusEvent) else ""


def _is_promised(folder: RunFolder) -> bool:
    try:
        return folder.read_config().run.resume_after_restart
    except EngineError:
        return False
