"""A few processes that answer the same questions: one that takes long, or ends its process, delays no other.

Questions change nothing, so each can be asked again: of another process where the first is busy with one long step,
and once more where the process ended while it worked on something else.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass

from loratory.engine.errors import EngineError, ModelLimitError, WorkerError
from loratory.engine.processes.json_lines import JsonLinesProcess, result_of
from loratory.engine.processes.limits import OVERRUN_EXIT_CODES
from loratory.engine.processes.messages import JsonObject, NotBegunError, ProcessEndedError

_POLL_SECONDS = 1.0
# A page asks several questions in a row: its process does not change hands between them, which would cost a start each time.
_OWN_IDLE_SECONDS = 1.0
_OWN_SECONDS = 20.0


@dataclass
class _Slot:
    person: str
    since: float
    used: float
    questions: int = 1  # under way

    def can_be_lost(self, now: float) -> bool:
        is_free = now - self.used >= _OWN_IDLE_SECONDS or now - self.since >= _OWN_SECONDS
        return is_free and not self.questions


@dataclass(frozen=True, eq=False)
class _Waiter:
    person: str


class ProcessSlots:
    """Bounds the processes of several pools together.

    A process keeps its slot while it is idle, and after a second of that may lose it to a person who needs one. Where all
    are busy, next is the person with the fewest busy ones, then who came first. A person who has a busy one gets another
    only while at least half of the slots are not busy, so one person cannot fill the machine.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self._clock = clock
        self._changed = threading.Condition()  # guards the three below
        self._slots: dict[JsonLinesProcess, _Slot] = {}
        self._ending: set[JsonLinesProcess] = set()
        self._waiting: list[_Waiter] = []

    def has_room(self, person: str) -> bool:
        """Return whether another process of a person would start at once."""
        with self._changed:
            return not self._waiting and self._may_start(person)

    def acquire(self, process: JsonLinesProcess, person: str) -> Iterator[None]:
        """Wait for a slot for one question of a process, which has it then until `release`; yields once a second meanwhile."""
        waiter = _Waiter(person)
        victim: JsonLinesProcess | None = None
        try:
            while True:
                with self._changed:
                    slot = self._slots.get(process)
                    if slot is not None:
                        slot.questions += 1
                        break
                    if waiter not in self._waiting:
                        self._waiting.append(waiter)
                    if process not in self._ending and self._next() is waiter:
                        if len(self._slots) + len(self._ending) >= self.most:
                            victim = self._end_longest_idle()
                        now = self._clock()
                        self._slots[process] = _Slot(person, now, now)
                        break
                    self._changed.wait(_POLL_SECONDS)
                yield
        finally:
            with self._changed:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
                    self._changed.notify_all()
        if victim is not None:
            self._end(victim)  # before the other starts: there are never more

    def release(self, process: JsonLinesProcess) -> None:
        """Note that a question has ended; its process is idle where it was the last."""
        with self._changed:
            slot = self._slots.get(process)
            if slot is not None:
                slot.questions -= 1
                slot.used = self._clock()
            self._changed.notify_all()

    def end_if_idle(self, process: JsonLinesProcess) -> None:
        """End a process without questions, and free its slot."""
        with self._changed:
            slot = self._slots.get(process)
            if slot is None or slot.questions:
                return
            del self._slots[process]
            self._ending.add(process)
        self._end(process)

    def free(self, process: JsonLinesProcess) -> None:
        """Free the slot of a process that was closed."""
        with self._changed:
            self._slots.pop(process, None)
            self._changed.notify_all()

    def _next(self) -> _Waiter | None:
        able = (waiter for waiter in self._waiting if self._may_start(waiter.person))
        return min(able, key=lambda waiter: self._busy_slots(waiter.person), default=None)

    def _may_start(self, person: str) -> bool:
        busy = sum(1 for slot in self._slots.values() if slot.questions)
        if self._busy_slots(person) and busy >= self.most / 2:
            return False
        return len(self._slots) + len(self._ending) < self.most or bool(self._idle())

    def _busy_slots(self, person: str) -> int:
        return sum(1 for slot in self._slots.values() if slot.person == person and slot.questions)

    def _end_longest_idle(self) -> JsonLinesProcess:
        oldest = min(self._idle(), key=lambda process: self._slots[process].used)
        del self._slots[oldest]
        self._ending.add(oldest)
        return oldest

    def _idle(self) -> list[JsonLinesProcess]:
        now = self._clock()
        return [process for process, slot in self._slots.items() if slot.can_be_lost(now)]

    def _end(self, process: JsonLinesProcess) -> None:
        process.close_if_unused()
        with self._changed:
            self._ending.discard(process)
            self._changed.notify_all()


_BEGINS_WITHIN_SECONDS = 0.25
_DEATHS = 3  # of processes, before a question that was never begun gives up
_MOST_OVERRUNS = 64
_WAITS_SECONDS = 60.0


@dataclass(eq=False)
class ProcessPool:
    """Answers from the first process while that keeps up; the others start when they are needed and end when idle."""

    processes: tuple[JsonLinesProcess, ...]  # the same program, several times
    explain: Callable[[JsonObject], EngineError]  # names what a question's process was ended over: gets its parameters
    _: KW_ONLY
    # Whether the second starts after the first answer, before it is needed: no question then waits for imports.
    spare: bool = False
    permanent: int = 1  # so many of them do not end when idle
    idle_seconds: float = 600.0  # until the others do
    slots: ProcessSlots | None = None  # in a lab, shared with the pools of other people
    person: str = ""  # for whom they work

    def __post_init__(self) -> None:
        self._lock = threading.Lock()  # guards `_overruns`, `_idle_timer` and `_is_closed`
        self._is_closed = False
        # What and fix of the error, by what was worked with: `Request.work_with` names it after the files that are read.
        self._overruns: dict[str, tuple[str, str]] = {}
        self._idle_timer: threading.Timer | None = None

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of all that live."""
        return tuple(pid for process in self.processes if (pid := process.pid) is not None)

    def start(self) -> None:
        """Start the first process now, and save the first question the wait for its imports."""
        self.processes[0].start()

    def close(self, timeout_seconds: float = 5.0) -> None:
        """End the processes for good; questions under way, and later ones, end with a WorkerError."""
        with self._lock:
            self._is_closed = True
            if self._idle_timer is not None:
                self._idle_timer.cancel()
        for process in self.processes:
            process.restarts = False
        self.stop(timeout_seconds)
        if self.slots is not None:
            for process in self.processes:
                self.slots.free(process)

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """End the processes; questions under way end with a WorkerError, the next one starts them again."""
        for process in self.processes:
            process.close(timeout_seconds)

    def close_if_unused(self) -> None:
        """End the processes where no question is under way; they start again with the next one."""
        for process in self.processes:
            process.close_if_unused()

    def call(self, method: str, params: JsonObject) -> JsonObject:
        """Ask and wait for the result; as `stream`."""
        return result_of(self.stream(method, params))

    def stream(self, method: str, params: JsonObject, *, waits_seconds: float = _WAITS_SECONDS) -> Iterator[JsonObject]:
        """Ask, and yield each `{"progress": …}` and at last the `{"result": …}`; closing it early cancels the question.

        Progress begins again where a question is asked again. What is known to overrun goes along as `overruns`. While it
        waits for a slot, `{"waiting": …}` comes once a second.

        Raises:
            EngineError: As raised by the handler, of the same class.
            ModelLimitError: If what the question works with overran.
            WorkerError: If the process ended, or no slot was free in time.
        """
        busy: JsonLinesProcess | None = None
        deaths = 0
        while True:
            process, may_move = self._choose(busy)
            request_params = {**params, "overruns": self._overruns.copy()}
            begins_within = _BEGINS_WITHIN_SECONDS if may_move else None
            yield from self._wait_for_slot(process, waits_seconds)
            try:
                for answer in process.stream(method, request_params, begins_within=begins_within):
                    if self.spare and "result" in answer:
                        self._start_spare()
                    yield answer
                return
            except NotBegunError:
                busy = process
            except ProcessEndedError as end:
                if end.at_fault:
                    process.start()  # its imports are over before the next question
                    raise self._at_fault(end, params) from end
                deaths += 1
                if deaths == _DEATHS:
                    raise
            except ModelLimitError as error:
                self._remember(error.subject, error)
                raise
            finally:
                if self.slots is not None:
                    self.slots.release(process)
                self._end_idle_later()

    def _wait_for_slot(self, process: JsonLinesProcess, waits_seconds: float) -> Iterator[JsonObject]:
        """Wait until the process may start, where it is one of a lab."""
        if self._is_closed:
            raise WorkerError("The page was closed.", "Open it again.")
        if self.slots is None:
            return
        began, most = time.monotonic(), self.slots.most
        for _ in self.slots.acquire(process, self.person):
            if self._is_closed or time.monotonic() - began > waits_seconds:
                raise WorkerError(
                    f"All {most} processes of the lab for this are busy with requests of other people.",
                    "Try again in a minute.",
                )
            yield {
                "waiting": f"Waiting: all {most} processes of the lab for this are busy with requests of other people."
            }

    def _start_spare(self) -> None:
        with self._lock:
            if not self._is_closed:
                for process in self.processes[1:2]:
                    process.start()

    def _choose(self, busy: JsonLinesProcess | None) -> tuple[JsonLinesProcess, bool]:
        """Return the first process that keeps up; else one that is not started; else the one with the fewest questions.

        The first has the tokenizers that were asked about before, so it is preferred to an idle spare one. Where no further
        one may start, the question stays with its process however long that takes: the second value is False then.
        """
        candidates = [process for process in self.processes if process is not busy]
        if self.slots is not None and not self.slots.has_room(self.person):
            started = [process for process in self.processes if process.pid is not None]
            if started:
                return min(started, key=lambda process: process.requests), False
        running = (process for process in candidates if process.pid is not None)
        keeping_up = (process for process in running if process.silent_seconds < _BEGINS_WITHIN_SECONDS)
        not_started = (process for process in candidates if process.pid is None)
        best = next(itertools.chain(keeping_up, not_started), None)
        return best or min(candidates, key=lambda process: process.requests), len(self.processes) > 1

    def _at_fault(self, end: ProcessEndedError, params: JsonObject) -> EngineError:
        if end.exit_code not in OVERRUN_EXIT_CODES:
            return end
        error = self.explain(params)
        self._remember(end.subject, error)
        return error

    def _remember(self, subject: str, error: EngineError) -> None:
        if not subject:
            return
        with self._lock:
            self._overruns[subject] = (error.what, error.fix)
            while len(self._overruns) > _MOST_OVERRUNS:
                del self._overruns[next(iter(self._overruns))]

    def _end_idle_later(self) -> None:
        if all(process.pid is None for process in self.processes[self.permanent :]):
            return
        with self._lock:
            if self._is_closed:
                return
            if self._idle_timer is not None:
                self._idle_timer.cancel()
            self._idle_timer = threading.Timer(self.idle_seconds, self._end_idle)
            self._idle_timer.daemon = True
            self._idle_timer.start()

    def _end_idle(self) -> None:
        for process in self.processes[self.permanent :]:
            if self.slots is None:
                process.close_if_unused()
            else:
                self.slots.end_if_idle(process)
