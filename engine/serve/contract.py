"""What an OpenAI client asks for, read into what a conversation needs; what cannot be done is refused by name."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.config.results import SamplingConfig
from engine.data.conversation import Message, ToolCall

MAX_STOPS = 16
_SEEDS = 2**32

# These change nothing about an answer here.
_IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
# These would; they are accepted only where they ask for nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
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


class RefusedRequestError(Exception):
    """The request is wrong, or asks for what is not there; becomes an answer in OpenAI's form.

    Args:
        message: For the person who wrote the client.
        param: Which part of the request it is about.
        code: A word that programs look at.
        status: HTTP status.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status


class _Part(BaseModel):
    """A piece of a message's content."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["text"]
    text: str


class _Function(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    arguments: str = "{}"


class _ToolCall(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str | None = None
    function: _Function


class AskedMessage(BaseModel):
    """One turn, as clients send it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | tuple[_Part, ...] | None = None
    reasoning_content: str | None = None
    name: str | None = None
    tool_calls: tuple[_ToolCall, ...] | None = None
    tool_call_id: str | None = None

    def as_message(self) -> Message:
        """Return the same in the words of the chat; `developer` is the newer name of the system turn."""
        parts = self.content if isinstance(self.content, tuple) else ()
        text = "".join(part.text for part in parts) if parts else (self.content or "")
        return Message(
            role="system" if self.role == "developer" else self.role,
            content=str(text),
            reasoning=self.reasoning_content,
            tool_calls=tuple(
                ToolCall(call.function.name, call.function.arguments, call.id) for call in self.tool_calls or ()
            ),
            name=self.name,
            tool_call_id=self.tool_call_id,
        )


class _StreamOptions(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    include_usage: bool = False


class ChatCompletionRequest(BaseModel):
    """The body of POST /v1/chat/completions; what is left out is as in the chat.

    `top_k`, `repetition_penalty` and `return_token_ids` are those of vLLM; the official client sends them with
    `extra_body`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    model: str = Field(max_length=500)
    messages: tuple[AskedMessage, ...] = Field(min_length=1, max_length=10_000)
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
        """Texts that end an answer and are no part of it."""
        given = (self.stop,) if isinstance(self.stop, str) else self.stop or ()
        return tuple(text for text in given if text)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self) -> SamplingConfig:
        """Return the chat's settings, with the defaults of the chat for what was not said."""
        given = {
            "temperature": self.temperature,
            # 0 means what a very small share means: the most likely token alone.
            "top_p": None if self.top_p is None else max(self.top_p, 1e-6),
            "top_k": None if self.top_k is None else max(self.top_k, 0),  # vLLM's -1 means off as well
            "repetition_penalty": self.repetition_penalty,
            "max_new_tokens": self.max_completion_tokens or self.max_tokens,
            "seed": None if self.seed is None else self.seed % _SEEDS,
        }
        return SamplingConfig.model_validate({name: value for name, value in given.items() if value is not None})


class ErrorBody(NamedTuple):
    """An error in OpenAI's form."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the body of the answer."""
        return {"error": self._asdict()}


def read_request(body: Any) -> ChatCompletionRequest:
    """Check a request's body.

    Raises:
        RefusedRequestError: Names the first thing that is wrong, or that cannot be done here.
    """
    if not isinstance(body, dict):
        raise RefusedRequestError("The body is not a JSON object.")
    known = ChatCompletionRequest.model_fields
    for name, value in body.items():
        if name in _NEUTRAL:
            if value not in _NEUTRAL[name] or (isinstance(value, bool) and name == "n"):
                raise RefusedRequestError(
                    f"{name} is not supported here with this value; leave it out.",
                    param=name,
                    code="unsupported_parameter",
                )
        elif name not in known and name not in _IGNORED:
            raise RefusedRequestError(
                f"Unrecognized request argument: {name[:60]}.", param=name[:60], code="unknown_parameter"
            )
    try:
        request = ChatCompletionRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"][:3])
        code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
        raise RefusedRequestError(f"{where}: {first['msg']}.", param=where, code=code) from None
    if len(request.stops) > MAX_STOPS or any(len(text) > 1000 for text in request.stops):
        raise RefusedRequestError(
            f"stop takes up to {MAX_STOPS} texts of up to 1,000 characters.", param="stop", code="invalid_value"
        )
    return request
