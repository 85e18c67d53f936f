"""Rows of a CSV or TSV file: detects the delimiter, and handles multi-line cells and missing quotes."""

import contextlib
import csv
import itertools
from collections import deque
from collections.abc import Container, Iterator

from loratory.engine.data.files.access import shown_name
from loratory.engine.data.files.base import EVERY_ROW, TextReader, TextStart, require_unique
from loratory.engine.data.files.text_stream import Line, TextStream, read_lines
from loratory.engine.data.records import MAX_ROW_BYTES, Position, Record, RowProblemError, SourceForm
from loratory.engine.errors import DatasetError

_DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
_NEVER_CLOSED = "a quotation mark opens here and is never closed"
_NOT_CLOSED = "unexpected end of data"  # the message of Python's reader
_MAX_LINES_OF_A_ROW = 5000  # a longer quoted cell has lost its closing quote


class DelimitedReader(TextReader):
    """Splits a CSV file into rows, by the delimiter and the header that it finds.

    Raises:
        DatasetError: If the header is empty, or names a column twice.
    """

    label = "CSV"
    endings = (".csv", ".tab", ".tsv")

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream
        csv.field_size_limit(MAX_ROW_BYTES)
        self.delimiter = _sniff_delimiter(stream.head().decode("utf-8", "replace"))
        self.form = SourceForm(
            "delimited", f"CSV, {_DELIMITERS[self.delimiter]} between cells", delimiter=self.delimiter
        )
        self.columns = self._read_header()

    @classmethod
    def recognize(cls, start: TextStart) -> "DelimitedReader | None":
        try:
            reader = cls(start.stream)
        except DatasetError:
            if start.kind_by_name is cls:
                raise
            return None
        if start.kind_by_name is cls:
            return reader
        rows = list(itertools.islice(reader.read(Position(0, 1, 0)), 5))
        width = len(reader.columns)
        return reader if width > 1 and rows and all(len(row.value or ()) == width for row in rows) else None

    def read(self, start: Position, _rows: Container[int] = EVERY_ROW, /) -> Iterator[Record]:
        """Yield rows from `start` on; `Position(0, 1, 0)` begins after the header."""
        lines = _Lines(read_lines(self._stream, start.offset, start.line, blank=True))
        if start.offset == 0 and (header := lines.next()) is not None:
            self._row(header, lines, -1)
        row = start.row
        while (first := lines.next()) is not None:
            yield self._row(first, lines, row)
            row += 1

    def _read_header(self) -> tuple[str, ...]:
        lines = _Lines(read_lines(self._stream, blank=True))
        first = lines.next()
        cells: list[str] = []
        if first is not None:
            with contextlib.suppress(RowProblemError):
                _, cells = self._cells(first, lines)
        columns = tuple(cell.strip() or f"column {number}" for number, cell in enumerate(cells, start=1))
        name = shown_name(self._stream.path.name)
        if not any(cell.strip() for cell in cells):
            raise DatasetError(f"The first line of {name} names no columns.", "Put the columns' names there.")
        require_unique(columns, name)
        return columns

    def _row(self, first: Line, lines: "_Lines", row: int) -> Record:
        position = Position(row, first.number, first.offset)
        try:
            raw, cells = self._cells(first, lines)
        except RowProblemError as problem:
            return Record.bad(position, first.data, problem)
        if len(cells) > len(self.columns):
            reason = f"it has {len(cells)} cells, and the header names {len(self.columns)} columns"
            return Record.bad(position, raw, RowProblemError("csv", reason))
        # Missing cells at the end are missing columns, which are reported if they are needed.
        return Record(row, first.number, dict(zip(self.columns, cells, strict=False)), raw, first.offset)

    def _cells(self, first: Line, lines: "_Lines") -> tuple[bytes, list[str]]:
        """Return a row and its cells, over as many lines as its quotes stay open."""
        if first.size_bytes > len(first.data):
            raise RowProblemError.too_long(first.size_bytes)
        row_lines = [first]
        try:
            cells = next(csv.reader(_texts_of(row_lines, lines), delimiter=self.delimiter, strict=True))
            # In a multi-line cell, a closing quote must end a cell; otherwise another row's quote has closed it.
            if len(row_lines) > 1 and self.columns and len(cells) != len(self.columns):
                raise csv.Error(_NOT_CLOSED)
        except UnicodeDecodeError as error:
            lines.push_back(row_lines[1:])
            before = sum(len(line.data) + 1 for line in row_lines[:-1])
            raise RowProblemError.not_utf8(error, before) from error
        except csv.Error as error:
            lines.push_back(row_lines[1:])  # each line is tried on its own
            if len(row_lines) == 1 and _NOT_CLOSED not in str(error):
                return first.data, self._cells_of_an_odd_line(first)
            raise RowProblemError("csv", _NEVER_CLOSED) from error
        return b"\n".join(line.data for line in row_lines), cells

    def _cells_of_an_odd_line(self, line: Line) -> list[str]:
        """Return the cells of a line with a misplaced quotation mark, which is read as an ordinary character."""
        try:
            return next(csv.reader([_text_of(line)], delimiter=self.delimiter))
        except csv.Error as error:
            raise RowProblemError("csv", f"not readable as CSV: {error}") from error


def _texts_of(row_lines: list[Line], lines: "_Lines") -> Iterator[str]:
    """Yield the lines of a row, as many as the reader asks for, and add them to `row_lines`."""
    yield _text_of(row_lines[0])
    size = row_lines[0].size_bytes
    while len(row_lines) < _MAX_LINES_OF_A_ROW and (line := lines.next_with_blanks()) is not None:
        row_lines.append(line)
        size += line.size_bytes + 1
        if size > MAX_ROW_BYTES:
            return
        yield _text_of(line)


def _text_of(line: Line) -> str:
    return line.data.decode("utf-8") + "\n"


class _Lines:
    """A stream of lines that can be pushed back."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._waiting: deque[Line] = deque()

    def next(self) -> Line | None:
        """Return the next line that is not blank."""
        while (line := self.next_with_blanks()) is not None:
            if line.data and not line.data.isspace():
                return line
        return None

    def next_with_blanks(self) -> Line | None:
        """Return the next line inside a quoted cell, where blank ones count."""
        return self._waiting.popleft() if self._waiting else next(self._lines, None)

    def push_back(self, lines: list[Line]) -> None:
        self._waiting.extendleft(reversed(lines))


def _sniff_delimiter(head: str) -> str:
    """Return the delimiter that splits the first lines into equally many cells, at least two; else a comma."""
    lines = [line.replace("\r", " ") for line in head.split("\n") if line.strip()][:20]
    best, best_score = ",", (0, 0)
    for delimiter in _DELIMITERS:
        try:
            rows = [row for row in csv.reader([f"{line}\n" for line in lines], delimiter=delimiter) if row]
        except csv.Error:
            continue
        width = len(rows[0]) if rows else 0
        score = (width if width > 1 else 0, sum(len(row) == width for row in rows))
        if score > best_score:
            best, best_score = delimiter, score
    return best
