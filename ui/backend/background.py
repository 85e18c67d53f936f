"""Long work in server threads, one per key; pages only poll it, so reloads do not matter."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from loratory.engine.errors import EngineError, RunError
from loratory.engine.processes.messages import CancelledRequestError

_log = logging.getLogger(__name__)
_MOST_ENTRIES = 200

R = TypeVar("R")
Finished = TypeVar("Finished", covariant=True)

UNEXPECTED = EngineError("Something unexpected happened.", "Try again; details are in the terminal that runs Loratory.")


def as_engine_error(error: Exception) -> EngineError:
    """Return any exception as an EngineError; details of an unexpected one are logged."""
    if isinstance(error, EngineError):
        return error
    _log.error("something unexpected happened", exc_info=error)
    return UNEXPECTED


def stamp(*parts: object) -> str:
    """Return a text that changes with any of the values."""
    return "\x1f".join(map(str, parts))


class WorkProgress(NamedTuple):
    """Progress of a job; the engine's progress classes have the same two fields."""

    message: str
    fraction: float | None = None  # from 0 to 1, where it is known


class Job(Protocol[Finished]):
    """Interface of the engine's jobs."""

    def run(self, on_progress: Callable[[Any], None]) -> Finished: ...

    def stop(self) -> None: ...


class FunctionJob(Generic[R]):
    """A job of one function, which reports progress from any thread; after a stop, it ends at its next report."""

    def __init__(self, function: Callable[[Callable[[Any], None]], R]) -> None:
        self._function = function
        self._stop_requested = threading.Event()

    def run(self, on_progress: Callable[[Any], None]) -> R:
        worker = threading.get_ident()

        def report(progress: Any) -> None:
            # An exception in another thread, such as one that downloads, would not end the job.
            if self._stop_requested.is_set() and threading.get_ident() == worker:
                raise CancelledRequestError
            on_progress(progress)

        return self._function(report)

    def stop(self) -> None:
        self._stop_requested.set()


@dataclass
class Work(Generic[R]):
    """A piece of work: active, or ended by a result, an error or a stop."""

    title: str
    job: Job[R]
    started: float = field(default_factory=time.time)  # seconds since the epoch
    message: str = "Starting."
    fraction: float | None = None
    stopping: bool = False
    result: R | None = None
    error: EngineError | None = None
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def is_under_way(self) -> bool:
        return not self.done.is_set()

    @property
    def was_stopped(self) -> bool:
        return isinstance(self.error, CancelledRequestError)

    @property
    def progress_text(self) -> str:
        """Message about its progress."""
        return "Stopping …" if self.stopping else self.message

    @property
    def stamp(self) -> str:
        """A stamp that changes with everything that a page shows of it."""
        return stamp(self.started, self.is_under_way, self.progress_text, self.fraction)


class BackgroundWork(Generic[R]):
    """Starts jobs and keeps their state; `describe` returns what a page shows of their progress."""

    def __init__(self, describe: Callable[[Any], WorkProgress] = lambda progress: progress) -> None:
        self._describe = describe
        self._works: OrderedDict[str, Work[R]] = OrderedDict()
        self._lock = threading.RLock()  # guards _works: handlers of many pages ask at once

    def start(self, key: str, title: str, job: Job[R], keep: Callable[[R], None] = lambda _: None) -> Work[R]:
        """Run a job in its own thread, with or without a page; `keep` saves the result before it is shown.

        Raises:
            RunError: If there is work already under this key, such as a run's id.
        """
        with self._lock:
            self.require_none(key)
            work = Work(title, job)
            self._works[key] = work
            self._works.move_to_end(key)
            for finished_key in [name for name, old in self._works.items() if not old.is_under_way][:-_MOST_ENTRIES]:
                del self._works[finished_key]
        threading.Thread(target=self._run, args=(work, keep), name="background-work", daemon=True).start()
        return work

    def start_once(self, key: str, title: str, job: Job[R], *, again: bool = False) -> Work[R]:
        """Return the work under a key; start it if there is none, or `again` after a failure."""
        with self._lock:
            present = self._works.get(key)
            if present is None or (again and present.error is not None and not present.is_under_way):
                return self.start(key, title, job)
            return present

    def find(self, key: str) -> Work[R] | None:
        """Return the work under a key; None if there is none since the server started."""
        with self._lock:
            return self._works.get(key)

    def require_none(self, key: str) -> None:
        """Refuse to begin under a key while work is under way there.

        Raises:
            RunError: If it is.
        """
        present = self.find(key)
        if present is not None and present.is_under_way:
            raise RunError(f"{present.title} is under way.", "Wait for its end, or stop it.")

    def stop(self, key: str) -> None:
        """Request an early end; the work's result is discarded."""
        work = self.find(key)
        if work is not None and work.is_under_way:
            work.stopping = True
            work.job.stop()

    def stop_all(self, patience_seconds: float = 5.0) -> None:
        """Stop all work before the server ends, so no partial files remain."""
        with self._lock:
            working = {key: work for key, work in self._works.items() if work.is_under_way}
        for key in working:
            self.stop(key)
        deadline = time.monotonic() + patience_seconds
        for work in working.values():
            work.done.wait(max(0.0, deadline - time.monotonic()))

    def _run(self, work: Work[R], keep: Callable[[R], None]) -> None:
        def note(progress: Any) -> None:
            description = self._describe(progress)
            work.message, work.fraction = description.message, description.fraction

        try:
            result = work.job.run(note)
            keep(result)
            work.result = result
        except Exception as error:
            work.error = as_engine_error(error)
        finally:
            work.done.set()


class Cache(Generic[R]):
    """Caches the newest results by all their inputs, as several pages request the same at once."""

    def __init__(self, capacity: int = 48) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()  # guards _results: handlers run in many threads
        self._results: OrderedDict[Hashable, R] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], R]) -> R:
        """Return the result for `key`; compute it if missing."""
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
                return self._results[key]
        value = make()
        with self._lock:
            self._results[key] = value
            while len(self._results) > self._capacity:
                self._results.popitem(last=False)
        return value
