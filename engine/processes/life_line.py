"""How a worker ends with its asker, even where the asker is killed and the worker's interpreter is stuck in C code.

The asker holds the writing end of a pipe that nothing is ever written to. The kernel closes it when the asker ends, in
whatever way, and then sends the worker a signal that ends it; neither Python nor the interpreter's lock takes part.
"""

import contextlib
import os
import select
import sys
from collections.abc import Mapping
from typing import NamedTuple

LIFE_LINE = "LORATORY_LIFE_LINE"

if sys.platform != "win32":
    import fcntl


class LifeLine(NamedTuple):
    """Both ends, in the asker: `held` stays open as long as the worker may live, `given` goes to the worker."""

    given: int
    held: int

    @classmethod
    def make(cls) -> "LifeLine | None":
        """Make one; None where the system has no such signal, and workers only notice that their stdin closes."""
        return None if sys.platform == "win32" else cls(*os.pipe())

    @property
    def environment(self) -> Mapping[str, str]:
        """What the worker needs to find its end."""
        return {LIFE_LINE: str(self.given)}


def end_with_asker() -> None:
    """Arrange in a worker that it ends with its asker; does nothing where it was started without a life line."""
    name = os.environ.pop(LIFE_LINE, None)
    if name is None or sys.platform == "win32":
        return
    end = int(name)
    with contextlib.suppress(OSError):
        os.set_inheritable(end, False)
        fcntl.fcntl(end, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(end, fcntl.F_SETFL, fcntl.fcntl(end, fcntl.F_GETFL) | os.O_ASYNC)  # SIGIO, which ends a process
        closed = select.poll()
        closed.register(end, select.POLLIN)
        if closed.poll(0):  # it was gone before
            os._exit(0)
