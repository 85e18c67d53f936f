"""Work that says how far it has come, as an iterator: a handler shows each message while it waits for the result."""

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Generic, NamedTuple, TypeVar

M = TypeVar("M")
R = TypeVar("R")


class Done(NamedTuple, Generic[R]):
    """The last thing that comes: what the work returned."""

    result: R


class _Failed(NamedTuple):
    error: BaseException


def announced(work: Callable[[Callable[[M], None]], R]) -> Iterator[M | Done[R]]:
    """Run `work` in a thread; yields what it announces, then `Done` with its result.

    Args:
        work: Is given a function to announce with; any thread may call it.

    Raises:
        Exception: Whatever `work` raised.
    """
    said: SimpleQueue[M | Done[R] | _Failed] = SimpleQueue()

    def run() -> None:
        try:
            said.put(Done(work(said.put)))
        except BaseException as error:
            said.put(_Failed(error))

    threading.Thread(target=run, name="announced-work", daemon=True).start()
    while True:
        message = said.get()
        if isinstance(message, _Failed):
            raise message.error
        yield message
        if isinstance(message, Done):
            return
