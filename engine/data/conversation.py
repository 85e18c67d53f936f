"""The content of a row, independent of its format; each kind of row has a class."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal

from loratory.engine.config.objectives import RowKind
from loratory.engine.config.run import TrainOn
from loratory.engine.data.records import ProblemKind, one_line

Role = Literal["system", "user", "assistant", "tool"]
JsonValue = Any  # any JSON: a tool's arguments and schema are passed to the template unchanged
IMAGE_MARK = "\ufffc"  # OBJECT REPLACEMENT CHARACTER: in the content of a turn, where an image is


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image of a row, in the media store."""

    digest: str  # sha256, in hex, of the bytes as the data had them: its name in the store
    width: int  # of the stored image, in pixels, after EXIF rotation
    height: int


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
    images: tuple[ImageRef, ...] = ()  # as many as `content` has marks, in their order
    has_empty_block: bool = field(
        default=False, compare=False
    )  # of reasoning; for checks, since it changes nothing else

    @property
    def is_empty(self) -> bool:
        """Whether the turn has no content at all."""
        return not self.content.strip() and not self.tool_calls and not (self.reasoning or "").strip()


RowWarning = tuple[ProblemKind, str]


class Example(ABC):
    """A row; each kind of row has a class."""

    __slots__ = ()
    kind: ClassVar[RowKind] = "answers"

    @abstractmethod
    def text(self) -> str:
        """Return all text, for search and samples."""

    def sides(self) -> tuple["Example", ...]:
        """Return what becomes a training sequence each: the row itself, or the two answers that it compares."""
        return (self,)

    def shared_prompt(self) -> "Example | None":
        """Return the part that keeps rows on one side of the split if they share it; None for the whole row."""
        return None

    def trained_part(self, train_on: TrainOn) -> TrainOn:
        """Return what is trained of it, where the config asks for `train_on`."""
        return train_on

    def warnings(self) -> tuple[RowWarning, ...]:
        """Return the warnings about a row that is kept."""
        return ()

    @abstractmethod
    def preview(self, clip: Callable[[str], str]) -> dict[str, Any]:
        """Return what a page shows of it, as fields of a `PageRow`; `clip` shortens long texts."""


@dataclass(frozen=True, slots=True)
class PlainText(Example):
    """A row without roles: all of it is trained."""

    content: str

    def text(self) -> str:
        return self.content

    def preview(self, clip: Callable[[str], str]) -> dict[str, Any]:
        return {"text": clip(self.content)}


@dataclass(frozen=True, slots=True)
class Conversation(Example):
    """Turns in order, with the tools that the assistant may call."""

    messages: tuple[Message, ...]
    tools: tuple[JsonValue, ...] = ()  # JSON schemas as the data gives them
    completion_start: int | None = None  # index of the first turn of the completion, where the format marks it

    def text(self) -> str:
        return "\n".join(message.content for message in self.messages)

    def has_marks(self) -> bool:
        """Return whether a turn has the mark of an image."""
        for message in self.messages:  # noqa: SIM110 - any() takes three times as long
            if IMAGE_MARK in message.content:
                return True
        return False

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the completion."""
        return self.messages[: self.completion_start]

    def warnings(self) -> tuple[RowWarning, ...]:
        """Return the warnings about its turns: their order, empty ones, calls without results."""
        return tuple(_turn_warnings(self.messages))

    def preview(self, clip: Callable[[str], str]) -> dict[str, Any]:
        return {"conversation": Conversation(_clipped(self.messages, clip), self.tools, self.completion_start)}


@dataclass(frozen=True, slots=True)
class PromptRow(Conversation):
    """Turns that the model is to answer; nothing of them is trained."""

    kind: ClassVar[RowKind] = "prompts"

    def warnings(self) -> tuple[RowWarning, ...]:
        return tuple(warning for warning in _turn_warnings(self.messages) if warning[0] != "unanswered")


@dataclass(frozen=True, slots=True)
class LabeledCompletion(Conversation):
    """A conversation whose answer, from `completion_start` on, was rated."""

    kind: ClassVar[RowKind] = "ratings"
    desirable: bool = True

    def shared_prompt(self) -> Conversation:
        return Conversation(self.prompt)

    def trained_part(self, train_on: TrainOn) -> TrainOn:  # noqa: ARG002 - the answer was rated
        return "completion"

    def preview(self, clip: Callable[[str], str]) -> dict[str, Any]:
        return {**Conversation.preview(self, clip), "desirable": self.desirable}


@dataclass(frozen=True, slots=True)
class PreferencePair(Conversation):
    """Two answers to one prompt. `messages` end with the chosen one, which begins at `completion_start`."""

    kind: ClassVar[RowKind] = "pairs"
    rejected: tuple[Message, ...] = ()  # in place of the chosen answer

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

    def shared_prompt(self) -> Conversation:
        return Conversation(self.prompt)

    def trained_part(self, train_on: TrainOn) -> TrainOn:  # noqa: ARG002 - the answers are compared
        return "completion"

    def text(self) -> str:
        return "\n".join(message.content for message in (*self.messages, *self.rejected))

    def has_marks(self) -> bool:
        return Conversation.has_marks(self) or any(IMAGE_MARK in message.content for message in self.rejected)

    def warnings(self) -> tuple[RowWarning, ...]:
        chosen, rejected = (" ".join(turn.content for turn in side) for side in (self.chosen, self.rejected))
        warnings = dict.fromkeys(warning for side in self.sides() for warning in side.warnings())
        if "".join(chosen.split()) == "".join(rejected.split()) and not any(turn.tool_calls for turn in self.chosen):
            warnings["white_space", "the chosen and the rejected answer differ in white space only"] = None
        return tuple(warnings)

    def preview(self, clip: Callable[[str], str]) -> dict[str, Any]:
        return {**Conversation.preview(self, clip), "rejected": _clipped(self.rejected, clip)}


def _clipped(messages: Sequence[Message], clip: Callable[[str], str]) -> tuple[Message, ...]:
    clipped = (replace(message, content=clip(message.content)) for message in messages)
    return tuple(
        replace(message, images=message.images[: message.content.count(IMAGE_MARK)]) if message.images else message
        for message in clipped
    )


def _turn_warnings(messages: Sequence[Message]) -> Iterator[RowWarning]:
    if next((message.role for message in messages if message.role != "system"), "") == "assistant":
        yield "order", "the assistant speaks first; that turn has no prompt, so it is context and not trained"
    for number, message in enumerate(messages, start=1):
        if message.role == "user" and (not message.content or message.content.isspace()):
            yield "empty", f"turn {number} is the user's, and it is empty"
    for number, (before, message) in enumerate(pairwise(messages), start=2):
        if message.role == before.role == "user":
            yield "order", f"turn {number} is the user's, and so is the one before it"
        if before.tool_calls and message.role != "tool":
            names = ", ".join(one_line(call.name, 30) for call in before.tool_calls)
            yield "tools", f"the call of {names} in turn {number - 1} has no result"
        if message.role == "tool" and before.role not in ("assistant", "tool"):
            yield "tools", f"turn {number} is the result of no call"
    if messages[-1].role in ("user", "tool"):
        yield "unanswered", f"the last turn is the {messages[-1].role}'s; nothing answers it"
