"""Requests to a run: anyone who may see it may ask; the worker looks at them, the supervisor enforces them."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from engine.errors import RunError, StorageError
from engine.files import write_atomically
from engine.paths import LoratoryHome
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
    """Let a waiting run start as soon as its device is free of other Loratory work, although its free memory does not cover it.

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
    """Whether a request asks to save and stop; cheap enough for every step."""
    return folder.stop_request.exists()


def cancel_is_requested(folder: RunFolder) -> bool:
    """Whether a request asks to end at once; cheap enough for every step."""
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


_FOLDER = "resume"


class ResumeRequest(NamedTuple):
    """A request to resume a run."""

    owner: str
    run_id: str


def request_resume(home: LoratoryHome, run: Run) -> None:
    """Ask to resume a run from its newest checkpoint, or from the start where it has none.

    Raises:
        RunError: If it waits, runs or is complete.
        StorageError: If the request cannot be written.
    """
    state = run.folder.read_state()
    if state.state == "completed":
        raise RunError(f"{run.id} is complete.", "Start another run from its configuration to train on.")
    if not state.is_final:
        raise RunError(f"{run.id} is {state.state}.", "Wait until it has ended.")
    path = _path(home, ResumeRequest(run.owner, run.id))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The request to resume cannot be written ({error.strerror}).", "Free some space, or check LORATORY_HOME."
        ) from error
    # With the attempt that was seen to have ended, so a request that comes late never outlives the next one.
    write_atomically(path, str(state.attempt))


def resume_requests(home: LoratoryHome) -> Iterator[ResumeRequest]:
    """What was asked and not yet done."""
    try:
        names = sorted(path.name for path in (home.server / _FOLDER).iterdir())
    except FileNotFoundError:
        return
    for name in names:
        if not name.startswith("."):  # half-written
            owner, _, run_id = name.partition("~")
            yield ResumeRequest(owner, run_id)


def resume_is_requested(home: LoratoryHome, run: Run) -> bool:
    """Whether a request to resume this run is not yet obeyed."""
    return ResumeRequest(run.owner, run.id) in resume_requests(home)


def attempt_to_follow(home: LoratoryHome, request: ResumeRequest) -> int | None:
    """Return the attempt that a request wants to follow; None where it does not say."""
    try:
        text = _path(home, request).read_text(encoding="ascii")
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return int(text) if text.isdecimal() else None


def forget_resume_request(home: LoratoryHome, request: ResumeRequest) -> None:
    """It is done, or cannot be done."""
    _path(home, request).unlink(missing_ok=True)


def _path(home: LoratoryHome, request: ResumeRequest) -> Path:
    return home.server / _FOLDER / f"{request.owner}~{request.run_id}"
