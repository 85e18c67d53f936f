"""Rows of a plain text file: its paragraphs if it has blank lines, else its lines."""

from collections.abc import Container, Iterator

from engine.data.files.base import EVERY_ROW, TextReader, TextStart
from engine.data.files.text_stream import Line, TextStream, read_lines
from engine.data.records import MAX_ROW_BYTES, Position, Record, RowProblemError, SourceForm

_TEXT_COLUMN = "text"


class PlainTextReader(TextReader):
    """Splits a text file into rows."""

    label = "plain text"
    endings = (".txt", ".text", ".md")
    trusts_ending = True
    columns = (_TEXT_COLUMN,)

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream
        lines = stream.head().rstrip().split(b"\n")
        self._by_paragraph = any(not line.strip() for line in lines)
        unit = "paragraph" if self._by_paragraph else "line"
        self.form = SourceForm(f"{unit}s", f"plain text, a row for each {unit}")

    @classmethod
    def recognize(cls, start: TextStart) -> "PlainTextReader":
        return cls(start.stream)

    def read(self, start: Position, _wanted: Container[int] = EVERY_ROW, /) -> Iterator[Record]:
        row = start.row
        lines: list[Line] = []
        size_bytes = 0
        for line in read_lines(self._stream, start.offset, start.line, blank=self._by_paragraph):
            if line.data and not line.data.isspace():
                if size_bytes <= MAX_ROW_BYTES:  # the beginning of a row that is too long is enough
                    lines.append(line)
                size_bytes += line.size_bytes + 1
                if self._by_paragraph:
                    continue
            if lines:
                yield _record(row, lines, size_bytes)
                lines, size_bytes = [], 0
                row += 1
        if lines:
            yield _record(row, lines, size_bytes)


def _record(row: int, lines: list[Line], size_bytes: int) -> Record:
    position = Position(row, lines[0].number, lines[0].offset)
    raw = b"\n".join(line.data for line in lines)
    if size_bytes - 1 > MAX_ROW_BYTES:
        return Record.bad(position, raw, RowProblemError.too_long(size_bytes))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return Record.bad(position, raw, RowProblemError.not_utf8(error))
    return Record(row, position.line, {_TEXT_COLUMN: text.replace("\r\n", "\n").rstrip("\r")}, raw, position.offset)
