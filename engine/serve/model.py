"""A served model: its names, loading on demand, and its answers."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field

from loratory.engine.chat.contract import Branch, ChatChunk, ChatRequest, ChatTarget, LoadedModel, OnProgress
from loratory.engine.chat.session import ChatSession
from loratory.engine.data.conversation import ImageRef, Message
from loratory.engine.data.media.row_images import decode_url
from loratory.engine.data.media.store import MediaStore
from loratory.engine.data.records import RowProblemError
from loratory.engine.serve.contract import AnswerDelta, OpenAIFinish, RefusedRequestError


@dataclass
class ServedModel:
    """A chat target served to any number of clients."""

    session: ChatSession
    target: ChatTarget
    name: str  # for clients; `base` is its base model, if it has one
    aliases: Sequence[str] = ()  # further names
    images: MediaStore | None = None  # takes those of requests; the session opens them there
    # Limits concurrent answers; further requests wait in order. More would share the same tokens per second, and each one
    # has keys and values of its whole context.
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(16), init=False)
    listed_names: Sequence[str] = field(default=(), init=False)  # the names that are listed
    takes_images: bool = field(default=False, init=False)
    created: int = field(default=0, init=False)  # first load, in seconds since the epoch
    _branches: Mapping[str, Branch] = field(default_factory=dict, init=False)
    _loading: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    def load(self, on_progress: OnProgress = lambda _: None) -> LoadedModel:
        """Load the model, and set the names of its branches.

        Raises:
            EngineError: As `ChatSession.load` does.
        """
        loaded = self.session.load(self.target, on_progress)
        own: Branch = "tuned" if "tuned" in loaded.branches else "base"
        names: dict[str, Branch] = {self.name: own, **dict.fromkeys(self.aliases, own)}
        served_names = [self.name]
        if "base" in loaded.branches:
            names.setdefault("base", "base")
            names.setdefault(loaded.name, "base")
            if own != "base":
                served_names.append("base")
        self._branches, self.listed_names = names, served_names
        self.takes_images = loaded.takes_images and self.images is not None
        self.created = self.created or int(time.time())
        return loaded

    async def ready(self) -> None:
        """Load the model again if it was unloaded, for example for a run that waited for its device.

        Raises:
            EngineError: If it cannot be loaded now, for example because that run still has the device.
        """
        if self.session.touch():
            return
        async with self._loading:
            if not self.session.touch():
                await asyncio.to_thread(self.load)

    def branch(self, name: str) -> Branch:
        """Return the branch of a model name.

        Raises:
            RefusedRequestError: If the name is unknown.
        """
        branch = self._branches.get(name)
        if branch is None:
            what = f"The model {name[:100]!r} does not exist; available: {', '.join(self.listed_names)}."
            raise RefusedRequestError(what, param="model", code="model_not_found", status=404)
        return branch

    def load_image(self, url: str) -> ImageRef:
        """Return the image of a data: URL, stored.

        Raises:
            RefusedRequestError: If it cannot be read, is at another address, or the model takes no images.
        """
        if not self.takes_images or self.images is None:
            raise RefusedRequestError(
                f"{self.name} takes text only, and a message has an image.",
                param="messages",
                code="unsupported_content",
            )
        try:
            data = decode_url(url)
            if data is None:
                raise RowProblemError("image", "its url is not a data: URL, and nothing is fetched from an address")
            return self.images.add(data)
        except RowProblemError as error:
            what = f"An image cannot be read: {error.problem}."
            raise RefusedRequestError(what, param="messages", code="invalid_image") from error

    async def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return the token ids of the prompt for a conversation."""
        return (await asyncio.to_thread(self.session.prompt, messages)).ids

    async def answer(self, request: ChatRequest, stops: Sequence[str]) -> AsyncGenerator[AnswerDelta, None]:
        """Yield the answer of one branch up to a stop text; closing the iterator stops the model within a token.

        The session's iterator blocks, so it runs in a thread.

        Raises:
            EngineError: As `ChatSession.stream` does.
        """
        scanner = StopScanner(stops)
        async with self.room, contextlib.aclosing(_chunks(self.session, request)) as chunks:
            async for chunk in chunks:
                text, is_stopped = scanner.add(chunk.text)
                finish: OpenAIFinish | None = "stop" if is_stopped else None
                if chunk.done and not is_stopped:
                    text += scanner.finish()
                    finish = "stop" if chunk.finish_reason in ("eos", "stopped") else "length"
                yield AnswerDelta(text, chunk.prompt_tokens, chunk.tokens, finish)
                if finish is not None:
                    return


@dataclass
class StopScanner:
    """Forwards text, except what may be the beginning of a stop text."""

    stops: Sequence[str]
    _tail: str = field(default="", init=False)

    def add(self, text: str) -> tuple[str, bool]:
        """Add generated text; return the part that certainly belongs to the answer, and whether a stop text ends it."""
        pending = self._tail + text
        positions = [position for stop in self.stops if (position := pending.find(stop)) >= 0]
        if positions:
            self._tail = ""
            return pending[: min(positions)], True
        # The longest ending that is the beginning of a stop text.
        endings = (pending[start:] for start in range(len(pending)))
        self._tail = next((end for end in endings if any(stop.startswith(end) for stop in self.stops)), "")
        return pending[: len(pending) - len(self._tail)], False

    def finish(self) -> str:
        """Return the remaining text at the end of the answer."""
        tail, self._tail = self._tail, ""
        return tail


async def _chunks(session: ChatSession, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[ChatChunk | Exception] = asyncio.Queue()

    def hand_over(message: ChatChunk | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended
            loop.call_soon_threadsafe(queue.put_nowait, message)

    def follow() -> None:
        try:
            for chunk in session.stream(request):
                hand_over(chunk)
        except Exception as error:
            hand_over(error)

    threading.Thread(target=follow, daemon=True).start()
    has_finished = False
    try:
        while not has_finished:
            message = await queue.get()
            has_finished = isinstance(message, Exception) or message.done
            if isinstance(message, Exception):
                raise message
            yield message
    finally:
        if not has_finished:
            session.stop(request.id)
