"""Requests to end a run, from people and from the system, as the training loop looks at them."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from engine.runs.history.events import StoppedBy
from engine.runs.run import RunFolder
from engine.training import faults
from engine.training.failure import CancelledError

# Launchers and schedulers deliver one request more than once: to a process, to its group, to the job.
REPEAT_SECONDS = 5.0


class StopRequests:
    """Whether the run shall save and end, or end at once.

    A first SIGTERM or SIGINT asks to save and end, as `control/stop` does. Another one within five seconds is the same
    request; a later one ends at once. Where a launcher started several processes, every further SIGTERM is the launcher's:
    it has a limit of its own, after which it kills.
    """

    def __init__(self, folder: RunFolder, world_size: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._has_launcher = world_size > 1
        self._clock = clock
        self._signalled: signal.Signals | None = None
        self._first = 0.0
        self._cancelled = False

    @property
    def stopped_by(self) -> StoppedBy:
        """Who asked."""
        if self._signalled is None:
            return "request"
        return "sigterm" if self._signalled == signal.SIGTERM else "sigint"

    @property
    def reason(self) -> str:
        """The same in words."""
        return f"The system asked to end ({self._signalled.name})." if self._signalled else "Stopped on request."

    def listen(self) -> None:
        """Take signals from here on; only in the main thread."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)

    def stop_wanted(self) -> bool:
        """Whether the run shall save what it has and end. Cheap enough for every step."""
        return self._signalled is not None or self._folder.stop_request.exists()

    def check_cancel(self) -> None:
        """Return unless the run shall end at once. Cheap enough for every pass through the model.

        Raises:
            CancelledError: If it shall.
        """
        if self._folder.cancel_request.exists():
            raise CancelledError

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._signalled is None:
            self._signalled, self._first = signal.Signals(number), self._clock()
            return
        is_repeated = self._clock() - self._first < REPEAT_SECONDS or faults.is_armed("signal:repeated")
        is_the_launchers = self._has_launcher and number == signal.SIGTERM
        if not (is_repeated or is_the_launchers or self._cancelled):
            self._cancelled = True
            raise CancelledError
