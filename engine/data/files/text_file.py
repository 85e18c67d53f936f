"""Rows of one text file, with an index of where they begin."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ValidationError

from engine.data.files.access import fingerprint_of, shown_name
from engine.data.files.delimited import DelimitedReader
from engine.data.files.endings import EndingFamily, family_of
from engine.data.files.json_files import JsonLinesReader, JsonValuesReader, json_record
from engine.data.files.plain_text import PlainTextReader
from engine.data.files.text_stream import TextStream
from engine.data.records import (
    MAX_ROW_BYTES,
    Position,
    Record,
    SourceForm,
    SourceKind,
)
from engine.errors import DatasetError, StorageError
from engine.files import write_atomically

STRIDE = 1024


class _Saved(BaseModel):
    v: int = 1
    positions: tuple[Position, ...]
    total_rows: int


class RowIndex:
    """Positions of rows 0, 1024, 2048 …, as far as a file has been read, and the number of rows once its end was seen.

    Args:
        cache_file: Where a finished index is kept; None keeps it nowhere.
    """

    def __init__(self, cache_file: Path | None = None) -> None:
        self._cache_file = cache_file
        self._positions: list[Position] = []
        self.total_rows: int | None = None
        self._load()

    def nearest(self, row: int) -> Position:
        """The last known position at or before `row`."""
        place = min(row // STRIDE, len(self._positions) - 1)
        return self._positions[place] if place >= 0 else Position(0, 1, 0)

    @property
    def known_rows(self) -> int:
        """Rows up to which a jump needs no reading ahead."""
        return self.total_rows if self.total_rows is not None else max(0, len(self._positions) - 1) * STRIDE

    @property
    def last(self) -> Position:
        """The furthest known position."""
        return self._positions[-1] if self._positions else Position(0, 1, 0)

    def saw(self, position: Position) -> None:
        """Note a row that was read; rows come in order, and those that are known already change nothing."""
        if position.row == len(self._positions) * STRIDE:
            self._positions.append(position)

    def finish(self, total_rows: int) -> None:
        """Note the end of the file, and keep the index for other processes."""
        if self.total_rows is not None:
            return
        self.total_rows = total_rows
        if self._cache_file is None:
            return
        saved = _Saved(positions=tuple(self._positions), total_rows=total_rows)
        try:
            self._cache_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._cache_file, saved.model_dump_json())
        except (OSError, StorageError):
            return  # a cache that cannot be written costs time, nothing else

    def _load(self) -> None:
        if self._cache_file is None:
            return
        try:
            saved = _Saved.model_validate_json(self._cache_file.read_bytes())
        except (OSError, ValidationError):
            return
        self._positions = list(saved.positions)
        self.total_rows = saved.total_rows


TextKind = Literal["json_lines", "list_lines", "json_array", "json_objects", "delimited", "plain_text"]


class _Reader(Protocol):
    def read(self, start: Position) -> Iterator[Record]: ...


class TextFileRows:
    """Rows of one text file.

    Args:
        path: A regular file.
        index_folder: Where its row index is kept; None keeps none.

    Raises:
        DatasetError: If it is empty, or no text with rows in it.
    """

    def __init__(self, path: Path, index_folder: Path | None = None) -> None:
        self.name = shown_name(path.name)
        self._stream = TextStream(path)
        self._path = path
        self.size_bytes: int | None = self._stream.size_bytes
        self.columns: tuple[str, ...] = ()
        self._reader: _Reader
        text_kind = _kind_of_text(path, self._stream)
        kind: SourceKind
        delimiter = ""
        if text_kind in ("json_lines", "list_lines"):
            self._reader, kind = JsonLinesReader(self._stream), text_kind
        elif text_kind == "delimited":
            delimited = DelimitedReader(self._stream)
            self._reader, self.columns = delimited, delimited.columns
            kind, delimiter = text_kind, delimited.delimiter
        elif text_kind == "plain_text":
            plain = PlainTextReader(self._stream)
            self._reader, self.columns = plain, ("text",)
            kind = "paragraphs" if plain.by_paragraph else "lines"
        else:
            self._reader, kind = JsonValuesReader(self._stream, array=text_kind == "json_array"), text_kind
        self.form = SourceForm(kind, self._stream.encoding, delimiter, self._stream.is_gzipped)
        self.kind = self.form.words
        self._index = RowIndex(index_folder / f"{self.fingerprint()}.rows.json" if index_folder is not None else None)

    @property
    def notes(self) -> Sequence[str]:
        return self._reader.notes if isinstance(self._reader, JsonValuesReader) else []

    @property
    def bytes_read(self) -> int:
        return self._stream.bytes_read

    @property
    def total_rows(self) -> int | None:
        return self._index.total_rows

    def records(self, first_row: int = 0) -> Iterator[Record]:
        """Rows from `first_row` on; what is passed over is read once, and never again after that."""
        if self.total_rows is not None and first_row >= self.total_rows:
            return
        for _ in self._skim(first_row):
            pass
        row = -1
        for record in self._reader.read(self._index.nearest(first_row)):
            row = record.row
            if row % STRIDE == 0:
                self._index.saw(Position(row, record.line or 1, record.offset))
            if row >= first_row:
                yield record
        if row >= 0 or first_row == 0:
            self._index.finish(row + 1)

    def approach(self, first_row: int, /) -> Iterator[None]:
        """Note where rows begin up to `first_row`, and unpack the file up to there, step by step."""
        yield from self._skim(first_row)
        if self.total_rows is None or first_row < self.total_rows:
            yield from self._stream.approach(self._index.nearest(first_row).offset)

    def pick(self, rows: Sequence[int]) -> Iterator[Record | None]:
        """Some rows, in one pass; rows between them are passed over by a jump, where the file allows one."""
        wanted = frozenset(rows)
        waiting = deque(rows)
        while waiting:
            for record in self._read_some(self._index.nearest(waiting[0]), wanted):
                yield record
                if record is None:
                    continue
                waiting.popleft()
                if not waiting or (self._stream.seeks and self._index.nearest(waiting[0]).row > record.row):
                    break
            else:
                if self.total_rows is None:  # there are fewer rows; now it is known how many
                    yield from (None for _ in self.records(self._index.known_rows))
                return

    def _read_some(self, start: Position, wanted: frozenset[int]) -> Iterator[Record | None]:
        if isinstance(self._reader, JsonLinesReader):
            return self._reader.read_some(start, wanted)
        return (record if record.row in wanted else None for record in self._reader.read(start))

    def _skim(self, row: int) -> Iterator[None]:
        """Note where rows begin, up to `row`, without reading what they say where that can be told."""
        if self.total_rows is not None or row < self._index.known_rows + STRIDE:
            return
        for position in self._positions(self._index.last):
            self._index.saw(position)
            if position.row >= row:
                return
            yield

    def _positions(self, start: Position) -> Iterator[Position]:
        if isinstance(self._reader, JsonLinesReader):
            return self._reader.skim(start)
        return (Position(record.row, record.line or 1, record.offset) for record in self._reader.read(start))

    def fingerprint(self) -> str:
        return fingerprint_of(self._path)


def _kind_of_text(path: Path, stream: TextStream) -> TextKind:
    head = stream.head()
    start = head.lstrip()
    if not start:
        raise DatasetError(f"{shown_name(path.name)} is empty.", "Choose a file with rows in it.")
    family = family_of(path.name)
    first_line = start.split(b"\n", 1)[0].strip()
    if family == "text":
        return "plain_text"
    if start[:1] == b"[" and family != "delimited":
        return "list_lines" if _has_list_lines(stream, family) else "json_array"
    if start[:1] == b"{":
        ends_there = first_line.endswith(b"}") or len(first_line) == len(start) == len(head)
        if family == "json_lines" or ends_there:
            return "json_lines"
        return "json_objects"
    if family in ("json", "json_lines"):
        return "json_lines"
    if family == "delimited":
        return "delimited"
    return "delimited" if _looks_delimited(stream) else "plain_text"


def _has_list_lines(stream: TextStream, family: EndingFamily | None) -> bool:
    """Whether a file that begins with a bracket has a list on each line, and is no array over all of them."""
    head = stream.head().lstrip()
    if b"\n" not in head:
        head = stream.head(MAX_ROW_BYTES + 1).lstrip()
        if b"\n" not in head and len(head) > MAX_ROW_BYTES:
            return False
    first, _, rest = head.partition(b"\n")
    if not first.rstrip().endswith(b"]"):
        return False
    if rest.strip():
        return rest.lstrip()[:1] in (b"[", b"{")
    return family == "json_lines" and json_record(Position(0, 1, 0), first).value is not None


def _looks_delimited(stream: TextStream) -> bool:
    try:
        reader = DelimitedReader(stream)
    except DatasetError:
        return False
    rows = list(itertools.islice(reader.read(Position(0, 1, 0)), 5))
    return len(reader.columns) > 1 and bool(rows) and all(len(row.value or ()) == len(reader.columns) for row in rows)
