"""Plain text: one column; every token is trained."""

from engine.data.conversation import PlainText
from engine.data.formats.base import Cells, Column, DataFormat, Detection, Evidence, Table
from engine.data.formats.turns import are_single_turns, looks_like_turns
from engine.data.records import RowProblemError


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
            if not all(isinstance(value, str) for value in values) or any(map(looks_like_turns, values)):
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


TEXT = Text()
