"""Results that several pages want at the same moment, drawn once."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

_KEPT = 48


class Rendered:
    """Keeps the newest results, by everything that they depend on."""

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept = kept
        self._lock = threading.Lock()  # guards _results: handlers run in many threads
        self._results: OrderedDict[Hashable, str] = OrderedDict()

    def get(self, key: Hashable, draw: Callable[[], str]) -> str:
        """The result for `key`, drawn now where nobody has yet."""
        with self._lock:
            known = self._results.get(key)
            if known is not None:
                self._results.move_to_end(key)
                return known
        drawn = draw()
        with self._lock:
            self._results[key] = drawn
            while len(self._results) > self._kept:
                self._results.popitem(last=False)
        return drawn
