"""OpenAI's objects: validated requests of clients, and the answers to them."""

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse

from loratory.engine.config.results import SamplingConfig
from loratory.engine.data.conversation import IMAGE_MARK, ImageRef, Message, ToolCall

# Accepted and ignored: they do not affect an answer.
IGNORED = frozenset(
    "metadata parallel_tool_calls prompt_cache_key prompt_cache_retention safety_identifier service_tier store user".split()
)
# Accepted only with values that do not affect an answer.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (None,),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "modalities": (None, ["text"]),
    "n": (None, 1),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "tool_choice": (None, "none"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "verbosity": (None,),
    "web_search_options": (None,),
}


@dataclass(eq=False)
class RefusedRequestError(Exception):
    """An invalid or unsupported request; becomes an answer in OpenAI's format."""

    message: str  # for the developer of the client
    _: KW_ONLY
    param: str | None = None  # the invalid field of the request
    code: str | None = None  # for programs
    status: int = 400  # of HTTP
    kind: str = "invalid_request_error"  # OpenAI's type of error

    @property
    def body(self) -> dict[str, Any]:
        """The error in OpenAI's format."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self, headers: Mapping[str, str] | None = None) -> JSONResponse:
        """Return the error as an HTTP response."""
        return JSONResponse(self.body, self.status, headers)


class _Request(BaseModel):
    """A part of a request; unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, defer_build=True)


class _TextPart(_Request):
    type: Literal["text"]
    text: str


class _ImageUrl(_Request):
    url: str


class _ImagePart(_Request):
    type: Literal["image_url"]
    image_url: _ImageUrl


_Part = Annotated[_TextPart | _ImagePart, Field(discriminator="type")]


class _Function(_Request):
    name: str
    arguments: str = "{}"


class _ToolCall(_Request):
    id: str | None = None
    function: _Function


class RequestMessage(_Request):
    """A message of a request."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | tuple[_Part, ...] | None = None
    reasoning_content: str | None = None
    name: str | None = None
    tool_calls: tuple[_ToolCall, ...] | None = None
    tool_call_id: str | None = None

    def as_message(self, load_image: Callable[[str], ImageRef]) -> Message:
        """Return the message for the chat; `developer` is the newer name of the system role.

        `load_image` returns the image of a URL, or refuses it.
        """
        text, images = "", []
        for part in self.content if isinstance(self.content, tuple) else ():
            if isinstance(part, _ImagePart):
                images.append(load_image(part.image_url.url))
            text += IMAGE_MARK if isinstance(part, _ImagePart) else part.text.replace(IMAGE_MARK, "")
        if isinstance(self.content, str):
            text = self.content.replace(IMAGE_MARK, "")
        return Message(
            role="system" if self.role == "developer" else self.role,
            content=text,
            images=tuple(images),
            reasoning=self.reasoning_content,
            tool_calls=tuple(
                ToolCall(call.function.name, call.function.arguments, call.id) for call in self.tool_calls or ()
            ),
            name=self.name,
            tool_call_id=self.tool_call_id,
        )


class _StreamOptions(_Request):
    include_usage: bool = False


class ChatCompletionRequest(_Request):
    """The body of POST /v1/chat/completions, with the chat's defaults.

    `top_k`, `repetition_penalty` and `return_token_ids` are vLLM's; the official client sends them in `extra_body`.
    """

    model: str = Field(max_length=500)
    messages: tuple[RequestMessage, ...] = Field(min_length=1, max_length=10_000)
    stream: bool = False
    stream_options: _StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=5)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=1_000_000)
    repetition_penalty: float | None = Field(None, ge=0.1, le=10)
    max_tokens: int | None = Field(None, ge=1, le=1_048_576)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_048_576)
    seed: int | None = None
    stop: str | tuple[str, ...] | None = None
    return_token_ids: bool = False

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop texts, which end an answer and are not part of it."""
        stops = (self.stop,) if isinstance(self.stop, str) else self.stop or ()
        return tuple(text for text in stops if text)

    @property
    def image_count(self) -> int:
        """The number of images in all messages."""
        parts = (part for message in self.messages if isinstance(message.content, tuple) for part in message.content)
        return sum(isinstance(part, _ImagePart) for part in parts)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self) -> SamplingConfig:
        """Return the sampling settings, with the chat's defaults for omitted fields."""
        values = {
            "temperature": self.temperature,
            # 0 means the likeliest token alone, like a very small value.
            "top_p": None if self.top_p is None else max(self.top_p, 1e-6),
            "top_k": None if self.top_k is None else max(self.top_k, 0),  # vLLM's -1 means off as well
            "repetition_penalty": self.repetition_penalty,
            "max_new_tokens": self.max_completion_tokens or self.max_tokens,
            "seed": None if self.seed is None else self.seed % 2**32,
        }
        return SamplingConfig.model_validate({name: value for name, value in values.items() if value is not None})


def read_request(body: Any) -> ChatCompletionRequest:
    """Validate the body of a request.

    Raises:
        RefusedRequestError: With the first invalid or unsupported field.
    """
    if not isinstance(body, dict):
        raise RefusedRequestError("The body is not a JSON object.")
    fields = ChatCompletionRequest.model_fields
    for name, value in body.items():
        if name in NEUTRAL:
            if value not in NEUTRAL[name] or (isinstance(value, bool) and name == "n"):
                what = f"{name} is not supported here with this value; leave it out."
                raise RefusedRequestError(what, param=name, code="unsupported_parameter")
        elif name not in fields and name not in IGNORED:
            what = f"Unrecognized request argument: {name[:60]}."
            raise RefusedRequestError(what, param=name[:60], code="unknown_parameter")
    try:
        request = ChatCompletionRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"][:3])
        code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
        raise RefusedRequestError(f"{where}: {first['msg']}.", param=where, code=code) from None
    if len(request.stops) > 16 or any(len(text) > 1000 for text in request.stops):
        what = "stop accepts up to 16 texts of up to 1,000 characters."
        raise RefusedRequestError(what, param="stop", code="invalid_value")
    return request


OpenAIFinish = Literal["stop", "length"]


class AnswerDelta(NamedTuple):
    """The text of an answer since the last delta."""

    text: str
    prompt_tokens: int
    completion_tokens: int  # so far
    finish: OpenAIFinish | None = None


@dataclass(frozen=True)
class CompletionForm:
    """The objects of one answer."""

    model: str  # the name in the request
    prompt_token_ids: tuple[int, ...] | None = None  # if the client requests them
    with_usage: bool = False  # whether a stream ends with the token counts
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, last: AnswerDelta) -> dict[str, Any]:
        """Return the `chat.completion` of a whole answer."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": last.finish}
        return {**self._head("chat.completion"), **self._ids(), "choices": [choice], "usage": _usage(last)}

    def opening(self) -> dict[str, Any]:
        """Return the first `chat.completion.chunk`, with the role."""
        return {**self.chunk({"role": "assistant", "content": ""}), **self._ids()}

    def chunk(self, delta: dict[str, Any], finish: OpenAIFinish | None = None) -> dict[str, Any]:
        """Return a `chat.completion.chunk` with added text, or with the finish reason."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        usage = {"usage": None} if self.with_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **usage}

    def counts(self, last: AnswerDelta) -> dict[str, Any]:
        """Return the last chunk, with the token counts and without choices."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(last)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _ids(self) -> dict[str, Any]:
        return {} if self.prompt_token_ids is None else {"prompt_token_ids": list(self.prompt_token_ids)}


def _usage(last: AnswerDelta) -> dict[str, int]:
    prompt, completion = last.prompt_tokens, last.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
