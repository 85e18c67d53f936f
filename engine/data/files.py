"""Files as sources of rows: which kind each is, by what is in it; one file, or the files of a folder."""

import hashlib
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

from engine.data.access import open_regular, shown_name
from engine.data.delimited_file import DelimitedReader
from engine.data.file_endings import DATA_ENDINGS, EndingFamily, family_of
from engine.data.folder_files import MAX_FILES, describes_data, files_below
from engine.data.json_lines_file import JsonLinesReader
from engine.data.json_values_file import JsonValuesReader
from engine.data.parquet_file import PARQUET_MAGIC, ParquetRows
from engine.data.plain_text_file import PlainTextReader
from engine.data.records import MAX_ROW_BYTES, Position, Record, json_record
from engine.data.row_index import STRIDE, RowIndex
from engine.data.row_source import (
    RowSource,
    SourceForm,
    SourceKind,
    approach_row,
    fingerprint_of,
    numbered_rows,
    picked_rows,
)
from engine.data.text_stream import TextStream
from engine.data.unpacked_file import UnpackedFile, gzipped_magic
from engine.errors import DatasetError

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


class ManyFiles:
    """The files of a folder, one after the other, as one source.

    Args:
        name: Of the folder.
        files: In order.
    """

    def __init__(self, name: str, files: list[RowSource]) -> None:
        self.name = name
        self._files = files
        self.form = files[0].form
        self.kind = f"{len(files)} files: {files[0].kind}"
        self.columns = files[0].columns
        self.size_bytes: int | None = sum(file.size_bytes or 0 for file in files)

    @property
    def notes(self) -> Sequence[str]:
        return list(itertools.chain.from_iterable(file.notes for file in self._files))

    @property
    def bytes_read(self) -> int:
        return sum(file.bytes_read for file in self._files)

    @property
    def total_rows(self) -> int | None:
        totals = [file.total_rows for file in self._files]
        known = [total for total in totals if total is not None]
        return sum(known) if len(known) == len(totals) else None

    def records(self, first_row: int = 0) -> Iterator[Record]:
        """Rows from `first_row` on, numbered through all files."""
        for _, record in numbered_rows(self._files, first_row):
            yield record

    def approach(self, first_row: int, /) -> Iterator[None]:
        """Do in small steps what has to be done before that row."""
        return approach_row(self._files, first_row)

    def pick(self, rows: Sequence[int]) -> Iterator[Record | None]:
        """Some rows, numbered through all files."""
        return (found[1] if found is not None else None for found in picked_rows(self._files, rows))

    def fingerprint(self) -> str:
        return hashlib.sha256("".join(file.fingerprint() for file in self._files).encode()).hexdigest()


def open_file(path: Path, index_folder: Path | None = None) -> RowSource:
    """Open one file by what is in it.

    Raises:
        DatasetError: If it cannot be read, or holds no rows.
    """
    with open_regular(path) as file:
        magic = file.read(4)
    if magic == PARQUET_MAGIC:
        return ParquetRows(path)
    if gzipped_magic(path) == PARQUET_MAGIC:
        return ParquetRows(path, UnpackedFile(path, index_folder))
    if family_of(path.name) == "parquet":
        TextStream(path)  # says what it is instead, where that can be told
        raise DatasetError(
            f"{shown_name(path.name)} is no Parquet file, whatever its name says.", "Choose the right file."
        )
    return TextFileRows(path, index_folder)


def data_files(folder: Path, split: str) -> list[Path]:
    """The data files of a folder in the order in which they are read: those named after the split, else all.

    What describes a dataset, such as its README or licence, is data only where nothing else is.

    Raises:
        DatasetError: If there is more in the folder than anybody keeps in one of data.
    """
    found = sorted(file for file in files_below(folder) if family_of(file.name) is not None)
    inside = [file for file in found if file.is_file() and file.resolve().is_relative_to(folder)]
    data = [file for file in inside if not describes_data(file)] or inside
    return [file for file in data if split and file.name.lower().startswith(split.lower())] or data


def open_folder(path: Path, split: str, index_folder: Path | None = None) -> RowSource:
    """Open the data files of a folder: those named after the split, else all.

    Raises:
        DatasetError: If it holds none, or too many, or one of them cannot be read.
    """
    files = data_files(path, split)
    if not files:
        raise DatasetError(
            f"The folder {shown_name(path.name)} holds no data files.",
            f"Data files end in {', '.join(DATA_ENDINGS)}, also with .gz.",
        )
    if len(files) > MAX_FILES:
        raise DatasetError(
            f"The folder {shown_name(path.name)} holds {len(files):,} data files; {MAX_FILES:,} is the most.",
            "Put the rows into fewer files, or choose a folder further down.",
        )
    opened = [open_file(file, index_folder) for file in files]
    return opened[0] if len(opened) == 1 else ManyFiles(shown_name(path.name), opened)


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
