"""Rows of a JSONL file, one a line; streamed, whatever stands on a line."""

from collections.abc import Container, Iterator

from engine.data.records import MAX_ROW_BYTES, Position, Record, bad_record, json_record, too_long
from engine.data.text_stream import TextStream


class Line:
    """One line of a file: its bytes up to the bound, and how long it really is."""

    __slots__ = ("data", "number", "offset", "size_bytes")

    def __init__(self, data: bytes, number: int, offset: int, size_bytes: int) -> None:
        self.data = data
        self.number = number  # from 1
        self.offset = offset
        self.size_bytes = size_bytes


def read_lines(stream: TextStream, offset: int = 0, number: int = 1, *, blank: bool = False) -> Iterator[Line]:
    """Lines, split at line feeds alone, so that U+2028 inside a string does no harm; blank ones only where asked for.

    A line beyond MAX_ROW_BYTES is not held in memory; only its beginning comes back, with its true size.
    """
    kept = b""  # beginning of a line that goes on in the next chunk
    beyond = 0  # bytes of that line that were dropped
    for chunk in stream.chunks(offset):
        first, *others = chunk.split(b"\n")
        room = MAX_ROW_BYTES - len(kept)
        kept += first[:room]
        beyond += max(0, len(first) - room)
        if not others:
            continue
        size = len(kept) + beyond
        if blank or (kept and not kept.isspace()):
            yield Line(kept, number, offset, size)
        number += 1
        offset += size + 1
        kept = others.pop()
        beyond = 0
        for data in others:
            if blank or (data and not data.isspace()):
                yield Line(data, number, offset, len(data))
            number += 1
            offset += len(data) + 1
    if kept and not kept.isspace():
        yield Line(kept, number, offset, len(kept) + beyond)


class JsonLinesReader:
    """A JSONL file.

    Args:
        stream: The file.
    """

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream

    def read(self, start: Position) -> Iterator[Record]:
        """Rows from `start` on."""
        return (record for record in self.read_some(start, None) if record is not None)

    def read_some(self, start: Position, wanted: Container[int] | None) -> Iterator[Record | None]:
        """Rows from `start` on, with None in place of those that are not wanted, which are not read."""
        row = start.row
        for line in read_lines(self._stream, start.offset, start.line):
            if wanted is not None and row not in wanted:
                yield None
            elif line.size_bytes > len(line.data):
                position = Position(row, line.number, line.offset)
                yield bad_record(position, line.data, "too_long", too_long(line.size_bytes))
            else:
                yield json_record(Position(row, line.number, line.offset), line.data)
            row += 1

    def skim(self, start: Position) -> Iterator[Position]:
        """Where rows begin, from `start` on, without reading what they say."""
        row = start.row
        for line in read_lines(self._stream, start.offset, start.line):
            yield Position(row, line.number, line.offset)
            row += 1
