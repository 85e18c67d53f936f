"""Formats whose rows hold one list of turns, ShareGPT's from and value or OpenAI's role and content, or plain text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loratory.engine.data.conversation import Conversation, Message, PlainText
from loratory.engine.data.formats.base import (
    COMMON,
    IMAGES,
    SYSTEM,
    Cells,
    Column,
    DataFormat,
    Detection,
    Evidence,
    Table,
)
from loratory.engine.data.formats.images import image_column, images_of
from loratory.engine.data.formats.turns import are_single_turns, begins_like_turns, is_turn, is_turn_text, turn_list
from loratory.engine.data.records import RowProblemError

# Columns that may hold lists of turns without being the conversation.
_NO_CONVERSATION = frozenset({"history", "tools", "prompt", "completion"})


class TurnLists(DataFormat):
    """A list of turns in one column; which format it is, the fields of its first turn decide."""

    def convert(self, row: Cells) -> Conversation:
        return row.conversation(row.turns(self.turn_column))

    def fits(self, turns: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether a list of turns is of this format."""
        has_from = "from" in turns[0] or "value" in turns[0]
        return has_from == ("from" in self.turn_fields)

    def detect(self, table: Table) -> list[Detection]:
        detections = []
        for name in _usual_columns(table):
            turns = _first_turns(name, table)
            if turns is not None and self.fits(turns):
                detections.append(self._detected_turns(name, table, Evidence.TURNS))
        other = {
            name: turns
            for plain, name in table.names.items()
            if plain not in _NO_CONVERSATION and (turns := _first_turns(name, table)) and is_turn(turns[0])
        }
        if len(other) == 1:
            ((name, turns),) = other.items()
            detections += [self._detected_turns(name, table, Evidence.OTHER_TURNS)] if self.fits(turns) else []
        return detections

    def _detected_turns(self, name: str, table: Table, evidence: Evidence) -> Detection:
        reason = f"a list {name} of {' and '.join(self.turn_fields)}"
        return self.detected({self.turn_column: name}, reason, table, evidence)


class ShareGPT(TurnLists):
    """Turns of from and value."""

    name = "sharegpt"
    label = "ShareGPT"
    turn_column = "conversations"
    turn_fields = ("from", "value")
    columns = (Column("conversations", True, "list of turns, each with from and value"), *COMMON)


class Messages(TurnLists):
    """Turns of role and content."""

    name = "messages"
    label = "messages"
    turn_column = "messages"
    columns = (Column("messages", True, "list of turns, each with role and content"), *COMMON)

    def detect(self, table: Table) -> list[Detection]:
        detections = super().detect(table)
        for name in _usual_columns(table):
            if _first_turns(name, table) is None and any(map(begins_like_turns, table.cells(name))):
                # Text that only looks like JSON is not plain text: each row then reports what is wrong with it.
                reason = f"a list {name} that is not valid JSON"
                detections.append(Detection(self.name, reason, {"messages": name}, sure=False, evidence=Evidence.TURNS))
        return detections


def _usual_columns(table: Table) -> Iterator[str]:
    for names in (("conversations", "conversation"), ("messages", "message"), ("dialog", "dialogue")):
        yield from [table.names[name] for name in names if name in table.names][:1]


def _first_turns(name: str, table: Table) -> list[Any] | None:
    return next((turns for turns in map(turn_list, table.cells(name)) if turns is not None), None)


class Text(DataFormat):
    """A column of text without roles."""

    name = "text"
    label = "plain text"
    columns = (Column("text", True, "plain text; every token is trained"),)
    has_turns = False

    def detect(self, table: Table) -> list[Detection]:
        names = table.names
        reason = sure = None
        if "text" in names:
            name, sure = names["text"], names["text"] == "text"
        elif "content" in names and not are_single_turns(names, table.rows):
            name = names["content"]
        elif len(set(names.values())) == 1:
            name = next(iter(names.values()))
            values = table.cells(name)
            if not all(isinstance(value, str) for value in values) or any(map(is_turn_text, values)):
                return []
            reason = f"the column {name} alone, and it holds text"
        else:
            return []
        return [Detection(self.name, reason or f"the column {name}", {"text": name}, bool(sure), Evidence.TEXT)]

    def convert(self, row: Cells) -> PlainText:
        text = row.text("text")
        if not text.strip():
            raise RowProblemError("empty", f"{row.columns['text']} is empty")
        return PlainText(text)


class Captions(DataFormat):
    """Images and what is to be said about each, such as in the metadata.jsonl of a folder; the user's turn is the image alone."""

    name = "captions"
    label = "images and captions"
    columns = (IMAGES._replace(required=True), Column("text", True, "the answer to the image alone"), SYSTEM)

    def detect(self, table: Table) -> list[Detection]:
        images = image_column(table.names, table.rows)
        text = next((table.names[name] for name in ("text", "caption") if name in table.names), None)
        if images is None or text is None or not table.is_text(text):
            return []
        if any(str(cell).startswith("http") for cell in table.cells(images)):  # of a text, as of a page on the web
            return []
        reason = f"the columns {images}, which has images, and {text}"
        return [self.detected({"images": images, "text": text}, reason, table, Evidence.SIMILAR_COLUMNS)]

    def convert(self, row: Cells) -> Conversation:
        if not images_of(row.required("images")):
            raise RowProblemError("image", f"{row.columns['images']} has no image")
        text = row.text("text")
        if not text.strip():
            raise RowProblemError("empty", f"{row.columns['text']} is empty")
        return row.conversation([Message("user"), Message("assistant", text)])


SHAREGPT, MESSAGES, TEXT, CAPTIONS = ShareGPT(), Messages(), Text(), Captions()
