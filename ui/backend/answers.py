"""Streamed answers of a chat, and prompts from a run's held-out rows with their reference answers."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from engine.chat.contract import ChatChunk, ChatRequest
from engine.chat.session import ChatSession
from engine.chat.zero_gpu import LONGEST_TOKEN, TOKEN_HEADER
from engine.config.run import RunConfig
from engine.data.contract import MAX_SHOWN_CHARACTERS, PageRow
from engine.inspector.session import Inspector
from ui.backend.background import Cache

M = TypeVar("M")


def run_streaming(work: Callable[[Callable[[M], None]], object]) -> Iterator[M]:
    """Run `work` in a thread and yield the messages that it sends.

    Raises:
        Exception: The exception of `work`.
    """
    messages: SimpleQueue[M | None] = SimpleQueue()
    outcome: Future[object] = Future()

    def run() -> None:
        try:
            outcome.set_result(work(messages.put))
        except BaseException as error:
            outcome.set_exception(error)
        messages.put(None)

    threading.Thread(target=run, name="streaming-work", daemon=True).start()
    yield from iter(messages.get, None)
    outcome.result()


class AnswerStream:
    """Streams answers of a session, and knows which page has asked which."""

    def __init__(self, session: ChatSession) -> None:
        self._session = session
        self._lock = threading.Lock()  # guards _requests: stop comes from another thread than the answer
        self._requests: dict[str, list[str]] = {}  # ids under way, by page

    def chunks(self, requests: Sequence[ChatRequest], page_id: str, headers: Mapping[str, str]) -> Iterator[ChatChunk]:
        """Yield the chunks of all requests as they come; leaving early stops the answers.

        Args:
            requests: One or more, answered side by side.
            headers: Of its request; on ZeroGPU, they identify the visitor whose GPU quota is used.
        """
        token = headers.get(TOKEN_HEADER, "")[:LONGEST_TOKEN]
        requests = [request.model_copy(update={"gpu_token": token}) for request in requests]
        with self._lock:
            self._requests[page_id] = [request.id for request in requests]
        try:
            streams = [self._session.stream(request) for request in requests]

            def drain_all(send: Callable[[ChatChunk], None]) -> None:
                def drain(stream: Iterator[ChatChunk]) -> None:
                    for chunk in stream:
                        send(chunk)

                with ThreadPoolExecutor(len(streams)) as pool:
                    list(pool.map(drain, streams))

            yield from run_streaming(drain_all)
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


@dataclass(frozen=True)
class RowPrompt:
    """The first question of a row, and its answer."""

    row: int
    question: str
    reference: str
    system: str = ""
    held_out: bool = True


class HeldOutPrompts:
    """Finds and caches a run's prompts."""

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector
        self._cache: Cache[tuple[RowPrompt, ...]] = Cache(8)

    def of_run(self, config: RunConfig) -> tuple[RowPrompt, ...]:
        """Return up to 200 prompts spread evenly over the held-out rows; without them, some of the training set.

        Raises:
            EngineError: If the data or the model's tokenizer can no longer be read.
        """
        key = config.model_dump_json(include={"dataset", "model", "training"})
        return self._cache.get(key, lambda: self._find(config))

    def _find(self, config: RunConfig) -> tuple[RowPrompt, ...]:
        length = config.training.max_length
        held_out = self._inspector.held_out(config.dataset, config.model, length, seed=config.training.seed, count=200)
        selection: dict[str, Any] = {"rows": held_out.rows} if held_out.rows else {"count": 40}
        page = self._inspector.preview(config.dataset, None, length, **selection)
        prompts = (row_prompt(row, held_out=bool(held_out.rows)) for row in page.rows)
        return tuple(prompt for prompt in prompts if prompt is not None)


def row_prompt(row: PageRow, *, held_out: bool = True) -> RowPrompt | None:
    """Return the first exchange of a conversation; None if it has none or was shortened."""
    if row.conversation is None or row.conversation.tools:
        return None
    messages = list(row.conversation.messages)
    system = messages.pop(0).content if messages and messages[0].role == "system" else ""
    if len(messages) < 2 or (messages[0].role, messages[1].role) != ("user", "assistant"):
        return None
    question, reference = messages[0].content.strip(), messages[1].content.strip()
    whole = all(len(text) <= MAX_SHOWN_CHARACTERS for text in (system, question, reference))
    return RowPrompt(row.row, question, reference, system, held_out) if question and reference and whole else None
