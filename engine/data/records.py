"""Rows of a source, reasons to leave them out, and the interface of sources."""

import hashlib
import json
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

_OfFormat = Literal[
    "not_json", "not_utf8", "not_an_object", "too_long", "too_deep", "duplicate_key", "bad_text", "bad_number", "csv"
]  # fmt: skip
_OfValues = Literal["weight", "missing_column", "not_text", "empty", "tools", "label"]
_OfTurns = Literal["unknown_role", "no_assistant_turn", "unanswered", "order"]
_OfTraining = Literal["nothing_to_learn", "template", "template_leaves_out", "special_token", "cut_away"]
_OfPairs = Literal["pair", "equal_answers", "other_prompt", "white_space"]
ProblemKind = Literal[_OfFormat, _OfValues, _OfTurns, _OfTraining, _OfPairs, "image"]


class RowProblemError(Exception):
    """A row cannot be trained on; `problem` is the reason, with the value."""

    def __init__(self, kind: ProblemKind, problem: str) -> None:
        super().__init__(problem)
        self.kind: ProblemKind = kind
        self.problem = problem

    @classmethod
    def too_long(cls, size_bytes: int, why: str = "") -> Self:
        """Return why a row of this size is not read."""
        return cls(
            "too_long", f"the row is {size_bytes / 1e6:,.0f} MB long; {MAX_ROW_BYTES >> 20} MiB is the most{why}"
        )

    @classmethod
    def not_utf8(cls, error: UnicodeDecodeError, before: int = 0) -> Self:
        """Return why text is not read whose decoding failed, `before` bytes after the beginning of its row."""
        position = before + error.start + 1
        return cls("not_utf8", f"not UTF-8: byte 0x{error.object[error.start]:02X} at position {position}")


def one_line(text: str, limit: int = 60) -> str:
    """Return the beginning of a text, safe to show in one line."""
    piece = text[: limit * 2]
    clean = "".join(letter if letter.isprintable() else " " for letter in piece).strip()
    return clean if len(clean) <= limit and len(text) <= limit * 2 else f"{clean[: limit - 1]}…"


class Blob(bytes):
    """Bytes in a cell, such as those of an image; as text, the name that the media store has for them."""

    def __repr__(self) -> str:
        return f"{MEDIA_PREFIX}{hashlib.sha256(self).hexdigest()}"

    __str__ = __repr__


MEDIA_PREFIX = "media:"

# Far beyond any max_length (some two million tokens), and small enough that a few copies of it do no harm.
MAX_ROW_BYTES = 8 << 20


class Position(NamedTuple):
    """Where a row begins."""

    row: int  # from 0
    line: int  # from 1
    offset: int  # in the UTF-8 stream


class Record(NamedTuple):
    """One row: its columns, or why it could not be read."""

    row: int
    line: int | None  # None where the source has no lines
    value: Mapping[str, Any] | None
    raw: bytes = b""  # as it is in the file; empty for sources without text
    offset: int = 0
    kind: ProblemKind | None = None
    problem: str = ""
    is_held_out: bool = False  # by the set that it is read from

    @classmethod
    def bad(cls, position: Position, raw: bytes, problem: RowProblemError) -> Self:
        """Return a row that could not be read."""
        return cls(position.row, position.line, None, raw[:1000], position.offset, problem.kind, problem.problem)

    @property
    def size_bytes(self) -> int:
        """About what it holds in memory; sources without text have it counted."""
        return len(self.raw) if self.raw else text_length(self.value, str | bytes)

    def sample(self, limit: int = 120) -> str:
        """Return how the row begins, on one line."""
        if not self.raw and self.value is not None:
            return one_line(json.dumps(self.value, ensure_ascii=False, default=str)[: limit * 4], limit)
        return one_line(self.raw[: limit * 4].decode("utf-8", "replace"), limit)


def text_length(value: Any, kinds: Any = str) -> int:
    """Return the length of all text in a value, or of other kinds as well."""
    length = 0
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, kinds):
            length += len(part)
        elif isinstance(part, Mapping):
            waiting.extend(part.values())
        elif isinstance(part, list | tuple):
            waiting.extend(part)
    return length


def row_label(row: int, line: int | None) -> str:
    """Return where a row is in its source, for people, who count from 1."""
    return f"line {line:,}" if line is not None else f"row {row + 1:,}"


def describe_kind(value: Any) -> str:
    """Return what a value is, for people."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return "not a number" if math.isnan(value) else "an infinite number"
    if isinstance(value, int | float):
        return f"the number {one_line(str(value)[:40], 20)}"
    if isinstance(value, list | tuple):
        return "a list"
    return "an object" if isinstance(value, Mapping) else "text" if isinstance(value, str) else type(value).__name__


def shared_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return how many elements two sequences both begin with."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[:middle] == second[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class SourceForm(NamedTuple):
    """The form of a source; of several files, that of the first."""

    kind: str  # such as "json_lines"; exported scripts have their own code for each
    label: str  # the same for people
    encoding: str = "utf-8"  # of Python's codec; a mark at the beginning is not part of it
    delimiter: str = ""  # between the cells of a table
    is_gzipped: bool = False


class RowSource(ABC):
    """A source of rows, which can be read in order more than once."""

    name: str  # safe to show
    form: SourceForm
    columns: tuple[str, ...] = ()  # where the source itself names them
    read_as: Mapping[str, Any] = {}  # format and mappings, for a configuration that leaves them open

    @property
    def kind(self) -> str:
        """The form for people, such as "JSON Lines, gzip"."""
        encoding = "" if self.form.encoding == "utf-8" else f", {self.form.encoding.upper()}"
        return f"{self.form.label}{encoding}{', gzip' if self.form.is_gzipped else ''}"

    @property
    @abstractmethod
    def notes(self) -> Sequence[str]:
        """Notes about the source as a whole; complete once it has been read to its end."""

    @property
    @abstractmethod
    def size_bytes(self) -> int | None:
        """The size of the file or files."""

    @property
    @abstractmethod
    def bytes_read(self) -> int:
        """The progress of the current read."""

    @property
    @abstractmethod
    def total_rows(self) -> int | None:
        """The number of rows; None until it is known, at the latest when the source has been read."""

    @abstractmethod
    def pick(self, rows: Sequence[int]) -> Iterator[Record | None]:
        """Yield rows with these numbers, which ascend, in one pass; None after each step in between, so other work can run.

        Raises:
            DatasetError: If the source is damaged or too large, or its connection is lost.
        """

    def records(self, first_row: int = 0) -> Iterator[Record | None]:
        """Yield rows from `first_row` on, as `pick` does."""
        return self.pick(range(first_row, sys.maxsize))

    def folder_of(self, row: int) -> Path | None:  # noqa: ARG002 - several sources have several
        """Return the folder of the data file that a row was read from, where its images may be; None where it has none."""
        return None

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash that changes when the content does, as far as size, time and samples show."""


def lookup(rows: Sequence[int]) -> Container[int]:
    """Return the same rows as a container with fast lookup."""
    return rows if isinstance(rows, range) else frozenset(rows)
