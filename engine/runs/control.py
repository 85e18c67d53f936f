"""Requests to a run: anyone who may see it may ask; the worker looks at them, the supervisor enforces them."""

from engine.errors import RunError, StorageError
from engine.runs.run import Run, RunFolder


def request_stop(run: Run) -> None:
    """Ask a run to save what it has and stop; a queued one is taken out of the queue.

    Raises:
        RunError: If it has already ended.
        StorageError: If the request cannot be written.
    """
    _refuse_ended(run, "stopped")
    _touch(run.folder, "stop")


def request_cancel(run: Run) -> None:
    """Ask a run to end at once; its last checkpoint stays.

    Raises:
        RunError: If it has already ended.
        StorageError: If the request cannot be written.
    """
    _refuse_ended(run, "cancelled")
    _touch(run.folder, "cancel")


def request_start_anyway(run: Run) -> None:
    """Let a waiting run start as soon as its device is in nobody's use, although its free memory does not cover it.

    Raises:
        RunError: If it does not wait.
        StorageError: If the request cannot be written.
    """
    state = run.folder.read_state().state
    if state != "queued":
        raise RunError(f"{run.id} is {state} and does not wait.", "Resume it first, where it has ended.")
    _touch(run.folder, "start-anyway")


def start_anyway_is_requested(folder: RunFolder) -> bool:
    """Whether a waiting run shall start without regard to the free memory."""
    return folder.start_anyway_request.exists()


def stop_is_requested(folder: RunFolder) -> bool:
    """Whether somebody asked to save and stop; cheap enough for every step."""
    return folder.stop_request.exists()


def cancel_is_requested(folder: RunFolder) -> bool:
    """Whether somebody asked to end at once; cheap enough for every step."""
    return folder.cancel_request.exists()


def clear_requests(folder: RunFolder) -> None:
    """Forget earlier requests, before another attempt begins."""
    folder.stop_request.unlink(missing_ok=True)
    folder.cancel_request.unlink(missing_ok=True)
    folder.start_anyway_request.unlink(missing_ok=True)


def _refuse_ended(run: Run, what: str) -> None:
    state = run.folder.read_state()
    if state.is_final:
        raise RunError(
            f"{run.id} is already {state.state} and cannot be {what}.", "Look at it with `loratory show`, or resume it."
        )


def _touch(folder: RunFolder, name: str) -> None:
    try:
        folder.control.mkdir(mode=0o700, exist_ok=True)
        (folder.control / name).touch(mode=0o600)
    except OSError as error:
        raise StorageError(
            f"The request to {name} cannot be written ({error.strerror}).", "Check the permissions of the run's folder."
        ) from error
