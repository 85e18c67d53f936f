"""Rows of JSON files: one a line, in an array, or as objects over several lines; streamed."""

import codecs
import itertools
import json
import re
from collections import Counter
from collections.abc import Container, Iterator
from json import JSONDecoder
from typing import Any

from loratory.engine.data.files.base import EVERY_ROW, TextReader, TextStart
from loratory.engine.data.files.text_stream import TextStream, read_lines
from loratory.engine.data.formats.turns import conversation_column
from loratory.engine.data.records import (
    MAX_ROW_BYTES,
    Position,
    Record,
    RowProblemError,
    SourceForm,
    describe_kind,
    one_line,
)


def json_record(position: Position, raw: bytes) -> Record:
    """Parse one JSON value as a row, and a list of turns as a row with one column; never raise."""
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
        RowProblemError: With the reason.
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
        raise RowProblemError("duplicate_key", f"the key {one_line(twice, 30)!r} is given twice")
    return value


_DECODER = JSONDecoder(object_pairs_hook=_without_duplicates)


def _why(error: json.JSONDecodeError) -> str:
    if error.pos >= len(error.doc.rstrip()):
        return "it ends too early"
    return f"{error.msg.lower()} (character {error.pos + 1:,})"


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
        is_json_name = start.kind_by_name in (JsonValuesReader, cls)
        if first == b"[":
            has_lists = (is_json_name or start.kind_by_name is None) and _has_list_lines(start)
            return cls(start.stream, lists=True) if has_lists else None
        if first == b"{":
            return cls(start.stream) if start.kind_by_name is cls or _ends_on_first_line(start) else None
        return cls(start.stream) if is_json_name else None

    def read(self, start: Position, rows: Container[int] = EVERY_ROW, /) -> Iterator[Record]:
        for row, line in enumerate(read_lines(self._stream, start.offset, start.line), start.row):
            position = Position(row, line.number, line.offset)
            if row not in rows:
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
    return start.kind_by_name is JsonLinesReader and json_record(Position(0, 1, 0), first).value is not None


# Accepts numbers of any length; problems of a row are reported when it is parsed.
_VALUES = JSONDecoder(parse_int=str, parse_float=str)
_SPACE, _BETWEEN_ROWS = re.compile(r"[ \t\r\n]*"), re.compile(r"[ \t\r\n,]*")
_OPENING = re.compile(r'\{\s*"[^"\n]{0,100}"')  # of a row: its first key
_SAMPLE_CHARACTERS = 200  # of a row that is skipped: more than its sample needs
_SPLIT_TOKEN_CHARACTERS = 16  # a token that the end of a chunk cuts is not longer, unless it is a string


class JsonValuesReader(TextReader):
    """Splits a stream of JSON, with rows in one array or one after another, with one row in memory at a time.

    A malformed row ends where another one seems to begin: with the same key.
    """

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
        is_array = first == b"[" and start.kind_by_name in (cls, JsonLinesReader, None)
        return cls(start.stream, is_array) if is_array or first == b"{" else None

    def read(self, start: Position, _rows: Container[int] = EVERY_ROW, /) -> Iterator[Record]:
        text = _JsonText(self._stream.chunks(start.offset), start)
        if self._array and start.offset == 0:
            text.skip(_SPACE)
            text.advance(text.at + 1)
        for row in itertools.count(start.row):
            text.skip(_BETWEEN_ROWS)
            if text.next_character() in (("", "]") if self._array else ("",)):
                break
            yield text.take_row(row)
        if not self._array:
            return
        if not text.next_character():
            self.notes = ["The file ends without the bracket that closes its array; it may be cut off."]
            return
        text.advance(text.at + 1)
        text.skip(_SPACE)
        if text.next_character():
            self.notes = ["There is more after the end of the array, which is not read."]


class _JsonText:
    """The text of a stream from the current row on; bytes that are not UTF-8 are surrogates in it."""

    def __init__(self, chunks: Iterator[bytes], start: Position) -> None:
        self._chunks = chunks
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text = ""
        self._is_whole = False  # the stream has ended
        self._line, self._offset = start.line, start.offset  # of `at`
        self.at = 0  # in `_text`

    def next_character(self) -> str:
        """Return the character that follows; empty at the end."""
        return self._text[self.at : self.at + 1]

    def skip(self, pattern: re.Pattern[str]) -> None:
        """Skip the text that matches."""
        while True:
            match = pattern.match(self._text, self.at)
            self.advance(match.end() if match is not None else self.at)
            if self.at < len(self._text) or not self._extend():
                return

    def advance(self, end: int) -> None:
        """Move on to `end`."""
        skipped_text = self._text[self.at : end]
        self._line += skipped_text.count("\n")
        self._offset += len(_as_bytes(skipped_text))
        self.at = end

    def take_row(self, row: int) -> Record:
        """Return the row that begins here, and move behind it."""
        position = Position(row, self._line, self._offset)
        end = self._value_end()
        if end is not None:
            raw = self._text[self.at : end]
            self.advance(end)
            return json_record(position, _as_bytes(raw))
        raw = self._pass_malformed_row()
        size = self._offset - position.offset
        if size > MAX_ROW_BYTES:
            why = ", or a bracket or quotation mark is missing in it"
            return Record.bad(position, _as_bytes(raw), RowProblemError.too_long(size, why))
        return json_record(position, _as_bytes(raw).rstrip(b" \t\r\n,"))

    def _value_end(self) -> int | None:
        """Return where the value ends that begins here; None if it is malformed, or longer than a row may be."""
        while True:
            try:
                _, end = _VALUES.raw_decode(self._text, self.at)
                if end < len(self._text) or self._is_whole:
                    return end
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or (
                    error.pos >= len(self._text) - _SPLIT_TOKEN_CHARACTERS
                )
                if self._is_whole or not is_cut:
                    return None
            except RecursionError:
                return None
            if len(self._text) - self.at > MAX_ROW_BYTES:
                return None
            self._extend()

    def _pass_malformed_row(self) -> str:
        """Move to where another row seems to begin; return the row, or how it begins where it is too long."""
        opening = _OPENING.match(self._text, self.at)
        begins = re.escape(opening.group()) if opening is not None else r"\{"
        following = re.compile(rf"(?<=[\s,}}])(?={begins})")
        raw = ""
        while (next_row := following.search(self._text, self.at + 1)) is None and not self._is_whole:
            if len(self._text) - self.at > MAX_ROW_BYTES:
                raw = raw or self._text[self.at : self.at + _SAMPLE_CHARACTERS]
                self.advance(len(self._text) - _SAMPLE_CHARACTERS)
            self._extend()
        next_row = next_row or re.compile(r"(?=\]\s*\Z)").search(self._text, self.at + 1)
        end = next_row.end() if next_row is not None else len(self._text)
        raw = raw or self._text[self.at : end]
        self.advance(end)
        return raw

    def _extend(self) -> bool:
        chunk = next(self._chunks, None)
        self._is_whole = chunk is None
        self._text = self._text[self.at :] + self._decoder.decode(chunk or b"", self._is_whole)
        self.at = 0
        return not self._is_whole


def _as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
