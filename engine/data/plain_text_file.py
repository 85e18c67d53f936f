"""Rows of a plain text file: its paragraphs where blank lines part them, else its lines."""

from collections.abc import Iterator

from engine.data.json_lines_file import Line, read_lines
from engine.data.records import MAX_ROW_BYTES, Position, Record, bad_record, too_long
from engine.data.text_stream import TextStream

TEXT_COLUMN = "text"


class PlainTextReader:
    """A text file.

    Args:
        stream: The file.
    """

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream
        lines = stream.head().rstrip().split(b"\n")
        self.by_paragraph = any(not line.strip() for line in lines)

    def read(self, start: Position) -> Iterator[Record]:
        """Rows from `start` on."""
        row = start.row
        paragraph: list[Line] = []
        for line in read_lines(self._stream, start.offset, start.line, blank=self.by_paragraph):
            if line.data and not line.data.isspace():
                paragraph.append(line)
                if self.by_paragraph and sum(line.size_bytes for line in paragraph[-2:]) <= MAX_ROW_BYTES:
                    continue
            if paragraph:
                yield _record(row, paragraph)
                paragraph = []
                row += 1
        if paragraph:
            yield _record(row, paragraph)


def _record(row: int, lines: list[Line]) -> Record:
    position = Position(row, lines[0].number, lines[0].offset)
    size = sum(line.size_bytes + 1 for line in lines)
    raw = b"\n".join(line.data for line in lines)
    if size > MAX_ROW_BYTES:
        return bad_record(position, raw, "too_long", too_long(size))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"not UTF-8: byte 0x{raw[error.start]:02X} at position {error.start + 1}"
        return bad_record(position, raw, "not_utf8", problem)
    return Record(row, position.line, {TEXT_COLUMN: text.replace("\r\n", "\n").rstrip("\r")}, raw, position.offset)
