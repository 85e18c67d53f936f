"""Rows of JSON files: one a line, in an array, or as objects over several lines; streamed."""

import json
import re
from collections import Counter
from collections.abc import Container, Iterator
from json import JSONDecoder
from typing import Any

from engine.data.files.base import EVERY_ROW, TextReader, TextStart
from engine.data.files.text_stream import TextStream, read_lines
from engine.data.formats.turns import conversation_column
from engine.data.records import MAX_ROW_BYTES, Position, Record, RowProblemError, SourceForm, describe_kind, shortened
from engine.errors import DatasetError


def json_record(position: Position, raw: bytes) -> Record:
    """Parse one JSON value as a row, and a list of turns as a row with one column; never raises."""
    try:
        value = parse_json(raw)
        column = conversation_column(value)
        if column is not None:
            value = {column: value}
        if not isinstance(value, dict):
            raise RowProblemError("not_an_object", f"the row is {describe_kind(value)}, not an object with columns")
    except RowProblemError as problem:
        return Record.bad(position, raw, problem)
    return Record(position.row, position.line, value, raw, position.offset)


def parse_json(raw: bytes) -> Any:
    """Parse JSON strictly: a duplicate key is an error.

    Raises:
        RowProblemError: With the reason, in words.
    """
    if len(raw) > MAX_ROW_BYTES:
        raise RowProblemError.too_long(len(raw))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowProblemError.not_utf8(error) from error
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise RowProblemError("not_json", f"not valid JSON: {_why(error)}") from error
    except RecursionError as error:
        raise RowProblemError("too_deep", "it is nested too deeply") from error
    except ValueError as error:  # Python refuses to read integers of more than 4,300 digits
        raise RowProblemError("bad_number", "it holds a number with thousands of digits") from error


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
    ("Invalid control character", "a control character is inside a string"),
    ("Invalid \\", "a backslash precedes the wrong character"),
    ("Extra data", "there is more after its end"),
    ("Illegal trailing comma", "a comma precedes the closing bracket"),
)


def _why(error: json.JSONDecodeError) -> str:
    reason = next((words for start, words in _REASONS if error.msg.startswith(start)), error.msg.lower())
    if error.pos >= len(error.doc.rstrip()) and not reason.startswith("it ends"):
        return "it ends too early"
    return f"{reason} (character {error.pos + 1:,})"


class JsonLinesReader(TextReader):
    """Splits a JSONL file into rows; `lists` if its lines are lists of turns."""

    label = "JSON Lines"
    endings = (".jsonl", ".jsonlines", ".ndjson")

    def __init__(self, stream: TextStream, *, lists: bool = False) -> None:
        self._stream = stream
        self.form = SourceForm("json_lines", "lists of turns, one on each line" if lists else "JSON Lines")

    @classmethod
    def recognize(cls, start: TextStart) -> "JsonLinesReader | None":
        first = start.head[:1]
        is_named = start.named in (JsonValuesReader, cls)
        if first == b"[":
            has_lists = (is_named or start.named is None) and _has_list_lines(start)
            return cls(start.stream, lists=True) if has_lists else None
        if first == b"{":
            return cls(start.stream) if start.named is cls or _ends_on_first_line(start) else None
        return cls(start.stream) if is_named else None

    def read(self, start: Position, wanted: Container[int] = EVERY_ROW, /) -> Iterator[Record]:
        for row, line in enumerate(read_lines(self._stream, start.offset, start.line), start.row):
            position = Position(row, line.number, line.offset)
            if row not in wanted:
                yield Record(row, line.number, None, offset=line.offset)
            elif line.size_bytes > len(line.data):
                yield Record.bad(position, line.data, RowProblemError.too_long(line.size_bytes))
            else:
                yield json_record(position, line.data)


def _ends_on_first_line(start: TextStart) -> bool:
    line = start.head.split(b"\n", 1)[0].strip()
    return line.endswith(b"}") or len(line) == len(start.head) == len(start.stream.head())


def _has_list_lines(start: TextStart) -> bool:
    """Return whether a file that begins with a bracket has a list on each line, and not one array over all of them."""
    head = start.head
    if b"\n" not in head:
        head = start.stream.head(MAX_ROW_BYTES + 1).lstrip()
        if b"\n" not in head and len(head) > MAX_ROW_BYTES:
            return False
    first, _, rest = head.partition(b"\n")
    if not first.rstrip().endswith(b"]"):
        return False
    if rest.strip():
        return rest.lstrip()[:1] in (b"[", b"{")
    return start.named is JsonLinesReader and json_record(Position(0, 1, 0), first).value is not None


# A whole string at once, so brackets inside it do not count. JSON strings have no line feeds, so an unclosed one
# ends with its line, and the rows after it are found again. A string may also continue in the next chunk.
_TOKEN = re.compile(rb'"[^"\\\n]*(?:\\[^\n][^"\\\n]*)*(?:"|\\?\Z|(?=\\?\n))|[{}\[\],]')
_STRING_REST = re.compile(rb'[^"\\\n]*(?:\\[^\n][^"\\\n]*)*(?:"|(?=\\?\n))')
_QUOTE, _COMMA, _OPEN_OBJECT, _OPEN_ARRAY, _CLOSE_OBJECT, _CLOSE_ARRAY = b'",{[}]'
_PARTNER = {_CLOSE_OBJECT: _OPEN_OBJECT, _CLOSE_ARRAY: _OPEN_ARRAY}
_SPACE = b" \t\r\n"
_MAX_DEPTH = 1_000_000


class JsonValuesReader(TextReader):
    """Splits a stream of JSON, with rows in one array or one after another, with one row in memory at a time."""

    label = "JSON"
    endings = (".json",)

    def __init__(self, stream: TextStream, array: bool) -> None:
        self._stream = stream
        self._array = array
        self.notes = []
        form = ("json_array", "JSON array") if array else ("json_objects", "JSON objects over several lines")
        self.form = SourceForm(*form)

    @classmethod
    def recognize(cls, start: TextStart) -> "JsonValuesReader | None":
        first = start.head[:1]
        is_array = first == b"[" and start.named in (cls, JsonLinesReader, None)
        return cls(start.stream, is_array) if is_array or first == b"{" else None

    def read(self, start: Position, _wanted: Container[int] = EVERY_ROW, /) -> Iterator[Record]:
        scanner = _Scanner(start, self._array)
        chunks = self._stream.chunks(start.offset)
        for chunk in chunks:
            yield from scanner.feed(chunk)
            if scanner.after_end is not None:
                break
        yield from scanner.end()
        if not self._array:
            return
        if scanner.after_end is None:
            self.notes = ["The file ends without the bracket that closes its array; it may be cut off."]
        elif scanner.after_end.strip(_SPACE) or any(chunk.strip(_SPACE) for chunk in chunks):
            self.notes = ["There is more after the end of the array, which is not read."]


class _Scanner:
    """The open brackets, and the bytes of the current row."""

    def __init__(self, start: Position, array: bool) -> None:
        self._row, self._line, self._offset = start  # of the beginning of `_row_bytes`
        self._base = 1 if array else 0  # open brackets between rows
        self._open = bytearray(b"[" if array and start.offset > 0 else b"")
        self._open_counts = {bracket: self._open.count(bracket) for bracket in (_OPEN_OBJECT, _OPEN_ARRAY)}
        self._row_bytes = b""  # the row under way, from its first byte on
        self._dropped_bytes = self._dropped_lines = 0  # bytes and line ends that were dropped because it is too long
        self._in_string = False
        self._ends_in_escape = False  # the chunk ended with a backslash inside a string
        self.after_end: bytes | None = None  # what follows the array in the chunk that closed it

    def feed(self, chunk: bytes) -> Iterator[Record]:
        """Yield rows that end in this chunk."""
        item = 0  # in `chunk`: where the row under way, or its continuation, begins
        for token in _TOKEN.finditer(chunk, self._skip_string(chunk) if self._in_string else 0):
            start, end = token.span()
            mark = chunk[start]
            if mark == _QUOTE:
                if end == len(chunk):
                    string = token.group()
                    is_closed = len(string) > 1 and string.endswith(b'"') and not _ends_escaped(string[:-1])
                    self._in_string = not is_closed
                    self._ends_in_escape = self._in_string and _ends_escaped(string)
            elif mark == _COMMA:
                if len(self._open) == self._base:
                    yield from self._finish(chunk[item:start], b",")
                    item = end
            elif mark in (_OPEN_OBJECT, _OPEN_ARRAY):
                if self._base and not self._open:
                    self._take(chunk[item:end])
                    self._forget()
                    item = end
                if len(self._open) >= _MAX_DEPTH:
                    raise DatasetError(
                        f"Line {self._line:,} opens more than {_MAX_DEPTH:,} brackets inside one another.",
                        "Choose another file.",
                    )
                self._open.append(mark)
                self._open_counts[mark] += 1
            elif self._close(mark):
                if self._base and not self._open:
                    yield from self._finish(chunk[item:start], b"")
                    self.after_end = chunk[end:]
                    return
                if not self._base and not self._open:
                    yield from self._finish(chunk[item:end], b"")
                    item = end
        self._take(chunk[item:])

    def end(self) -> Iterator[Record]:
        """Yield what is left when the file ends."""
        if self.after_end is None:
            yield from self._finish(b"", b"")

    def _close(self, mark: int) -> bool:
        """Close the bracket of `mark`, and any unclosed ones inside it."""
        opener = _PARTNER[mark]
        inside_row = self._open_counts[opener] - (self._base if opener == _OPEN_ARRAY else 0)
        if len(self._open) > self._base and not inside_row:
            return False  # a stray bracket; its row will not be valid
        partner = self._open.rfind(opener)  # found near the end, or never looked for
        if partner < 0:
            return False
        for bracket in self._open[partner:]:
            self._open_counts[bracket] -= 1
        del self._open[partner:]
        return True

    def _skip_string(self, chunk: bytes) -> int:
        start = 1 if self._ends_in_escape else 0
        match = _STRING_REST.match(chunk, start)
        if match is None:
            self._ends_in_escape = _ends_escaped(chunk[start:])
            return len(chunk)
        self._in_string = self._ends_in_escape = False
        return match.end()

    def _take(self, piece: bytes) -> None:
        if not self._row_bytes and not self._dropped_bytes:
            # Leading space belongs to no row; moving past it keeps line and offset those of the row itself.
            bare = piece.lstrip(_SPACE)
            space = piece[: len(piece) - len(bare)]
            self._line += space.count(b"\n")
            self._offset += len(space)
            piece = bare
        room = MAX_ROW_BYTES - len(self._row_bytes)
        self._row_bytes += piece[:room]
        if len(piece) > room:
            self._dropped_bytes += len(piece) - room
            self._dropped_lines += piece.count(b"\n", room)

    def _finish(self, piece: bytes, separator: bytes) -> Iterator[Record]:
        self._take(piece)
        raw = self._row_bytes.rstrip(_SPACE)
        if raw or self._dropped_bytes:
            position = Position(self._row, self._line, self._offset)
            if self._dropped_bytes:
                why = ", or a bracket or quotation mark is missing in it"
                yield Record.bad(position, raw, RowProblemError.too_long(len(raw) + self._dropped_bytes, why))
            else:
                yield json_record(position, raw)
            self._row += 1
        self._row_bytes += separator
        self._forget()

    def _forget(self) -> None:
        self._line += self._row_bytes.count(b"\n") + self._dropped_lines
        self._offset += len(self._row_bytes) + self._dropped_bytes
        self._row_bytes, self._dropped_bytes, self._dropped_lines = b"", 0, 0


def _ends_escaped(text: bytes) -> bool:
    return (len(text) - len(text.rstrip(b"\\"))) % 2 == 1
