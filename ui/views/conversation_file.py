"""A conversation as a file: Markdown to read, JSON to read and open again."""

from base64 import b64encode
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.chat.contract import Branch
from engine.errors import DatasetError
from ui.views.chat import BRANCH_WORDS, Turn
from ui.views.html import small

_LARGEST_FILE_BYTES = 4_000_000
_CHOOSE_ANOTHER = "Choose a .json file that was saved here."


class SavedConversation(BaseModel):
    """A conversation as a file: Markdown to read, JSON to read and open again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["loratory conversation"] = "loratory conversation"
    version: Literal[1] = 1
    model: str = ""  # description of the loaded model
    names: Mapping[Branch, str] = {}  # of the runs, for readers
    system: str = ""
    turns: tuple[Turn, ...] = Field(default=(), max_length=10_000)


def open_conversation(path: Path) -> SavedConversation:
    """Open a saved file; reads at most the size limit.

    Raises:
        DatasetError: If it cannot be read, is too large, or is not a saved conversation.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise DatasetError(f"That file cannot be read ({error.strerror}).", "Choose it again.") from error
    if len(content) > _LARGEST_FILE_BYTES:
        raise DatasetError(
            f"That file is larger than {_LARGEST_FILE_BYTES // 10**6} MB, the limit of a saved conversation.",
            _CHOOSE_ANOTHER,
        )
    return read_conversation(content)


def read_conversation(content: bytes) -> SavedConversation:
    """Return the conversation that `as_json` wrote.

    Raises:
        DatasetError: If it is not a saved conversation.
    """
    try:
        return SavedConversation.model_validate_json(content)
    except ValueError as error:
        raise DatasetError("That file is not a conversation saved by Loratory.", _CHOOSE_ANOTHER) from error


def as_json(conversation: SavedConversation) -> str:
    """Return the file that can be opened again."""
    return conversation.model_dump_json(indent=2) + "\n"


def as_markdown(conversation: SavedConversation) -> str:
    """Return the file to read."""
    names = {**BRANCH_WORDS, **conversation.names}
    lines = ["# Conversation", ""]
    if conversation.model:
        lines += [f"With {conversation.model}.", ""]
    if conversation.system:
        lines += ["**System prompt**", "", conversation.system, ""]
    for turn in conversation.turns:
        lines += ["## You", "", turn.question, ""]
        for answer in turn.answers:
            lines += [f"### {turn.names(names)[answer.branch]}", "", answer.text.strip(), ""]
        if turn.reference:
            lines += ["### Reference", "", turn.reference, ""]
    return "\n".join(lines)


def render_links(conversation: SavedConversation) -> str:
    """Return two downloads that need no file on the server."""
    if not conversation.turns:
        return small("No messages yet.")
    markdown = _link("conversation.md", "text/markdown", as_markdown(conversation))
    return f'<p class="links">{markdown}{_link("conversation.json", "application/json", as_json(conversation))}</p>'


def _link(name: str, kind: str, text: str) -> str:
    data = b64encode(text.encode()).decode()
    return f'<a download="{escape(name)}" href="data:{kind};charset=utf-8;base64,{data}">Download {escape(name)}</a> '
