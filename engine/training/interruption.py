"""Requests to end a run, from people and from the system, as the training loop looks at them."""

import signal
import threading
from types import FrameType

from engine.runs.control import cancel_is_requested, stop_is_requested
from engine.runs.run import RunFolder
from engine.training.failure import CancelledError


class Interruption:
    """Whether the run shall save and end, or end at once.

    A first SIGTERM or SIGINT asks to save and end, as `control/stop` does; a second one ends at once.

    Args:
        folder: Of the run; its `control` folder is looked at.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._signalled = ""

    @property
    def reason(self) -> str:
        """Who asked, in words."""
        return f"The system asked to end ({self._signalled})." if self._signalled else "Stopped on request."

    def listen(self) -> None:
        """Take signals from here on; only in the main thread."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)

    def stop_wanted(self) -> bool:
        """Whether the run shall save what it has and end. Cheap enough for every step."""
        return bool(self._signalled) or stop_is_requested(self._folder)

    def check_cancel(self) -> None:
        """Return where nobody wants the run to end at once. Cheap enough for every pass through the model.

        Raises:
            CancelledError: If somebody does.
        """
        if cancel_is_requested(self._folder):
            raise CancelledError

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._signalled:
            raise CancelledError
        self._signalled = signal.Signals(number).name
