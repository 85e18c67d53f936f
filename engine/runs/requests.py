"""Requests to the supervisor that concern runs without a worker: go on with one that has ended."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from engine.errors import RunError, StorageError
from engine.files import write_atomically
from engine.paths import LoratoryHome
from engine.runs.run import Run

_FOLDER = "resume"


class ResumeRequest(NamedTuple):
    """Somebody wants a run to go on."""

    owner: str
    run_id: str


def request_resume(home: LoratoryHome, run: Run) -> None:
    """Ask that a run goes on from its newest checkpoint, or begins anew where it has none.

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
    # With the attempt that was seen to have ended, so that a request that comes late never outlives the next one.
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
    """Whether somebody asked that this run goes on, and it has not been taken up yet."""
    return ResumeRequest(run.owner, run.id) in resume_requests(home)


def attempt_to_follow(home: LoratoryHome, request: ResumeRequest) -> int | None:
    """The attempt after which somebody wants the run to go on; None where the request does not say."""
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
