"""What a row says once its format no longer matters: a conversation, or plain text."""

from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]

JsonValue = Any  # what JSON can hold: the arguments and the schema of a tool are the template's business, not ours


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the assistant calls."""

    name: str
    arguments: JsonValue  # an object in nearly all data; text where the data holds no valid JSON
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn."""

    role: Role
    content: str = ""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None  # of the tool that answers
    tool_call_id: str | None = None
    is_learned: bool = True  # False where the data says that an assistant's turn is only read

    @property
    def is_empty(self) -> bool:
        """Whether the turn says nothing at all."""
        return not self.content.strip() and not self.tool_calls and not (self.reasoning or "").strip()


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, with the tools that the assistant may call."""

    messages: tuple[Message, ...]
    tools: tuple[JsonValue, ...] = ()  # JSON schemas as the data gives them
    completion_start: int | None = None  # index of the first turn of the completion, where the format says so

    def text(self) -> str:
        """Everything that is said, for search and samples."""
        return "\n".join(message.content for message in self.messages)


@dataclass(frozen=True, slots=True)
class PlainText:
    """A row without roles: all of it counts."""

    content: str

    def text(self) -> str:
        """Everything that is said, for search and samples."""
        return self.content


Example = Conversation | PlainText
