"""A bound on computing time for code that we did not write, such as a chat template that loops for ever."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class TimeLimitError(Exception):
    """The code inside `time_limit` computed for longer than it may."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt pure Python code that computes for more than `seconds`.

    The clock counts this process's computing time, not waiting, so a busy machine does not interrupt good code. It
    works in the main thread of a POSIX process, where signals arrive; elsewhere the code runs without a bound.

    Raises:
        TimeLimitError: Out of the code inside, when its time is up.
    """
    if not hasattr(signal, "SIGVTALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGVTALRM, _interrupt)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise TimeLimitError
