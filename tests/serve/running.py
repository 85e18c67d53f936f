"""An endpoint that listens, for the official client, and a session with scripted answers."""

import contextlib
import http.client
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

from loratory.engine.accounts.listener import bound_socket
from loratory.engine.chat.contract import ChatChunk, ChatRequest, ChatState, ChatTarget, LoadedModel, PromptView
from loratory.engine.config.run import ModelConfig
from loratory.engine.serve.endpoint import build_endpoint
from loratory.engine.serve.model import ServedModel
from tests.waiting import wait_until

TARGET = ChatTarget.of_model(ModelConfig(id="org/model"))


def send(address: str, method: str, path: str, body: bytes | str | None = None, **headers: str):
    """Send a request; return status, text and headers of the answer, whose names are in lower case."""
    connection = http.client.HTTPConnection(address, timeout=300)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    return response.status, response.read().decode(), {name.lower(): value for name, value in response.getheaders()}


class ScriptedSession:
    """Answers with prepared pieces, one token each; records requests and stops.

    Attributes:
        pieces: Of the answer.
        error: Raised instead of the first piece.
        error_at: Raised instead of the piece of this number.
        hold: Waited for before each piece but the first.
        requests: Every request.
        stopped: Ids of requests that were stopped.
        ended: Number of finished answers.
        at_once: Number of running answers.
    """

    def __init__(self, pieces: tuple[str, ...] = ("Hel", "lo", "."), finish: str = "eos") -> None:
        self.pieces = pieces
        self.finish = finish
        self.error: Exception | None = None
        self.error_at: tuple[int, Exception] | None = None
        self.hold: threading.Event | None = None
        self.requests: list[ChatRequest] = []
        self.stopped: list[str] = []
        self.ended = 0
        self.at_once = 0
        self.most_at_once = 0
        self.phase = "empty"
        self.loads = 0
        self.takes_images = False
        self._lock = threading.Lock()

    @property
    def state(self) -> ChatState:
        return ChatState(phase=self.phase)

    def load(self, target: ChatTarget, on_progress: object = None) -> LoadedModel:
        self.loads += 1
        if self.error is not None and self.phase == "empty" and self.loads > 1:
            raise self.error
        self.phase = "ready"
        return LoadedModel(
            name="org/base",
            method="LoRA",
            branches=("base", "tuned"),
            device="CPU",
            dtype="float32",
            quantization="none",
            weights_bytes=1,
            adapter_bytes=1,
            context_length=100,
            takes_images=self.takes_images,
        )

    def touch(self) -> bool:
        return self.phase == "ready"

    def stream(self, request: ChatRequest) -> Iterator[ChatChunk]:
        with self._lock:
            self.requests.append(request)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        is_written = False
        try:
            if self.error is not None:
                raise self.error
            for number, piece in enumerate(self.pieces):
                if self.error_at is not None and number == self.error_at[0]:
                    raise self.error_at[1]
                while number and self.hold is not None and not self.hold.wait(0.01):
                    if request.id in self.stopped:
                        return
                yield self._chunk(request, piece, number + 1)
            with self._lock:
                self.at_once -= 1  # who has the last piece makes room for another before this iterator is closed
            is_written = True
            yield self._chunk(request, "", len(self.pieces), done=True, finish_reason=self.finish)
        finally:
            with self._lock:
                self.at_once -= not is_written
                self.ended += 1

    def stop(self, request_id: str) -> None:
        self.stopped.append(request_id)

    def prompt(self, messages: object, tools: object = ()) -> PromptView:
        return PromptView(text="prompt", ids=(1, 2, 3))

    def unload(self) -> None:
        self.phase = "empty"

    @staticmethod
    def _chunk(request: ChatRequest, text: str, tokens: int, **values: Any) -> ChatChunk:
        branch = request.branches[0]
        return ChatChunk(branch=branch, text=text, tokens=tokens, tokens_per_second=1.0, prompt_tokens=7, **values)


@contextlib.contextmanager
def listening(model: ServedModel) -> Iterator[str]:
    """Load and serve a model; yield the base URL for clients."""
    model.load()
    bound = bound_socket("127.0.0.1", 0)
    config = uvicorn.Config(
        build_endpoint(model),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(300)
        bound.close()
