"""A row as its file holds it, before anybody asks what it means; and how JSON becomes one."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from json import JSONDecoder
from typing import Any, NamedTuple

from engine.data.problems import ProblemKind, RowProblemError, shortened
from engine.data.turn_lists import conversation_column

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
    raw: bytes | str = b""  # how it stands in the file; for sources without text, empty
    offset: int = 0
    kind: ProblemKind | None = None
    problem: str = ""

    @property
    def size_bytes(self) -> int:
        """About what it holds in memory; sources without text have it counted."""
        return len(self.raw) if self.raw else _text_length(self.value)

    def sample(self, limit: int = 120) -> str:
        """How the row begins, on one line."""
        if not self.raw and self.value is not None:
            return shortened(json.dumps(self.value, ensure_ascii=False, default=str)[: limit * 4], limit)
        raw = self.raw[: limit * 4]
        return shortened(raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw, limit)


def _text_length(value: Any) -> int:
    length = 0
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str | bytes):
            length += len(item)
        elif isinstance(item, Mapping):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            waiting.extend(item)
    return length


def bad_record(position: Position, raw: bytes, kind: ProblemKind, problem: str) -> Record:
    """A row that could not be read."""
    return Record(position.row, position.line, None, raw[:1000], position.offset, kind, problem)


def json_record(position: Position, raw: bytes) -> Record:
    """Read one JSON value as a row, a list of turns as one with a column of that; never raises."""
    try:
        value = parse_json(raw)
    except RowProblemError as problem:
        return bad_record(position, raw, problem.kind, problem.problem)
    column = conversation_column(value)
    if column is not None:
        value = {column: value}
    if not isinstance(value, dict):
        return bad_record(
            position, raw, "not_an_object", f"the row is {describe_kind(value)}, not an object with columns"
        )
    return Record(position.row, position.line, value, raw, position.offset)


def parse_json(raw: bytes) -> Any:
    """Read JSON as strictly as data deserves: a key given twice is a mistake, not a choice.

    Raises:
        RowProblemError: With the reason, in words.
    """
    if len(raw) > MAX_ROW_BYTES:
        raise RowProblemError("too_long", too_long(len(raw)))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowProblemError(
            "not_utf8", f"not UTF-8: byte 0x{raw[error.start]:02X} at position {error.start + 1}"
        ) from error
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise RowProblemError("not_json", f"not valid JSON: {_why(error)}") from error
    except RecursionError as error:
        raise RowProblemError("too_deep", "it is nested too deeply") from error
    except ValueError as error:  # Python refuses to read integers of more than 4,300 digits
        raise RowProblemError("bad_number", "it holds a number with thousands of digits") from error


def too_long(size_bytes: int) -> str:
    """Why a row of that size is not read."""
    return f"the row is {size_bytes / 1e6:,.0f} MB long; {MAX_ROW_BYTES >> 20} MiB is the most"


def describe_kind(value: Any) -> str:
    """What a value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return "not a number" if math.isnan(value) else "an infinite number"
    if isinstance(value, int | float):
        return f"the number {shortened(str(value)[:40], 20)}"
    if isinstance(value, list | tuple):
        return "a list"
    return "an object" if isinstance(value, Mapping) else "text" if isinstance(value, str) else type(value).__name__


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise RowProblemError("duplicate_key", f"the key {shortened(twice, 30)!r} is given twice")
    return value


_DECODER = JSONDecoder(object_pairs_hook=_without_duplicates)

_REASONS = (
    ("Unterminated string", "it ends inside a string"),
    ("Expecting value", "a value is missing or misspelt"),
    ("Expecting property name", "a key in double quotes is missing"),
    ("Expecting ':'", "a colon is missing"),
    ("Expecting ','", "a comma or a closing bracket is missing"),
    ("Invalid control character", "a control character stands inside a string"),
    ("Invalid \\", "a backslash stands before the wrong character"),
    ("Extra data", "there is more after its end"),
    ("Illegal trailing comma", "a comma stands before the closing bracket"),
)


def _why(error: json.JSONDecodeError) -> str:
    reason = next((words for start, words in _REASONS if error.msg.startswith(start)), error.msg.lower())
    if error.pos >= len(error.doc.rstrip()) and not reason.startswith("it ends"):
        return "it ends too early"
    return f"{reason} (character {error.pos + 1:,})"
