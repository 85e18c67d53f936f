"""The content of a row, independent of its format, and warnings about it."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from engine.data.records import ProblemKind, shortened

Role = Literal["system", "user", "assistant", "tool"]
JsonValue = Any  # any JSON: a tool's arguments and schema are passed to the template unchanged


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
    is_trained: bool = True  # False where the data marks an assistant's turn as context only

    @property
    def is_empty(self) -> bool:
        """Whether the turn has no content at all."""
        return not self.content.strip() and not self.tool_calls and not (self.reasoning or "").strip()


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, with the tools that the assistant may call."""

    messages: tuple[Message, ...]
    tools: tuple[JsonValue, ...] = ()  # JSON schemas as the data gives them
    completion_start: int | None = None  # index of the first turn of the completion, where the format marks it

    def text(self) -> str:
        """Return all text, for search and samples."""
        return "\n".join(message.content for message in self.messages)


@dataclass(frozen=True, slots=True)
class PreferencePair(Conversation):
    """Two answers to one prompt. `messages` end with the chosen one, which begins at `completion_start`."""

    rejected: tuple[Message, ...] = ()  # in place of the chosen answer

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns that both answers follow."""
        return self.messages[: self.completion_start]

    @property
    def chosen(self) -> tuple[Message, ...]:
        """The turns of the better answer."""
        return self.messages[self.completion_start :]

    def sides(self) -> tuple[Conversation, Conversation]:
        """Return the conversations with the chosen and with the rejected answer."""
        start = self.completion_start
        return (
            Conversation(self.messages, self.tools, start),
            Conversation((*self.prompt, *self.rejected), self.tools, start),
        )

    def text(self) -> str:
        """Return all text, for search and samples."""
        return "\n".join(message.content for message in (*self.messages, *self.rejected))


@dataclass(frozen=True, slots=True)
class LabeledCompletion(Conversation):
    """A conversation whose answer, from `completion_start` on, was rated."""

    desirable: bool = True

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns that the answer follows."""
        return self.messages[: self.completion_start]


@dataclass(frozen=True, slots=True)
class PlainText:
    """A row without roles: all of it is trained."""

    content: str

    def text(self) -> str:
        """Return all text, for search and samples."""
        return self.content


Example = Conversation | PlainText
RowWarning = tuple[ProblemKind, str]


def warnings_of(example: Example) -> tuple[RowWarning, ...]:
    """Return warnings about the turns of a conversation: their order, empty ones, calls without results."""
    if isinstance(example, PlainText):
        return ()
    if isinstance(example, PreferencePair):
        return _warnings_of_pair(example)
    messages = example.messages
    warnings: list[RowWarning] = []
    if next((message.role for message in messages if message.role != "system"), "") == "assistant":
        reason = "the assistant speaks first; that turn has no prompt, so it is context and not trained"
        warnings.append(("order", reason))
    for number, message in enumerate(messages, start=1):
        if message.role == "user" and (not message.content or message.content.isspace()):
            warnings.append(("empty", f"turn {number} is the user's, and it is empty"))
    for number, (before, message) in enumerate(pairwise(messages), start=2):
        if message.role == before.role == "user":
            warnings.append(("order", f"turn {number} is the user's, and so is the one before it"))
        if before.tool_calls and message.role != "tool":
            names = ", ".join(shortened(call.name, 30) for call in before.tool_calls)
            warnings.append(("tools", f"the call of {names} in turn {number - 1} has no result"))
        if message.role == "tool" and before.role not in ("assistant", "tool"):
            warnings.append(("tools", f"turn {number} is the result of no call"))
    if messages[-1].role in ("user", "tool"):
        warnings.append(("unanswered", f"the last turn is the {messages[-1].role}'s; nothing answers it"))
    return tuple(warnings)


def _warnings_of_pair(pair: PreferencePair) -> tuple[RowWarning, ...]:
    chosen, rejected = (" ".join(turn.content for turn in side) for side in (pair.chosen, pair.rejected))
    warnings = dict.fromkeys(warning for side in pair.sides() for warning in warnings_of(side))
    if "".join(chosen.split()) == "".join(rejected.split()) and not any(turn.tool_calls for turn in pair.chosen):
        warnings["white_space", "the chosen and the rejected answer differ in white space only"] = None
    return tuple(warnings)
