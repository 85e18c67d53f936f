"""Starts under way: what is checked before a run is filed may take minutes, so it goes on behind the page."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.errors import EngineError
from engine.runs.run import Run
from ui.errors import UNEXPECTED

_REMEMBERED = 64
_log = logging.getLogger(__name__)

Work = Callable[[Callable[[str], None]], Sequence[Run]]


@dataclass
class StartUnderWay:
    """How far one start has come, and what came of it."""

    said: str = "Checking the settings."
    runs: tuple[Run, ...] = ()
    error: EngineError | None = None

    @property
    def is_done(self) -> bool:
        return bool(self.runs) or self.error is not None


class Starts:
    """Begins starts, one for each key however often it is asked for, and remembers the newest."""

    def __init__(self) -> None:
        self._starts: OrderedDict[str, StartUnderWay] = OrderedDict()
        self._lock = threading.Lock()  # guards _starts: handlers of many pages ask at once

    def begin(self, key: str, work: Work) -> StartUnderWay:
        """The start of this key, begun now unless it is under way or done.

        Args:
            key: Names the start.
            work: Files the runs; is given a function to say what it does.
        """
        with self._lock:
            start = self._starts.get(key)
            if start is None or start.error is not None:
                start = StartUnderWay()
                self._starts[key] = start
                while len(self._starts) > _REMEMBERED:
                    self._starts.popitem(last=False)
                threading.Thread(target=_run, args=(start, work), name="start", daemon=True).start()
            return start

    def find(self, key: str) -> StartUnderWay | None:
        """The start of this key; None where this server knows nothing of it."""
        with self._lock:
            return self._starts.get(key)


def _run(start: StartUnderWay, work: Work) -> None:
    def say(words: str) -> None:
        start.said = words

    try:
        start.runs = tuple(work(say))
    except EngineError as error:
        start.error = error
    except Exception:
        _log.exception("a start failed")
        start.error = UNEXPECTED
