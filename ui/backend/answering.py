"""Answers of several branches as they come, stopped when the page that asked is gone or wants no more."""

import threading
from collections.abc import Callable, Iterator, Sequence

from engine.chat.contract import ChatChunk, ChatRequest
from engine.chat.session import ChatSession
from ui.backend.streaming import Done, announced


class Answering:
    """Follows requests, and knows which page has asked which.

    Args:
        session: Answers them.
    """

    def __init__(self, session: ChatSession) -> None:
        self._session = session
        self._lock = threading.Lock()  # guards _under_way: stop comes from another thread than the answer
        self._under_way: dict[str, list[str]] = {}  # requests of each open page

    def chunks(self, requests: Sequence[ChatRequest], page_id: str) -> Iterator[ChatChunk]:
        """Chunks of all requests as they come; leaving early stops the answers."""
        with self._lock:
            self._under_way[page_id] = [request.id for request in requests]
        try:
            if len(requests) == 1:
                yield from self._session.stream(requests[0])
                return
            streams = [self._session.stream(one) for one in requests]

            def drain(say: Callable[[ChatChunk], None]) -> None:
                _drain_together(streams, say)

            for said in announced(drain):
                if not isinstance(said, Done):
                    yield said
        finally:
            with self._lock:
                self._under_way.pop(page_id, None)
            for request in requests:
                self._session.stop(request.id)

    def stop(self, page_id: str) -> None:
        """End what this page has asked."""
        with self._lock:
            ids = list(self._under_way.get(page_id, ()))
        for request_id in ids:
            self._session.stop(request_id)


def _drain_together(streams: Sequence[Iterator[ChatChunk]], say: Callable[[ChatChunk], None]) -> None:
    """Follow several iterators at once, each in a thread; the first error ends it, after all have ended."""
    errors: list[BaseException] = []

    def drain(stream: Iterator[ChatChunk]) -> None:
        try:
            for chunk in stream:
                say(chunk)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=drain, args=(stream,), daemon=True) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
