"""Whether a worker makes progress: what it reports itself, and how its supervisor judges it."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import BaseModel

from loratory.engine.files import read_model, size_and_time
from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.runs.job import Activity
from loratory.engine.runs.run import RunFolder

_REPORT_SECONDS = 30.0  # a tenth of the silence after which an idle worker counts as hung


class _Figures(BaseModel, frozen=True):
    attempt: int
    cpu_seconds: float


@contextlib.contextmanager
def reported_activity(folder: RunFolder, attempt: int, every_seconds: float = _REPORT_SECONDS) -> Iterator[None]:
    """Report this process's CPU time in the run's folder from a thread while the block runs."""
    is_over = threading.Event()

    def report() -> None:
        while not is_over.wait(every_seconds):
            seconds = ProcessIdentity.current().cpu_seconds()
            # In place and without fsync: it is written twice a minute, and a torn figure is read again.
            with contextlib.suppress(OSError):
                folder.activity.write_text(_Figures(attempt=attempt, cpu_seconds=seconds or 0.0).model_dump_json())

    thread = threading.Thread(target=report, name="activity", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


class ReportedActivity:
    """The activity of a worker on another machine, where pids and CPU time of this one mean nothing."""

    def __init__(self, folder: RunFolder, attempt: int) -> None:
        self._folder = folder
        self._attempt = attempt

    def is_suspended(self) -> bool:
        """Whether it is stopped; not seen from here, and then it uses no processor time."""
        return False

    def cpu_seconds(self) -> float | None:
        """Processor time that it reported last; None where it has not yet."""
        figures = read_model(self._folder.activity, _Figures)
        return figures.cpu_seconds if figures is not None and figures.attempt == self._attempt else None


_IDLE_SHARE_OF_A_CORE = 0.02
_CPU_LOOK_SECONDS = 5.0


@dataclass(frozen=True)
class SilenceLimits:
    """How long a worker may be silent before it counts as hung, in seconds.

    A busy worker gets long: a step with much accumulation, a large evaluation, a save to a slow disk are all silent. An
    idle one waits for something that is unlikely to come.
    """

    idle_seconds: float = 300.0  # silent, and using less than a fiftieth of a core
    suspended_seconds: float = 300.0  # stopped by SIGSTOP or a debugger
    preparing_idle_seconds: float = 1800.0  # as idle, before the first step: a download may stall and continue
    busy_seconds: float = 7200.0  # silent, and computing
    unusual_seconds: float = 60.0  # shown on the page; at least twice as long as this worker was silent before


class Silence(NamedTuple):
    """An observation of a worker."""

    seconds: float  # since the worker last gave a sign
    limit_seconds: float  # that holds at present
    is_suspended: bool
    unusual_seconds: float = math.inf  # shown on the page beyond this

    @property
    def is_unusual(self) -> bool:
        return self.seconds > min(self.unusual_seconds, self.limit_seconds)

    @property
    def is_too_long(self) -> bool:
        return self.seconds > self.limit_seconds


class ProgressWatch:
    """Watches one attempt. Times are of a monotonic clock, which a sleeping machine stops."""

    def __init__(self, folder: RunFolder, limits: SilenceLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._limits = limits
        self._clock = clock
        self._signs = self._read_output()
        self._last_sign = clock()
        self._longest_silence = 0.0  # that ended
        self._cpu: tuple[float, float] | None = None  # when it was looked at, and processor seconds by then
        self._computes = True
        self._was_suspended = False

    def update(self, worker: Activity, *, is_training: bool) -> Silence:
        """Judge a worker that is alive."""
        now = self._clock()
        signs, suspended = self._read_output(), worker.is_suspended()
        if signs != self._signs:
            self._longest_silence = max(self._longest_silence, now - self._last_sign)
        has_continued = self._was_suspended and not suspended  # it gets the whole time again
        if signs != self._signs or has_continued:
            self._last_sign, self._cpu, self._computes = now, None, True
        self._signs, self._was_suspended = signs, suspended
        if not suspended:
            self._read_processor(worker, now)
        unusual = max(self._limits.unusual_seconds, 2 * self._longest_silence)
        return Silence(now - self._last_sign, self._limit(suspended, is_training), suspended, unusual)

    def _limit(self, suspended: bool, is_training: bool) -> float:
        if suspended:
            return self._limits.suspended_seconds
        if self._computes:
            return self._limits.busy_seconds
        return self._limits.idle_seconds if is_training else self._limits.preparing_idle_seconds

    def _read_processor(self, worker: Activity, now: float) -> None:
        if now - self._last_sign < _CPU_LOOK_SECONDS:
            return  # it works; a look at its processes costs a millisecond
        if self._cpu is None:
            seconds = worker.cpu_seconds()
            self._cpu = None if seconds is None else (now, seconds)
            return
        last_look, before = self._cpu
        # Over the whole silence, so occasional activity does not count as computing.
        if now - last_look < _CPU_LOOK_SECONDS:
            return
        seconds = worker.cpu_seconds()
        if seconds is not None:
            self._computes = (seconds - before) > _IDLE_SHARE_OF_A_CORE * (now - last_look)

    def _read_output(self) -> tuple[tuple[int, int], ...]:
        """Sizes and times of what the worker writes: one that waits for room on the disk can change the time alone."""
        return size_and_time(self._folder.events), size_and_time(self._folder.log)
