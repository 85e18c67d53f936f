"""The base class of data formats: columns, detection, and conversion of rows to conversations."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, NamedTuple

from loratory.engine.config.objectives import RowKind
from loratory.engine.config.run import DataFormatName, TurnRole
from loratory.engine.data.conversation import Conversation, Example, Message
from loratory.engine.data.formats.images import AnyConversation, Load, image_column, images_of, place_images
from loratory.engine.data.formats.turns import TurnFields, list_of_turns, tool_schemas, turn_list
from loratory.engine.data.records import RowProblemError, describe_kind, one_line


def is_missing(value: Any) -> bool:
    """Return whether a cell is empty; pandas writes NaN for empty cells."""
    return value is None or (isinstance(value, float) and math.isnan(value))


class Column(NamedTuple):
    """A column that a format knows."""

    role: str  # its name in the format, and on the left of a mapping
    required: bool
    about: str


SYSTEM = Column("system", False, "system prompt")
SYSTEM_NAMES = ("system", "system_prompt", "system_message")
TOOLS = Column("tools", False, "functions that the assistant may call")
IMAGES = Column("images", False, "files, data: URLs or bytes, one or a list; <image> in a text is the place of one")
COMMON = (SYSTEM, TOOLS, IMAGES)  # of any conversation

# Names of a turn's own fields, which a mapping may rename as well.
TURN_FIELDS = ("from", "value", "role", "content")


class Table(NamedTuple):
    """The rows and columns that a format is detected from."""

    names: Mapping[str, str]  # of columns, by their exact and by their plain names (no case, no spaces)
    rows: Sequence[Mapping[str, Any]]  # the first that could be read

    def cells(self, column: str) -> list[Any]:
        """Return the cells of a column; None for each that is not there."""
        return [row.get(column) for row in self.rows]

    def is_text(self, column: str) -> bool:
        """Return whether a column holds text or, in some rows, nothing."""
        values = self.cells(column)
        return any(isinstance(value, str) for value in values) and all(
            isinstance(value, str) or is_missing(value) for value in values
        )


class Evidence(IntEnum):
    """The evidence for a format: of formats that fit equally many rows, the lowest wins; beyond COLUMNS, it is a guess."""

    PREFERENCES = 0  # a column of rejected answers, or of labels that are true or false
    TURNS = 1  # a list of turns under one of its usual names
    COLUMNS = 2  # the columns of the format by their own names
    SIMILAR_COLUMNS = 3  # columns that look like a question and its answer
    OTHER_TURNS = 4  # a list of turns under any other name
    TEXT = 5


@dataclass(frozen=True)
class Detection:
    """How rows are read. `columns` maps the roles of the format to the names of this dataset's columns."""

    format: DataFormatName
    reason: str
    columns: Mapping[str, str]
    sure: bool = True  # False: a guess from names; the page then offers the mapping
    evidence: Evidence = Evidence.COLUMNS


class DataFormat(ABC):
    """One way in which the rows of a dataset hold conversations or text."""

    name: DataFormatName
    label: str  # for people
    columns: tuple[Column, ...]  # those that the format knows
    turn_column: str = ""  # role of the column that is the whole conversation; empty where a format has none
    turn_fields: tuple[str, str] = ("role", "content")  # fields of a turn for its role and its text
    has_turns: bool = True  # False for plain text, where no part is the assistant's
    rows: RowKind = "answers"  # the kind that an objective trains on
    may_hold_turns: tuple[str, ...] = ()  # roles whose columns hold text, or a list of turns instead

    @abstractmethod
    def detect(self, table: Table) -> list[Detection]:
        """Return the ways in which the rows may be of this format."""

    @abstractmethod
    def convert(self, row: "Cells") -> Example:
        """Read one row.

        Raises:
            RowProblemError: With the reason why it cannot be trained on.
        """

    @property
    def required(self) -> tuple[str, ...]:
        """Roles of the columns without which nothing can be read."""
        return tuple(column.role for column in self.columns if column.required)

    def optional_column(self, role: str, detection: Detection, table: Table) -> str | None:
        """Return a column under another name that can have an optional role; such as the system prompt."""
        if role != SYSTEM.role:
            return None
        conversations = (
            turn_list(row.get(column)) or [{}] for row in table.rows for column in detection.columns.values()
        )
        if any(turns[0].get("role", turns[0].get("from")) == "system" for turns in conversations):
            return None  # the conversations already begin with them
        columns = (table.names[name] for name in SYSTEM_NAMES if name in table.names)
        return next(filter(table.is_text, columns), None)

    def detected(self, columns: Mapping[str, str], reason: str, table: Table, evidence: Evidence) -> Detection:
        """Return a detection with the optional columns added; those under other names are a guess."""
        detection = Detection(self.name, reason, columns, evidence <= Evidence.COLUMNS, evidence)
        for column in self.columns:
            if column.role in detection.columns:
                continue
            own = table.names.get(column.role)
            if column.role == IMAGES.role and (own := image_column(table.names, table.rows)) is not None:
                detection = replace(detection, reason=f"{detection.reason}; {own} has images")
            name = own if own not in detection.columns.values() else None  # such as the question, which an input may be
            name = self.optional_column(column.role, detection, table) if name is None else name
            if name is not None:
                detection = replace(detection, columns={**detection.columns, column.role: name})
            if name not in (None, own):
                detection = replace(
                    detection, reason=f"{detection.reason}; {name} is read as {column.role}", sure=False
                )
        return detection


class Cells:
    """The cells of a row by role; `columns` maps roles to column names, `role_map` those of turns to known ones."""

    def __init__(
        self, columns: Mapping[str, str], role_map: Mapping[str, TurnRole], load_image: Load | None = None
    ) -> None:
        self.columns = columns
        self._load_image, self._image_column = load_image, columns.get(IMAGES.role)
        self.value: Mapping[str, Any] = {}  # the row that is read
        role, content = (tuple(columns.get(name, name) for name in names) for names in TurnFields()[:2])
        self.fields = TurnFields(role, content, role_map, load_image)

    def required(self, role: str) -> Any:
        """Return the cell of a role.

        Raises:
            RowProblemError: If the row has no such column.
        """
        name = self.columns[role]
        if name not in self.value:
            plain_name = name.strip().lower()
            name = next((other for other in self.value if other.strip().lower() == plain_name), name)
        if name not in self.value:
            column_list = ", ".join(one_line(column, 20) for column in list(self.value)[:6]) or "none"
            raise RowProblemError("missing_column", f"there is no {name}; the columns of this row are {column_list}")
        return self.value[name]

    def text(self, role: str, *, optional: bool = False) -> str:
        """Return the text of a role; empty where an optional one is missing.

        Raises:
            RowProblemError: If it is not text, or is missing and not optional.
        """
        name = self.columns.get(role)
        if name is None:
            return ""
        value = self.value.get(name) if optional else self.required(role)
        if optional and is_missing(value):
            return ""
        if not isinstance(value, str):
            raise RowProblemError("not_text", f"{name} is {describe_kind(value)}, not text")
        return value

    def turns(self, role: str) -> list[Message]:
        """Return the turns of a role's column.

        Raises:
            RowProblemError: If it does not hold a list of them.
        """
        return list_of_turns(self.required(role), self.columns[role], self.fields)

    def conversation(self, turns: Sequence[Message]) -> Conversation:
        """Return turns with the system and tools columns, where the format has them and the row fills them."""
        system = self.text("system", optional=True)
        messages = list(turns)
        if system.strip():
            if messages and messages[0].role == "system":
                messages[0] = replace(messages[0], content=f"{system}\n\n{messages[0].content}")
            else:
                messages.insert(0, Message("system", system))
        name = self.columns.get("tools")
        return Conversation(tuple(messages), tool_schemas(self.value.get(name), name) if name else ())

    def with_images(self, example: AnyConversation) -> AnyConversation:
        """Return what was read of the row with its images in their places.

        Raises:
            RowProblemError: If they do not fit the turns, or one cannot be read.
        """
        name = self._image_column
        if name is None and not example.has_marks():
            return example
        cells = images_of(self.value.get(name)) if name is not None else []
        return place_images(example, cells, self._load_image, name)
