"""Rows of Parquet and Arrow files, Feather among them, a few at a time: pyarrow reads, the kernel bounds what it takes."""

import itertools
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loratory.engine.data.files.access import UnpackedFile
from loratory.engine.data.files.base import BinaryRows
from loratory.engine.data.records import (
    MAX_ROW_BYTES,
    Blob,
    Record,
    RowProblemError,
    SourceForm,
    lookup,
    text_length,
)
from loratory.engine.errors import DatasetError
from loratory.engine.processes.limits import memory_limited

_READ_BYTES, _WRITE_BYTES = 1 << 29, 3 << 27  # of memory, while a batch is unpacked, and while rows are written out
_MOST_READ_ROWS = 256  # that are unpacked at once
_MOST_WRITTEN_ROWS = 32
_ROWS_BYTES = 64 << 20  # of as many rows of average size
_ARROW_MAGIC = b"ARROW1"


class ColumnarRows(BinaryRows):
    """A file of Arrow's."""

    def pick(self, rows: Sequence[int]) -> Iterator[Record | None]:
        """Yield some rows; batches that hold none of them are not written out."""
        numbers = lookup(rows)
        with self._explain_errors():
            for first, batch in self._batches(rows):
                here = rows[bisect_left(rows, first) : bisect_left(rows, first + batch.num_rows)]
                if not here:
                    continue
                for record in batch_records(batch.slice(here[0] - first), here[0]):
                    yield record if record.row in numbers else None
                    if record.row == here[-1]:
                        break

    @abstractmethod
    def _batches(self, rows: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Yield record batches in order, each with its first row; those without any of `rows` may be left out."""

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        from pyarrow import ArrowException

        try:
            yield
        except MemoryError as error:
            raise DatasetError(
                f"The rows of the {self.label} file {self.name} take more memory at a time than reading them may.",
                "Export it again with fewer rows in a row group or record batch, or as JSONL.",
            ) from error
        except NotImplementedError as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)[:200].rstrip(".")
            raise DatasetError(
                f"The {self.label} file {self.name} has a part that is not supported here: {reason}.",
                "Export it again, with other settings or as JSONL.",
            ) from error
        except (OSError, ValueError, ArrowException) as error:
            raise DatasetError(
                f"The {self.label} file {self.name} is cut off or damaged.", "Download or export it again."
            ) from error


class ParquetRows(ColumnarRows):
    """A Parquet file."""

    label = "Parquet"
    endings = (".parquet",)
    magics = (b"PAR1",)
    form = SourceForm("parquet", "Parquet")
    total_rows: int | None = None
    bytes_read = 0

    def __init__(self, path: Path, unpacked: UnpackedFile | None = None) -> None:
        super().__init__(path, unpacked)
        with self._explain_errors(), self._open() as file:
            self._metadata = file.metadata
            self.columns = tuple(file.schema_arrow.names)
        self._groups = [self._metadata.row_group(group) for group in range(self._metadata.num_row_groups)]
        self.total_rows = self._metadata.num_rows

    def _batches(self, rows: Sequence[int]) -> Iterator[tuple[int, Any]]:
        first = 0  # row of the group
        for number, group in enumerate(self._groups):
            if bisect_left(rows, first) < bisect_left(rows, first + group.num_rows):
                chunks = [group.column(column) for column in range(group.num_columns)]
                # What rows share stays shared; other types have no dictionary in memory.
                shared = [
                    chunk.path_in_schema
                    for chunk in chunks
                    if chunk.has_dictionary_page and chunk.physical_type == "BYTE_ARRAY"
                ]
                with self._open(self._metadata, shared) as reader:
                    size = _rows_at_once(_MOST_READ_ROWS, group.total_byte_size, group.num_rows)
                    row = first
                    for batch in in_bounded_steps(reader.iter_batches(batch_size=size, row_groups=[number])):
                        self.bytes_read = round((self.size_bytes or 0) * row / max(1, self._metadata.num_rows))
                        yield row, batch
                        row += batch.num_rows
            first += group.num_rows

    def _open(self, metadata: Any = None, shared: Sequence[str] = ()) -> Any:
        # Imported here: half the programs that import this module never see a Parquet file.
        from pyarrow.parquet import ParquetFile

        # Else a whole row group is read, and held together with what is made of it.
        reading = {"memory_map": False, "pre_buffer": False, "buffer_size": 1 << 20}
        return ParquetFile(self._path, metadata=metadata, read_dictionary=list(shared), **reading)


class ArrowRows(ColumnarRows):
    """An Arrow file, or a stream, which gives the number of its rows when it has been read to its end."""

    label = "Arrow"
    endings = (".arrow", ".feather")
    magics = (_ARROW_MAGIC, b"\xff\xff\xff\xff")
    form = SourceForm("arrow", "Arrow")
    total_rows: int | None = None
    bytes_read = 0

    def __init__(self, path: Path, unpacked: UnpackedFile | None = None) -> None:
        super().__init__(path, unpacked)
        with self._explain_errors(), self._open() as (reader, _):
            self.columns = tuple(reader.schema.names)
            if hasattr(reader, "count_rows"):  # the file lists its batches
                self.total_rows = reader.count_rows()

    def _batches(self, rows: Sequence[int]) -> Iterator[tuple[int, Any]]:
        first = 0
        with self._open() as (reader, source):
            batches = (
                map(reader.get_batch, range(reader.num_record_batches)) if hasattr(reader, "get_batch") else reader
            )
            for batch in in_bounded_steps(iter(batches)):
                self.bytes_read = source.tell()
                batch.validate(full=True)  # offsets in the file are not used before they are checked
                yield first, batch
                first += batch.num_rows
                if rows[-1] < first:
                    return
            self.total_rows, self.bytes_read = first, self.size_bytes or 0

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        import pyarrow

        with pyarrow.OSFile(str(self._path)) as source:
            is_file = source.read(len(_ARROW_MAGIC)) == _ARROW_MAGIC
            source.seek(0)
            yield (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(source), source


def in_bounded_steps(steps: Iterator[Any], memory_bytes: int = _READ_BYTES) -> Iterator[Any]:
    """Yield what an iterator yields; each of its steps has bounded memory.

    Raises:
        MemoryError: If a step needs more.
    """
    while True:
        with memory_limited(memory_bytes):
            value = next(steps, None)
        if value is None:
            return
        yield value


def _rows_at_once(most: int, size_bytes: int, rows: int) -> int:
    """Return how many rows are unpacked or written out at once, where so many of them take so many bytes."""
    return min(most, max(1, int(_ROWS_BYTES / max(1.0, size_bytes / max(1, rows)))))


def batch_records(batch: Any, first_row: int) -> Iterator[Record]:
    """Yield the rows of a record batch; what is larger than a row may be is named and left out.

    Text that many rows share is held once in a batch, so only a few rows are written out at once.
    """
    import numpy

    with memory_limited(_WRITE_BYTES):
        sizes = sum(map(_text_bytes, batch.columns), numpy.zeros(batch.num_rows, numpy.int64))
    fitting = batch if (sizes <= MAX_ROW_BYTES).all() else batch.filter(sizes <= MAX_ROW_BYTES)
    step = _rows_at_once(_MOST_WRITTEN_ROWS, fitting.nbytes, fitting.num_rows)
    pieces = (_to_rows(fitting.slice(start, step)) for start in range(0, fitting.num_rows, step))
    values = itertools.chain.from_iterable(in_bounded_steps(pieces, _WRITE_BYTES))
    for row, size in enumerate(map(int, sizes), first_row):
        record = Record(row, None, next(values) if size <= MAX_ROW_BYTES else None)
        size = max(size, text_length(record.value))
        if size > MAX_ROW_BYTES:
            record = Record(row, None, None, kind="too_long", problem=RowProblemError.too_long(size).problem)
        yield record


def _text_bytes(column: Any) -> Any:
    """Return the bytes of the text in each row, as int64; 0 for other types, whose rows are measured once written out."""
    import numpy
    from pyarrow import compute, types

    if types.is_dictionary(column.type):
        indices = compute.fill_null(column.indices, -1).to_numpy(zero_copy_only=False)
        return numpy.append(_text_bytes(column.dictionary), 0)[indices]  # the last one is for null
    if types.is_string(column.type) or types.is_large_string(column.type):
        lengths = compute.fill_null(compute.binary_length(column), 0)
        return lengths.to_numpy(zero_copy_only=False).astype(numpy.int64)
    return numpy.zeros(len(column), numpy.int64)


def _to_rows(piece: Any) -> list[dict[str, Any]]:
    import pyarrow
    from pyarrow import types

    # Decoded at once: one by one, entries of a dictionary take ten times as long.
    columns = [column.dictionary_decode() if types.is_dictionary(column.type) else column for column in piece.columns]
    rows: list[dict[str, Any]] = pyarrow.RecordBatch.from_arrays(columns, names=piece.schema.names).to_pylist()
    is_binary = (types.is_binary, types.is_large_binary, types.is_nested)
    for name in (field.name for field in piece.schema if any(is_kind(field.type) for is_kind in is_binary)):
        for value in rows:
            value[name] = without_gaps(value[name])
    return rows


def without_gaps(value: Any) -> Any:
    """Return a value of Arrow's without the keys that hold nothing, at any depth, and bytes as a `Blob`.

    All structs of a column have the same fields. What an object did not have is null there, and would give tools the
    parameters, and calls the arguments, of other rows. An intended null cannot be distinguished from that.
    """
    if isinstance(value, dict):
        return {key: without_gaps(child) for key, child in value.items() if child is not None}
    if isinstance(value, list | tuple):  # tuples are the entries of a map
        return type(value)(map(without_gaps, value))
    return Blob(value) if isinstance(value, bytes) else value
