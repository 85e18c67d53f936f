"""Transitions between the states of runs, and what a supervisor remembers: folders of owners, and logged problems."""

import contextlib
import logging
import time
from collections.abc import Iterator

from loratory.engine.errors import EngineError
from loratory.engine.runs import run as run_states
from loratory.engine.runs.control import end_is_requested
from loratory.engine.runs.history.log import last_event
from loratory.engine.runs.job import Executor
from loratory.engine.runs.store import RunStore
from loratory.engine.supervision.diagnosis import out_of_memory_kills

_log = logging.getLogger(__name__)


def starting_state(before: run_states.RunState, executor: Executor, attempt: int, device: str) -> run_states.RunState:
    """Return the state of a run whose worker is about to be started, or was found running."""
    now = time.time()
    return run_states.RunState(
        state="starting" if executor.uses_local_devices else "submitted",
        executor=executor.name,
        attempt=attempt,
        device=device,
        changed=now,
        started=before.started or now,
        attempt_started=now,
        resumable_step=before.resumable_step,
        fruitless_attempts=before.fruitless_attempts,
        oom_kills=out_of_memory_kills(),
        energy_joules=before.energy_joules,
    )


def put_back(state: run_states.RunState) -> run_states.RunState:
    """Return the state of an ended run that waits for another attempt."""
    step = state.resumable_step
    cause = f"Resumes from step {step}." if step is not None else "Starts over; there is no complete checkpoint."
    if state.reason in run_states.ENDED_BY_THE_EXECUTOR:
        cause = f"{state.cause} {cause}"
    why = run_states.StateReason("resumes", cause)._asdict()
    return state.model_copy(update={"state": "queued", **why, "ended": None, "changed": time.time()})


_FRUITLESS_AT_MOST = 3


def with_progress(before: run_states.RunState, after: run_states.RunState) -> run_states.RunState:
    """Count an attempt that ended without a newer checkpoint: after three in a row, no executor's end is resumed."""
    if (after.resumable_step or 0) > (before.resumable_step or 0):
        return after.model_copy(update={"fruitless_attempts": 0})
    fruitless, advice = before.fruitless_attempts + 1, after.advice
    if after.reason in run_states.ENDED_BY_THE_EXECUTOR and fruitless >= _FRUITLESS_AT_MOST:
        advice += (
            f" It is not resumed automatically any further: {fruitless} attempts in a row saved no newer checkpoint."
        )
    return after.model_copy(update={"fruitless_attempts": fruitless, "advice": advice})


def resumes_automatically(folder: run_states.RunFolder, state: run_states.RunState) -> bool:
    """Whether an ended run is resumed automatically.

    One from which an executor took the machine is, until three attempts in a row saved nothing new. One that ended with
    its machine is where `resume_after_restart` promises it.

    All of it is on the disk, so the next supervisor comes to the same answer: a server that was killed or
    found no room before it had put the run back, as well as one that comes after a server that had seen the end. Within
    one boot this returns False: a scheduler's SIGTERM looks like that of a shutdown until the machine has been restarted.
    """
    if state.state not in ("stopped", "interrupted"):
        return False
    if state.reason in run_states.ENDED_BY_THE_EXECUTOR:
        return state.fruitless_attempts < _FRUITLESS_AT_MOST and not end_is_requested(folder)
    worker = folder.read_worker()
    if worker is None or worker.attempt != state.attempt:
        return False
    if worker.is_of_this_boot() or worker.is_of_another_host():  # whether that was restarted is not known
        return False
    # A person's request counts even if the machine restarted before the worker handled it.
    if end_is_requested(folder):
        return False
    try:
        return state.reason in run_states.ENDED_BY_THE_SYSTEM and folder.read_config().run.resume_after_restart
    except EngineError:
        return False


# The executor had lost the job, which proves nothing about its worker.
_GIVEN_UP: frozenset[run_states.Reason | None] = frozenset({"unknown", "ended_by_executor"})


def has_later_worker(run: run_states.Run) -> bool:
    """Whether a run that had ended has or had a worker since, which no supervisor started.

    Slurm starts a job again that it preempted, and a worker of an attempt that was given up may go on.

    Raises:
        StorageError: If the disk or a file server fails at present.
    """
    worker, state, last = run.folder.read_worker(), run.folder.read_saved_state(), last_event(run.folder.events)
    if worker is None or state is None:
        return False
    reported_at = last.time if last is not None and last.attempt == worker.attempt else 0.0
    if worker.attempt > state.attempt:
        return bool(reported_at) or run.folder.has_living_worker() or worker.liveness() == "unknown"
    return bool(state.job_id) and state.reason in _GIVEN_UP and reported_at > (state.ended or 0.0)


_UNSETTLED_SECONDS = 2.0  # a folder changed so recently may change again without another modification time
_LOOK_AGAIN_SECONDS = 30.0  # however unchanged a folder looks: network filesystems cache its times


class OwnerFolder:
    """Remembers an owner's folder, so an unchanged one costs nothing."""

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self.known: set[str] = set()
        self._modified = 0
        self._last_look = 0.0

    def has_changed(self) -> bool:
        """Whether the folder has to be read again; the caller reads it."""
        try:
            modified = self.store.folder.stat().st_mtime_ns
        except FileNotFoundError:
            return bool(self.known)  # gone with all that was in it, or away: what comes back is taken in again
        now = time.time()
        is_settled = now - modified / 1e9 > _UNSETTLED_SECONDS
        if modified == self._modified and is_settled and now - self._last_look < _LOOK_AGAIN_SECONDS:
            return False
        self._modified, self._last_look = modified, now
        return True


class ProblemLog:
    """Logs problems of runs or owners, each once, and lets the rest continue."""

    def __init__(self) -> None:
        self._last_texts: dict[tuple[str, str], str] = {}  # by run or owner, and by what was tried

    def report(self, about: str, text: str, tried: str = "") -> None:
        """Log a problem, unless it is the same as the last one of the same action."""
        if self._last_texts.get((about, tried)) != text:
            _log.error(text)
        self._last_texts[about, tried] = text

    @contextlib.contextmanager
    def guard(self, about: str, what: str) -> Iterator[None]:
        """Continue after the block even if it fails; log the error as `about what: why`."""
        try:
            yield
        except (EngineError, OSError) as error:
            self.report(about, f"{about} {what}: {error}", tried=what)
