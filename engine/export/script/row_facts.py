"""Facts about the rows: how to read them, and what the run made of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from engine.data.formats import FORMATS
from engine.data.formats.base import TURN_FIELDS
from engine.data.formats.preferences import HH_DIALOGUES

FileKind = Literal["json_lines", "json_array", "delimited", "lines", "paragraphs", "parquet", "hub"]


@dataclass
class DataFacts:
    """Facts about the rows, collected while they are read."""

    kind: FileKind
    format: str
    columns: Mapping[str, str]  # of the format's roles
    fingerprint: str = ""  # sha256 over the content of the rows that are not left out, in order
    files: tuple[str, ...] = ()  # to read; empty for the Hub
    encoding: str = "utf-8-sig"
    delimiter: str = ","
    gzip: bool = False  # the files are packed
    has_media: bool = False  # the rows have columns with pictures or sound, which are not read
    roles: dict[str, str] = field(default_factory=dict)  # by their names in the rows
    role_field: str = "role"  # of a turn
    content_field: str = "content"
    turn_columns: set[str] = field(default_factory=set)  # columns that hold lists of turns
    left_out: set[int] = field(default_factory=set)  # numbers of rows, from 0, that cannot be read or train nothing
    has_json_columns: bool = False  # lists may be written as JSON in a text
    has_list_rows: bool = False  # a row may be nothing but a list of turns
    has_system: bool = False  # any row has a system turn
    has_later_system: bool = False  # any row has one after its first turn
    has_repeated_roles: bool = False  # two turns of one role may follow each other
    holds_whole_conversations: bool = False  # both answers of a pair begin with the prompt
    has_parts: bool = False  # the text of a turn may be a list of parts
    has_reasoning: bool = False  # answers may hold reasoning
    has_reasoning_fields: bool = False  # turns may have their reasoning in a field of its own
    has_empty_answers: bool = False  # an assistant's turn may be empty
    opens_with_answer: bool = False  # an assistant may speak first
    most_answers: int = 0  # the most assistant's turns of one row
    can_hold_out: bool = True  # rows can be held out, as they cannot where all have the same content
    held_out_draw: bool = False  # there are so many held-out rows that only some of them are evaluated

    @property
    def has_turns(self) -> bool:
        """Whether rows are conversations, and not plain text."""
        return FORMATS[self.format].has_turns

    @property
    def conversation_column(self) -> str:
        """The column with all turns of a row; empty where there is none."""
        return self.columns.get(FORMATS[self.format].turn_column, "")

    @property
    def is_rated(self) -> bool:
        """Whether rows are answers with a label, and not pairs."""
        return FORMATS[self.format].rows == "ratings"

    @property
    def has_dialogues(self) -> bool:
        """Whether the sides of a pair are texts with Human: and Assistant: in them."""
        return self.format == HH_DIALOGUES.name

    @property
    def read_columns(self) -> list[str]:
        """Columns with what the rows hold."""
        return list(dict.fromkeys(name for role, name in self.columns.items() if role not in TURN_FIELDS))

    @property
    def marks_completion(self) -> bool:
        """Whether turns of a completion carry a mark, because their place alone does not show them."""
        format_ = FORMATS[self.format]
        return format_.rows != "answers" or (bool(self.turn_columns) and bool(format_.may_hold_turns))

    @property
    def open_arguments(self) -> dict[str, Any]:
        """How the files are opened."""
        # Lines end at line feeds alone, so other line ends inside a text do no harm; a table has its own rules.
        newline = "" if self.kind == "delimited" else "\n"
        # What cannot be decoded is in rows that are left out.
        return {"encoding": self.encoding, **({"errors": "replace"} if self.left_out else {}), "newline": newline}

    @property
    def loader_arguments(self) -> dict[str, Any]:
        """Arguments of `load_dataset` for the files."""
        builders = {"delimited": "csv", "parquet": "parquet", "lines": "text", "paragraphs": "text"}
        options = {"delimited": {"sep": self.delimiter}, "paragraphs": {"sample_by": "paragraph"}}.get(self.kind, {})
        encoding = {"encoding": self.encoding} if self.encoding.startswith("utf-16") else {}
        return {"path": builders.get(self.kind, "json"), **encoding, **options}


class RunRows(NamedTuple):
    """The rows of a run, with which a script checks that it prepares the same."""

    fingerprint: str | None = None  # of the rows that it used
    sequences: tuple[int, int] | None = None  # to train on, held out; None if the run did not get that far
    tokens: tuple[int, int] = (0, 0)  # trained, masked
