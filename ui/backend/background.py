"""Long work in threads of the server, one piece under each key; pages only look at it, so that a reload changes nothing."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from engine.errors import EngineError, RunError
from engine.processes.messages import CancelledRequestError
from ui.errors import UNEXPECTED

_log = logging.getLogger(__name__)
_REMEMBERED = 200

R = TypeVar("R")
Finished = TypeVar("Finished", covariant=True)


class Progress(Protocol):
    """How far a job has come; `fraction` from 0 to 1 where it is known."""

    @property
    def message(self) -> str: ...

    @property
    def fraction(self) -> float | None: ...


class Job(Protocol[Finished]):
    """What the engine's jobs have in common."""

    def run(self, on_progress: Callable[[Any], None]) -> Finished: ...

    def stop(self) -> None: ...


@dataclass
class Work(Generic[R]):
    """One piece of work: under way, or ended with a result, an error, or because it was stopped."""

    title: str  # what it is, for whoever wants to start another
    job: Job[R]
    started: float = field(default_factory=time.time)  # seconds since the epoch
    message: str = "Starting."
    fraction: float | None = None
    stopping: bool = False
    result: R | None = None
    error: EngineError | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def is_under_way(self) -> bool:
        return not self.ended.is_set()

    @property
    def was_stopped(self) -> bool:
        return isinstance(self.error, CancelledRequestError)


class BackgroundWork(Generic[R]):
    """Starts jobs and remembers how they stand."""

    def __init__(self) -> None:
        self._works: OrderedDict[str, Work[R]] = OrderedDict()
        self._lock = threading.Lock()  # guards _works: handlers of many pages ask at once

    def start(self, key: str, title: str, job: Job[R], keep: Callable[[R], None] = lambda _: None) -> Work[R]:
        """Run a job in a thread of its own.

        Args:
            key: Whatever can have one piece of work at a time, such as a run's id.
            title: What it is.
            job: Ran to its end, whoever looks.
            keep: Writes the result down, before it is shown.

        Raises:
            RunError: If there is work under this key already.
        """
        with self._lock:
            present = self._works.get(key)
            if present is not None and present.is_under_way:
                raise RunError(f"{present.title} is under way for this run.", "Wait for its end, or stop it.")
            work = Work(title, job)
            self._works[key] = work
            self._works.move_to_end(key)
            for old in [name for name, one in self._works.items() if not one.is_under_way][:-_REMEMBERED]:
                del self._works[old]
        threading.Thread(target=_do, args=(work, keep), name="background-work", daemon=True).start()
        return work

    def look(self, key: str) -> Work[R] | None:
        """How the work under a key stands; None where none was started since the server was."""
        with self._lock:
            return self._works.get(key)

    def stop(self, key: str) -> None:
        """Ask for an early end; nothing of the work is kept."""
        work = self.look(key)
        if work is not None and work.is_under_way:
            work.stopping = True
            work.job.stop()

    def forget(self, key: str) -> None:
        """Let go of how ended work stood."""
        with self._lock:
            work = self._works.get(key)
            if work is not None and not work.is_under_way:
                del self._works[key]

    def stop_all(self, patience_seconds: float = 5.0) -> None:
        """The server is leaving: stop everything, so that nothing half-written stays."""
        with self._lock:
            working = [work for work in self._works.values() if work.is_under_way]
        for work in working:
            work.stopping = True
            work.job.stop()
        deadline = time.monotonic() + patience_seconds
        for work in working:
            work.ended.wait(max(0.0, deadline - time.monotonic()))


def _do(work: Work[R], keep: Callable[[R], None]) -> None:
    def note(progress: Progress) -> None:
        work.message, work.fraction = progress.message, progress.fraction

    try:
        result = work.job.run(note)
        keep(result)
        work.result = result
    except EngineError as error:
        work.error = error
    except Exception:
        _log.exception("background work failed")
        work.error = UNEXPECTED
    finally:
        work.ended.set()
