"""The OpenAI-compatible endpoint: models and chat completions, whole or streamed."""

import asyncio
import json
import signal
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive

from loratory.engine.accounts.listener import bound_socket
from loratory.engine.chat.contract import ChatRequest
from loratory.engine.data.conversation import Message
from loratory.engine.data.media.row_images import MAX_IMAGES
from loratory.engine.errors import DeviceError, EngineError, ModelError
from loratory.engine.serve import contract
from loratory.engine.serve.guard import LOOPBACK_HOSTS, LocalProgramsOnly, refuse_unless_usable
from loratory.engine.serve.model import ServedModel

MAX_BODY_BYTES = 8_000_000
MAX_BODY_BYTES_WITH_IMAGES = 64_000_000  # base64 takes a third more than the files of images


def build_endpoint(model: ServedModel) -> Starlette:
    """Build the application that serves a model."""
    endpoint = _Endpoint(model)
    return Starlette(
        routes=[
            Route("/v1/models", endpoint.list_models),
            Route("/v1/models/{name:path}", endpoint.show_model),
            Route("/v1/chat/completions", endpoint.complete, methods=["POST"]),
            Route("/health", endpoint.health),
        ],
        middleware=[Middleware(LocalProgramsOnly)],
        exception_handlers={HTTPException: _answer_http_error},
    )


class _Endpoint:
    def __init__(self, model: ServedModel) -> None:
        self._model = model

    async def list_models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card(name) for name in self._model.listed_names]})

    async def show_model(self, request: Request) -> Response:
        name = str(request.path_params["name"])
        try:
            self._model.branch(name)
        except contract.RefusedRequestError as refusal:
            return refusal.response()
        return JSONResponse(self._card(name))

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": self._model.session.state.phase})

    async def complete(self, request: Request) -> Response:
        try:
            most = MAX_BODY_BYTES_WITH_IMAGES if self._model.takes_images else MAX_BODY_BYTES
            completion = contract.read_request(await _read_json(request, most))
            branch = self._model.branch(completion.model)
            # The same request as the page's, so the prompt is the same.
            messages = await asyncio.to_thread(self._messages, completion)  # which may decode images
            question = ChatRequest(messages=messages, branches=(branch,), sampling=completion.sampling())
            return await _unless_gone(self._answer(completion, question), request.receive)
        except contract.RefusedRequestError as refusal:
            return refusal.response()
        except EngineError as error:
            # If the device is in use, a later request may succeed.
            return _as_refusal(error).response({"Retry-After": "30"} if isinstance(error, DeviceError) else None)

    def _messages(self, completion: contract.ChatCompletionRequest) -> tuple[Message, ...]:
        if completion.image_count > MAX_IMAGES:
            what = f"The messages have {completion.image_count:,} images; {MAX_IMAGES:,} is the most."
            raise contract.RefusedRequestError(what, param="messages", code="invalid_image")
        return tuple(message.as_message(self._model.load_image) for message in completion.messages)

    async def _answer(self, completion: contract.ChatCompletionRequest, question: ChatRequest) -> Response:
        await self._model.ready()
        ids = await self._model.prompt_ids(question.messages) if completion.return_token_ids else None
        form = contract.CompletionForm(completion.model, ids, completion.wants_usage)
        chunks = self._model.answer(question, completion.stops)
        if not completion.stream:
            text = ""
            async for last in chunks:
                text += last.text
            return JSONResponse(form.whole(text, last))
        # Errors before the first token become an answer with a status.
        first = await anext(chunks)
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(_events(form, first, chunks), headers=headers, media_type="text/event-stream")

    def _card(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._model.created, "owned_by": "loratory"}


async def _events(
    form: contract.CompletionForm, first: contract.AnswerDelta, rest: AsyncGenerator[contract.AnswerDelta, None]
) -> AsyncGenerator[str, None]:
    last = first
    try:
        yield _event(form.opening())
        if first.text:
            yield _event(form.chunk({"content": first.text}))
        async for last in rest:
            if last.text:
                yield _event(form.chunk({"content": last.text}))
        yield _event(form.chunk({}, last.finish))
        if form.with_usage:
            yield _event(form.counts(last))
        yield "data: [DONE]\n\n"
    except EngineError as error:
        yield _event(_as_refusal(error).body)
    finally:
        await rest.aclose()  # stops the model


async def _unless_gone(work: Coroutine[Any, Any, Response], receive: Receive) -> Response:
    """Return the response that some work makes, or cancel the work when the client disconnects."""

    async def wait_until_gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    doing, watching = asyncio.ensure_future(work), asyncio.ensure_future(wait_until_gone())
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else Response(status_code=499)
    finally:
        for task in (doing, watching):
            task.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


async def _read_json(request: Request, most_bytes: int) -> Any:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most_bytes:
            what = f"The body is larger than {most_bytes // 1_000_000} MB."
            raise contract.RefusedRequestError(what, code="request_too_large", status=413)
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise contract.RefusedRequestError("The body is not valid JSON.", code="invalid_json") from None


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _as_refusal(error: EngineError) -> contract.RefusedRequestError:
    if isinstance(error, ModelError):
        return contract.RefusedRequestError(str(error))
    # The device is in use, or the process ended.
    return contract.RefusedRequestError(str(error), status=503, kind="server_error")


async def _answer_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: "Not found. Available: /v1/chat/completions and /v1/models.", 405: "Method not allowed."}
    message = messages.get(error.status_code, error.detail)
    return contract.RefusedRequestError(message, status=error.status_code).response()


def serve_model(
    model: ServedModel,
    host: str,
    port: int,
    on_listening: Callable[[str, Sequence[str]], None],
    load: Callable[[], object],
) -> None:
    """Load the model and serve it until Ctrl-C or SIGTERM; its process has ended when this returns.

    Args:
        host: A loopback address.
        port: The port; 0 for any free one.
        on_listening: Called with the `base_url` for clients, and the names of the models.
        load: Loads the model, as `model.load` does.

    Raises:
        DeviceError: If the address cannot be used, or the device is in use.
        EngineError: If the model cannot be loaded.
    """
    if port != 0 or host not in LOOPBACK_HOSTS:
        refuse_unless_usable(host, port)
    listener = bound_socket(host, port)
    # uvicorn shuts down and raises the signal again, which must not end this process before the model is unloaded.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        load()
        config = uvicorn.Config(
            build_endpoint(model),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=3,
        )
        listener.listen()  # connections wait until the server accepts them
        host_text = f"[{host}]" if ":" in host else host
        on_listening(f"http://{host_text}:{listener.getsockname()[1]}/v1", model.listed_names)
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        return
    finally:
        listener.close()
        model.session.unload()
        signal.signal(signal.SIGTERM, before)
