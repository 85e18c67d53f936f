"""Work that a handler waits for, as an iterator of its messages; and the answers of several branches as they come."""

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Generic, NamedTuple, TypeVar

from engine.chat.contract import ChatChunk, ChatRequest
from engine.chat.session import ChatSession

M = TypeVar("M")
R = TypeVar("R")


class Done(NamedTuple, Generic[R]):
    """The last item: what the work returned."""

    result: R


class _Failed(NamedTuple):
    error: BaseException


def run_streaming(work: Callable[[Callable[[M], None]], R]) -> Iterator[M | Done[R]]:
    """Run `work` in a thread; yield its messages, then `Done` with its result.

    Args:
        work: Is given a function to send messages with; any thread may call it.

    Raises:
        Exception: Whatever `work` raised.
    """
    messages: SimpleQueue[M | Done[R] | _Failed] = SimpleQueue()

    def run() -> None:
        try:
            messages.put(Done(work(messages.put)))
        except BaseException as error:
            messages.put(_Failed(error))

    threading.Thread(target=run, name="streaming-work", daemon=True).start()
    while True:
        message = messages.get()
        if isinstance(message, _Failed):
            raise message.error
        yield message
        if isinstance(message, Done):
            return


class AnswerStream:
    """Streams answers, and knows which page has asked which.

    Args:
        session: Answers the requests.
    """

    def __init__(self, session: ChatSession) -> None:
        self._session = session
        self._lock = threading.Lock()  # guards _requests: stop comes from another thread than the answer
        self._requests: dict[str, list[str]] = {}  # ids under way, by page

    def chunks(self, requests: Sequence[ChatRequest], page_id: str) -> Iterator[ChatChunk]:
        """Yield the chunks of all requests as they come; leaving early stops the answers."""
        with self._lock:
            self._requests[page_id] = [request.id for request in requests]
        try:
            if len(requests) == 1:
                yield from self._session.stream(requests[0])
                return
            streams = [self._session.stream(one) for one in requests]

            def drain(send: Callable[[ChatChunk], None]) -> None:
                _drain_together(streams, send)

            for message in run_streaming(drain):
                if not isinstance(message, Done):
                    yield message
        finally:
            with self._lock:
                self._requests.pop(page_id, None)
            for request in requests:
                self._session.stop(request.id)

    def stop(self, page_id: str) -> None:
        """Stop the answers to this page."""
        with self._lock:
            ids = list(self._requests.get(page_id, ()))
        for request_id in ids:
            self._session.stop(request_id)


def _drain_together(streams: Sequence[Iterator[ChatChunk]], send: Callable[[ChatChunk], None]) -> None:
    """Follow several iterators, each in a thread; raise the first error after all have ended."""
    errors: list[BaseException] = []

    def drain(stream: Iterator[ChatChunk]) -> None:
        try:
            for chunk in stream:
                send(chunk)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=drain, args=(stream,), daemon=True) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
