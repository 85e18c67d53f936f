"""A conversation as a file: Markdown to read, JSON to read and open again."""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.chat.contract import Branch, FinishReason
from engine.errors import DatasetError
from ui.views.chat import BRANCH_WORDS, Answer, Turn
from ui.views.html import small

_LARGEST_BYTES = 4_000_000


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SavedAnswer(_Part):
    """One branch's answer."""

    branch: Branch
    name: str = ""  # of the run, for readers
    text: str
    tokens: int = Field(0, ge=0)
    tokens_per_second: float = 0.0
    prompt_tokens: int = Field(0, ge=0)
    finish_reason: FinishReason | None = None


class SavedTurn(_Part):
    """A question, its answers, and the reference where it is known."""

    question: str
    reference: str = ""
    answers: tuple[SavedAnswer, ...] = ()


class SavedConversation(_Part):
    """The file."""

    format: Literal["loratory conversation"] = "loratory conversation"
    version: Literal[1] = 1
    model: str = ""  # what was loaded, in words
    system: str = ""
    turns: tuple[SavedTurn, ...] = Field((), max_length=10_000)


def save(turns: Sequence[Turn], system: str, model: str, names: Mapping[Branch, str]) -> SavedConversation:
    """Return the conversation as a file holds it."""
    words = {**BRANCH_WORDS, **names}

    def saved(answer: Answer) -> SavedAnswer:
        values = asdict(answer) | {"tokens_per_second": round(answer.tokens_per_second, 2)}
        del values["done"]
        return SavedAnswer(name=words[answer.branch], **values)

    return SavedConversation(
        model=model,
        system=system,
        turns=tuple(
            SavedTurn(question=turn.question, reference=turn.reference, answers=tuple(map(saved, turn.answers)))
            for turn in turns
        ),
    )


def turns_of(saved: SavedConversation) -> list[Turn]:
    """Return the conversation as the page holds it."""
    return [
        Turn(
            turn.question,
            tuple(Answer(done=True, **answer.model_dump(exclude={"name"})) for answer in turn.answers),
            turn.reference,
        )
        for turn in saved.turns
    ]


def open_conversation(path: Path) -> SavedConversation:
    """Open a saved file; no more than the limit is read of a larger one.

    Raises:
        DatasetError: If it cannot be read, is too large, or is not a saved conversation.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise DatasetError(f"That file cannot be read ({error.strerror}).", "Choose it again.") from error
    if len(content) > _LARGEST_BYTES:
        raise DatasetError(
            f"That file is larger than {_LARGEST_BYTES // 10**6} MB, the limit of a saved conversation.",
            "Choose a .json file that was saved here.",
        )
    return read_conversation(content)


def read_conversation(content: bytes) -> SavedConversation:
    """Return the conversation that `as_json` wrote.

    Raises:
        DatasetError: If it is not a saved conversation.
    """
    try:
        return SavedConversation.model_validate_json(content)
    except (ValidationError, ValueError) as error:
        raise DatasetError(
            "That file is not a conversation saved by Loratory.", "Choose a .json file that was saved here."
        ) from error


def as_json(saved: SavedConversation) -> str:
    """Return the file that can be opened again."""
    return json.dumps(saved.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def as_markdown(saved: SavedConversation) -> str:
    """Return the file to read."""
    lines = ["# Conversation", ""]
    if saved.model:
        lines += [f"With {saved.model}.", ""]
    if saved.system:
        lines += ["**System prompt**", "", saved.system, ""]
    for turn in saved.turns:
        lines += ["## You", "", turn.question, ""]
        for answer in turn.answers:
            lines += [f"### {answer.name or BRANCH_WORDS[answer.branch]}", "", answer.text.strip(), ""]
        if turn.reference:
            lines += ["### Reference", "", turn.reference, ""]
    return "\n".join(lines)


def render_links(saved: SavedConversation) -> str:
    """Return two downloads that need no file on the server."""
    if not saved.turns:
        return small("No messages yet.")
    return f'<p class="links">{_link("conversation.md", "text/markdown", as_markdown(saved))}{_link("conversation.json", "application/json", as_json(saved))}</p>'


def _link(name: str, kind: str, text: str) -> str:
    data = b64encode(text.encode()).decode()
    return f'<a download="{escape(name)}" href="data:{kind};charset=utf-8;base64,{data}">Download {escape(name)}</a> '
