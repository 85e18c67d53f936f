"""Requests to a run, which its worker checks and its supervisor enforces, and notes about it.

What cannot be written is a StorageError.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

from pydantic import BaseModel, StringConstraints

from loratory.engine.config.load import section_from_mapping
from loratory.engine.config.run import OneLine, RunConfig, WorkPlace
from loratory.engine.errors import RunError, explain_os_errors
from loratory.engine.files import read_model, write_atomically
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.run import Run, RunFolder


def request_stop(run: Run) -> None:
    """Ask a run to save and stop; a queued one is removed from the queue.

    Raises:
        RunError: If it has already ended.
    """
    _refuse_ended(run, "stopped")
    _touch(run.folder.stop_request)


def request_cancel(run: Run) -> None:
    """Ask a run to end at once; its last checkpoint is kept. Raises as `request_stop` does."""
    _refuse_ended(run, "cancelled")
    _touch(run.folder.cancel_request)


def request_start_anyway(run: Run) -> None:
    """Let a waiting run start as soon as its device has no other Loratory work, even if free memory is too small.

    Raises:
        RunError: If it does not wait.
    """
    state = run.folder.read_state().state
    if state != "queued":
        raise RunError(f"{run.id} is {state} and does not wait.", "Resume it first, where it has ended.")
    _touch(run.folder.start_anyway_request)


_TIME_LIMIT = "time limit "
_SHARING_PLACES = get_args(WorkPlace)  # which work in the run's own folder


def request_stop_for_time(folder: RunFolder, hours: float) -> None:
    """Ask a run to save and stop because of the lab's maximum run time; does not replace a person's request."""
    if not folder.stop_request.exists():
        write_atomically(folder.stop_request, f"{_TIME_LIMIT}{hours!r}")


def time_limit_hours(folder: RunFolder) -> float | None:
    """Return the limit for which a run was asked to stop; None where a person asked, or it was not asked."""
    try:
        text = folder.stop_request.read_text(encoding="ascii")
        return float(text.removeprefix(_TIME_LIMIT)) if text.startswith(_TIME_LIMIT) else None
    except (OSError, ValueError):
        return None


def end_is_requested(folder: RunFolder) -> bool:
    """Whether a person has asked a run to stop or cancel."""
    return folder.stop_request.exists() or folder.cancel_request.exists()


def clear_requests(folder: RunFolder) -> None:
    """Forget earlier requests, before another attempt begins."""
    for request in (folder.stop_request, folder.cancel_request, folder.start_anyway_request):
        request.unlink(missing_ok=True)


def request_target(run: Run, where: str) -> None:
    """Choose another run target, which sees the run's folder, for its next attempts.

    Raises:
        RunError: If it is not one.
    """
    if where not in _SHARING_PLACES:
        raise RunError(f"A run cannot be resumed on {where[:40]!r}.", f"Choose one of {', '.join(_SHARING_PLACES)}.")
    write_atomically(run.folder.place_request, where, makes_folder=True)


def with_requested_target(config: RunConfig, folder: RunFolder) -> RunConfig:
    """Return the configuration of a run with the run target that a person chose for its next attempts."""
    try:
        where = folder.place_request.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return config
    if where not in _SHARING_PLACES:
        return config
    return config.model_copy(update={"run": config.run.model_copy(update={"where": where})})


def _refuse_ended(run: Run, what: str) -> None:
    state = run.folder.read_state()
    if state.is_final:
        fact = f"{run.id} is already {state.state} and cannot be {what}."
        raise RunError(fact, "Look at it with `loratory show`, or resume it.")


def _touch(request: Path) -> None:
    with explain_os_errors(
        f"The request to {request.name} cannot be written", "Check the permissions of the run's folder."
    ):
        request.parent.mkdir(mode=0o700, exist_ok=True)
        request.touch(mode=0o600)


_FOLDER = "resume"


class ResumeRequest(NamedTuple):
    """A request to resume a run."""

    owner: str
    run_id: str
    attempt: int  # that it follows
    path: Path  # to be removed once it is handled


def request_resume(home: LoratoryHome, run: Run) -> None:
    """Request to resume a run from its newest checkpoint, or from the start if it has none.

    Raises:
        RunError: If it waits, runs or is complete.
    """
    state = run.folder.read_state()
    if state.state == "completed":
        raise RunError(f"{run.id} is complete.", "Start another run from its configuration to train on.")
    if not state.is_final:
        raise RunError(f"{run.id} is {state.state}.", "Wait until it has ended.")
    if state.job_id and run.folder.has_living_worker():  # it had been given up
        raise RunError(f"{run.id} is {state.state}, and its worker still runs.", "Wait a minute: its state is updated.")
    # With the attempt that was seen to have ended, so a request that comes late never outlives the next one.
    write_atomically(_resume_path(home, run), str(state.attempt), makes_folder=True)


def resume_requests(home: LoratoryHome) -> Iterator[ResumeRequest]:
    """Yield the pending requests."""
    for path in sorted((home.server / _FOLDER).glob("[!.]*")):  # those are half-written
        owner, _, run_id = path.name.partition("~")
        with contextlib.suppress(FileNotFoundError, ValueError):
            yield ResumeRequest(owner, run_id, int(path.read_text(encoding="ascii")), path)


def resume_is_requested(home: LoratoryHome, run: Run) -> bool:
    """Whether there is a pending request to resume this run."""
    return _resume_path(home, run).exists()


def _resume_path(home: LoratoryHome, run: Run) -> Path:
    return home.server / _FOLDER / f"{run.owner}~{run.id}"


_PRINTABLE = r"^[^\x00-\x1f\x7f]*$"
Tag = Annotated[OneLine, StringConstraints(min_length=1, max_length=40, pattern=_PRINTABLE)]


class RunNotes(BaseModel, frozen=True):
    """What may change about a run after its start."""

    name: Annotated[OneLine, StringConstraints(max_length=120, pattern=_PRINTABLE)] = ""  # "" keeps the config's
    note: Annotated[str, StringConstraints(max_length=10_000)] = ""
    tags: tuple[Tag, ...] = ()
    star: bool = False
    project: Annotated[OneLine, StringConstraints(max_length=40, pattern=_PRINTABLE)] = ""  # "" is none


def read_notes(folder: RunFolder) -> RunNotes:
    """Return the notes; empty if the file is missing or unreadable."""
    return read_model(folder.notes, RunNotes) or RunNotes()


def change_notes(folder: RunFolder, **changes: Any) -> RunNotes:
    """Change the given fields of the notes and keep the rest; the run itself is not affected.

    Raises:
        ConfigError: If a text is too long or holds control characters.
    """
    values = {**read_notes(folder).model_dump(), **changes}
    stripped = {field: values[field].strip() for field in ("name", "project")}
    tags = tuple(dict.fromkeys(tag.strip() for tag in values["tags"] if tag.strip()))
    notes = section_from_mapping(RunNotes, {**values, **stripped, "tags": tags})
    write_atomically(folder.notes, notes.model_dump_json())
    return notes
