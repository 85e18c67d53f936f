"""An answer as it is written, in asyncio and in the form of OpenAI's objects."""

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

from engine.chat.contract import ChatChunk, ChatRequest, FinishReason
from engine.chat.session import ChatSession


class Scanned(NamedTuple):
    """What may be shown now."""

    text: str
    stopped: bool  # one of the texts was found; nothing comes after it


class StopScanner:
    """Passes text on as it arrives, holding back what may be the beginning of a stop text.

    Args:
        stops: The texts; none passes everything on.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def add(self, text: str) -> Scanned:
        """Take what was written; gives what is certain to belong to the answer."""
        held = self._held + text
        found = [position for stop in self._stops if (position := held.find(stop)) >= 0]
        if found:
            self._held = ""
            return Scanned(held[: min(found)], stopped=True)
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return Scanned(held[: len(held) - keep], stopped=False)

    def finish(self) -> str:
        """Return what was held back, once nothing follows any more."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return how many of the last characters of a text are the first ones of a stop text."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


OpenAIFinish = Literal["stop", "length"]

_FINISHES: dict[FinishReason, OpenAIFinish] = {
    "eos": "stop",
    "stopped": "stop",
    "length": "length",
    "context": "length",
}


class Written(NamedTuple):
    """What came since the last one."""

    text: str
    prompt_tokens: int
    completion_tokens: int  # so far
    finish: OpenAIFinish | None = None


async def write_answer(
    session: ChatSession, request: ChatRequest, stops: Sequence[str]
) -> AsyncGenerator[Written, None]:
    """Yield the answer while it is written; leaving early stops the model within a token.

    The session's iterator blocks, so a thread of its own follows it.

    Args:
        session: Answers.
        request: One branch.
        stops: Texts that end the answer and are no part of it.

    Raises:
        EngineError: As `ChatSession.stream` does.
    """
    scanner = StopScanner(stops)
    async with contextlib.aclosing(_chunks(session, request)) as chunks:
        async for chunk in chunks:
            scanned = scanner.add(chunk.text)
            if scanned.stopped:
                yield Written(scanned.text, chunk.prompt_tokens, chunk.tokens, "stop")
                return
            if chunk.done:
                assert chunk.finish_reason is not None  # with `done`
                rest = scanner.finish()
                yield Written(scanned.text + rest, chunk.prompt_tokens, chunk.tokens, _FINISHES[chunk.finish_reason])
                return
            yield Written(scanned.text, chunk.prompt_tokens, chunk.tokens)


async def _chunks(session: ChatSession, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[ChatChunk | Exception] = asyncio.Queue()
    unwanted = threading.Event()

    def hand_over(item: ChatChunk | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended meanwhile
            loop.call_soon_threadsafe(arrived.put_nowait, item)

    def follow() -> None:
        stream = cast(Generator[ChatChunk, None, None], session.stream(request))
        try:
            for chunk in stream:
                if unwanted.is_set():
                    break
                hand_over(chunk)
        except Exception as error:
            hand_over(error)
        finally:
            stream.close()

    threading.Thread(target=follow, daemon=True).start()
    finished = False
    try:
        while not finished:
            item = await arrived.get()
            finished = isinstance(item, Exception) or item.done
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        if not finished:
            unwanted.set()
            session.stop(request.id)


@dataclass(frozen=True)
class CompletionForm:
    """One answer's objects, as the official client reads them.

    Args:
        model: The name that was asked for.
        prompt_token_ids: What the model read, where the client wants to see it.
    """

    model: str
    prompt_token_ids: tuple[int, ...] | None = None
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, last: Written) -> dict[str, Any]:
        """`chat.completion`."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": last.finish,
        }
        return {**self._head("chat.completion"), **self._ids(), "choices": [choice], "usage": usage(last)}

    def opening(self, *, with_usage: bool) -> dict[str, Any]:
        """Return the first `chat.completion.chunk`: who speaks."""
        return {**self._chunk({"role": "assistant", "content": ""}, None, with_usage=with_usage), **self._ids()}

    def piece(self, text: str, *, with_usage: bool) -> dict[str, Any]:
        """Return a piece of the answer."""
        return self._chunk({"content": text}, None, with_usage=with_usage)

    def closing(self, last: Written, *, with_usage: bool) -> dict[str, Any]:
        """Return why it ends."""
        return self._chunk({}, last.finish, with_usage=with_usage)

    def counts(self, last: Written) -> dict[str, Any]:
        """Return what it took, where the client asked for it; has no choices."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(last)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _ids(self) -> dict[str, Any]:
        return {} if self.prompt_token_ids is None else {"prompt_token_ids": list(self.prompt_token_ids)}

    def _chunk(self, delta: dict[str, Any], finish: OpenAIFinish | None, *, with_usage: bool) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        counted = {"usage": None} if with_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **counted}


def usage(last: Written) -> dict[str, int]:
    """Return tokens of prompt and answer."""
    return {
        "prompt_tokens": last.prompt_tokens,
        "completion_tokens": last.completion_tokens,
        "total_tokens": last.prompt_tokens + last.completion_tokens,
    }
