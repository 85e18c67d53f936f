"""When a long pass over rows gives its turn away, and when it reports how far it has come."""

import time

_TURN_SECONDS = 0.03
_REPORT_SECONDS = 0.2


class Pace:
    """The clock of one pass, cheap enough to be looked at for every row."""

    def __init__(self) -> None:
        self._turn = self._report = time.monotonic()

    def turn_is_over(self) -> bool:
        """Return whether to yield now; the next turn begins with the yes."""
        now = time.monotonic()
        if now - self._turn < _TURN_SECONDS:
            return False
        self._turn = now
        return True

    def report_is_due(self) -> bool:
        """Return whether to report progress now, which is less often than turns end."""
        if self._turn - self._report < _REPORT_SECONDS:
            return False
        self._report = self._turn
        return True
