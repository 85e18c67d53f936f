"""How many helper processes the people of a lab have at once, and who is next where all places are taken."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from engine.processes.json_lines import JsonLinesProcess

_LOOK_SECONDS = 1.0
# A page asks several questions in a row: its process does not change hands between them, which would cost a start each time.
_OWN_IDLE_SECONDS = 1.0
_OWN_SECONDS = 20.0


@dataclass
class _Place:
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


class ProcessPlaces:
    """Bounds the processes of several pools together.

    A process keeps its place while it is idle, and after a second of that may lose it to a person who needs one. Where all
    are at work, next is who has fewest at work, then who came first. A person who has one at work gets another only while
    at least half of the places are not at work, so one person cannot fill the machine.

    Args:
        most: Processes at once.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self._clock = clock
        self._changed = threading.Condition()  # guards the three below
        self._places: dict[JsonLinesProcess, _Place] = {}
        self._ending: set[JsonLinesProcess] = set()
        self._waiting: list[_Waiter] = []

    def has_room(self, person: str) -> bool:
        """Return whether another process of a person would start at once."""
        with self._changed:
            return not self._waiting and self._may_go(person)

    def take(self, process: JsonLinesProcess, person: str) -> Iterator[None]:
        """Wait for a place for one question of a process, which has it then until `give`; yields once a second meanwhile."""
        waiter = _Waiter(person)
        victim: JsonLinesProcess | None = None
        try:
            while True:
                with self._changed:
                    place = self._places.get(process)
                    if place is not None:
                        place.questions += 1
                        break
                    if waiter not in self._waiting:
                        self._waiting.append(waiter)
                    if process not in self._ending and self._next() is waiter:
                        if len(self._places) + len(self._ending) >= self.most:
                            victim = self._end_longest_idle()
                        now = self._clock()
                        self._places[process] = _Place(person, now, now)
                        break
                    self._changed.wait(_LOOK_SECONDS)
                yield
        finally:
            with self._changed:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
                    self._changed.notify_all()
        if victim is not None:
            self._end(victim)  # before the other starts: there are never more

    def give(self, process: JsonLinesProcess) -> None:
        """Note that a question has ended; its process is idle where it was the last."""
        with self._changed:
            place = self._places.get(process)
            if place is not None:
                place.questions -= 1
                place.used = self._clock()
            self._changed.notify_all()

    def end_if_idle(self, process: JsonLinesProcess) -> None:
        """End a process without questions, and free its place."""
        with self._changed:
            place = self._places.get(process)
            if place is None or place.questions:
                return
            del self._places[process]
            self._ending.add(process)
        self._end(process)

    def free(self, process: JsonLinesProcess) -> None:
        """Free the place of a process that was closed."""
        with self._changed:
            self._places.pop(process, None)
            self._changed.notify_all()

    def _next(self) -> _Waiter | None:
        able = (waiter for waiter in self._waiting if self._may_go(waiter.person))
        return min(able, key=lambda waiter: self._at_work(waiter.person), default=None)

    def _may_go(self, person: str) -> bool:
        at_work = sum(1 for place in self._places.values() if place.questions)
        if self._at_work(person) and at_work >= self.most / 2:
            return False
        return len(self._places) + len(self._ending) < self.most or bool(self._idle())

    def _at_work(self, person: str) -> int:
        return sum(1 for place in self._places.values() if place.person == person and place.questions)

    def _end_longest_idle(self) -> JsonLinesProcess:
        oldest = min(self._idle(), key=lambda process: self._places[process].used)
        del self._places[oldest]
        self._ending.add(oldest)
        return oldest

    def _idle(self) -> list[JsonLinesProcess]:
        now = self._clock()
        return [process for process, place in self._places.items() if place.can_be_lost(now)]

    def _end(self, process: JsonLinesProcess) -> None:
        process.close_if_unused()
        with self._changed:
            self._ending.discard(process)
            self._changed.notify_all()
