"""Whether a person of a lab may put more runs into the queue."""

import contextlib
from collections.abc import Iterator

from engine.accounts.limits import is_lab, read_rules
from engine.errors import EngineError, RunError
from engine.paths import LoratoryHome
from engine.processes.liveness import FileLock
from engine.runs.control import request_resume, resume_requests
from engine.runs.disk import require_disk_space
from engine.runs.run import Run
from engine.runs.store import RunStore


@contextlib.contextmanager
def admitted(home: LoratoryHome, owner: str, count: int = 1) -> Iterator[None]:
    """Allow the block to queue runs; concurrent requests are counted one after the other.

    Does nothing without accounts.

    Raises:
        RunError: If the person would exceed the lab's limit of waiting runs.
        StorageError: If the disk space is not sufficient.
    """
    if not count or not is_lab(home):
        yield
        return
    require_disk_space(home, owner)
    with FileLock(home.server / f"admission-{owner}.lock"):
        _require_place(home, owner, count)
        yield


def require_admission(home: LoratoryHome, owner: str, count: int = 1) -> None:
    """Refuse at once what `admitted` would refuse, before long checks; raises as it does."""
    with admitted(home, owner, count):
        pass


def resume_run(home: LoratoryHome, run: Run) -> None:
    """Request to resume a run, if its owner may queue one more; raises as `request_resume` and `admitted` do.

    Raises:
        RunError: Also if its owner has become a guest, and it trains elsewhere.
    """
    if home.is_guest and run.folder.read_config().run.is_elsewhere:
        raise RunError(
            "Guests train on the lab's own devices, and this run trained elsewhere.",
            "Copy its settings to train it here.",
        )
    with admitted(home, run.owner):
        request_resume(home, run)


def _require_place(home: LoratoryHome, owner: str, count: int) -> None:
    rules = read_rules(home)
    most = None if rules is None else rules.limits.waiting_per_person
    if most is None:
        return
    waiting = _waiting_runs(home, owner)
    if waiting + count > most:
        more = "1 more is" if count == 1 else f"{count:,} more are"
        raise RunError(
            f"You have {waiting:,} waiting runs, and {more} too many: the lab allows {most:,} per person.",
            "Wait until some have started, or remove some from the queue.",
        )


def _waiting_runs(home: LoratoryHome, owner: str) -> int:
    """Count the runs of a person that wait, those included that are about to be resumed."""
    waiting = {request.run_id for request in resume_requests(home) if request.owner == owner}
    for run in RunStore(home, owner).list():
        with contextlib.suppress(EngineError):
            if run.folder.read_state().state == "queued":
                waiting.add(run.id)
    return len(waiting)
