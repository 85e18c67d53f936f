"""Base classes of file kinds: binary files with rows, or text that a reader splits into rows; and plain text itself."""

import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from pydantic import BaseModel

from loratory.engine.data.files.access import UnpackedFile, fingerprint_of, shown_name, write_cached
from loratory.engine.data.files.text_stream import Line, TextStream, read_lines
from loratory.engine.data.records import MAX_ROW_BYTES, Position, Record, RowProblemError, RowSource, SourceForm, lookup
from loratory.engine.errors import DatasetError
from loratory.engine.files import read_model

EVERY_ROW = range(sys.maxsize)
_TEXT_COLUMN = "text"  # of plain text


class TextStart(NamedTuple):
    """The start of a text file, which determines its kind."""

    stream: TextStream
    head: bytes  # without leading white space
    kind_by_name: "type[TextReader] | type[BinaryRows] | None"  # the kind that the ending of its name means


class TextReader(ABC):
    """Splits a text file into rows."""

    label: ClassVar[str]  # for people
    endings: ClassVar[tuple[str, ...]]  # of file names
    trusts_ending: ClassVar[bool] = False  # whether they decide, however a file begins
    form: SourceForm
    columns: tuple[str, ...] = ()  # where the file itself names them
    notes: Sequence[str] = ()  # warnings about the whole file, complete once it has been read

    @classmethod
    @abstractmethod
    def recognize(cls, start: TextStart) -> "TextReader | None":
        """Return the reader of a file of this kind; None for any other."""

    @abstractmethod
    def read(self, start: Position, rows: Container[int] = EVERY_ROW, /) -> Iterator[Record]:
        """Yield rows from `start` on; `Position(0, 1, 0)` is the beginning of the file.

        Rows other than `rows` may come without their value.
        """


class BinaryRows(RowSource):
    """Rows of a regular file of a kind that begins with fixed bytes, or of what a gzip file holds `unpacked`.

    Raises:
        DatasetError: If it is damaged or too large.
    """

    label: ClassVar[str]  # for people
    endings: ClassVar[tuple[str, ...]]  # of file names
    magics: ClassVar[tuple[bytes, ...]]  # first bytes of its files
    notes: Sequence[str] = ()
    size_bytes: int | None = None

    def __init__(self, path: Path, unpacked: UnpackedFile | None = None) -> None:
        self.name = shown_name(path.name)
        self._original = path
        self._unpacked = unpacked  # lives as long as these rows do
        self._path = path if unpacked is None else unpacked.path
        self.form = self.form._replace(is_gzipped=unpacked is not None)
        self.size_bytes = self._path.stat().st_size

    def folder_of(self, row: int) -> Path | None:  # noqa: ARG002 - it is one file
        return self._original.parent

    def fingerprint(self) -> str:
        return fingerprint_of(self._original)


def require_unique(columns: Sequence[str], name: str) -> None:
    """Require that a header names each column once.

    Raises:
        DatasetError: With the column that it names twice.
    """
    twice = next((column for column, count in Counter(columns).items() if count > 1), None)
    if twice is not None:
        raise DatasetError(
            f"The column {shown_name(twice)!r} appears twice in the header of {name}.", "Rename one of the two."
        )


STRIDE = 1024


class RowIndex(BaseModel):
    """Positions of rows 0, 1024, 2048 … as far as a file has been read, and the number of rows if known."""

    positions: list[Position] = []
    total_rows: int | None = None

    def nearest(self, row: int) -> Position:
        """Return the last known position at or before `row`."""
        index = min(row // STRIDE, len(self.positions) - 1)
        return self.positions[index] if index >= 0 else Position(0, 1, 0)


class TextFileRows(RowSource):
    """Rows of one text file, whose row index is kept in the folder, if there is one."""

    size_bytes: int | None = None

    def __init__(self, stream: TextStream, reader: TextReader, index_folder: Path | None = None) -> None:
        self.name = shown_name(stream.path.name)
        self._stream = stream
        self._reader = reader
        self.size_bytes = stream.size_bytes
        self.columns = reader.columns
        self.form = reader.form._replace(encoding=stream.encoding, is_gzipped=stream.is_gzipped)
        self._index_file = index_folder / f"{self.fingerprint()}.rows.json" if index_folder is not None else None
        index = read_model(self._index_file, RowIndex) if self._index_file is not None else None
        self._index = index or RowIndex()

    @property
    def notes(self) -> Sequence[str]:
        return self._reader.notes

    @property
    def bytes_read(self) -> int:
        return self._stream.bytes_read

    @property
    def total_rows(self) -> int | None:
        return self._index.total_rows

    def pick(self, rows: Sequence[int]) -> Iterator[Record | None]:
        """Yield some rows; skipped ones are read once, and later jumped over where the stream can seek."""
        numbers, seeks = lookup(rows), self._stream.seeks
        count = 0  # of rows that were yielded
        while count < len(rows) and (self.total_rows is None or rows[count] < self.total_rows):
            start = self._index.nearest(rows[count]) if seeks else Position(0, 1, 0)
            for record in self._read(start, numbers):
                if record.row not in numbers:
                    yield None
                    continue
                yield record
                count += 1
                if count == len(rows):
                    return
                if seeks and rows[count] > record.row + 1 and self._index.nearest(rows[count]).row > record.row:
                    break
            else:
                return

    def _read(self, start: Position, rows: Container[int]) -> Iterator[Record]:
        """Read rows from `start` on, and record their positions, and their number at the end."""
        end = start.row
        for record in self._reader.read(start, rows):
            if record.row == len(self._index.positions) * STRIDE:
                self._index.positions.append(Position(record.row, record.line or 1, record.offset))
            yield record
            end = record.row + 1
        if self.total_rows is None:
            self._index.total_rows = end
            write_cached(self._index_file, self._index)

    def folder_of(self, row: int) -> Path | None:  # noqa: ARG002 - it is one file
        return self._stream.path.parent

    def fingerprint(self) -> str:
        return fingerprint_of(self._stream.path)


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

    def read(self, start: Position, _rows: Container[int] = EVERY_ROW, /) -> Iterator[Record]:
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
