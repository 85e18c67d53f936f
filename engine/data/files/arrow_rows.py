"""Rows of Arrow batches as Python values, some megabytes at a time, each step in bounded memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from engine.data.files.base import BinaryRows
from engine.data.records import MAX_ROW_BYTES, Record, RowProblemError
from engine.errors import DatasetError
from engine.processes.limits import memory_limited

# What a batch may take while it is unpacked and written out; pieces of rows take a hundredth of it.
_STEP_BYTES = 1 << 29
_MAX_PIECE_ROWS = 4096
_ELEMENT_BYTES = 8  # the least that an element of a list takes, also an empty one


class ColumnarRows(BinaryRows):
    """A file of Arrow's."""

    article: ClassVar[str] = "a"
    what_is_smaller: ClassVar[str]  # what to make smaller where the batches are too large
    _rows_read = 0

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        from pyarrow import ArrowException

        try:
            yield
        except MemoryError as error:
            raise DatasetError(
                f"The rows of the {self.label} file {self.name} take more memory at a time than reading them may.",
                f"Export it again with smaller {self.what_is_smaller}, or as JSONL.",
            ) from error
        except NotImplementedError as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)[:200].rstrip(".")
            raise DatasetError(
                f"{self.name} is {self.article} {self.label} file with a part that is not supported here: {reason}.",
                "Export it again, with other settings or as JSONL.",
            ) from error
        except (OSError, ValueError, ArrowException) as error:
            raise DatasetError(
                f"{self.name} is {self.article} {self.label} file that is cut off or damaged.",
                "Download or export it again.",
            ) from error


def in_bounded_steps(steps: Iterator[Any]) -> Iterator[Any]:
    """Yield what an iterator yields; each of its steps has bounded memory.

    Raises:
        MemoryError: If a step needs more.
    """
    while True:
        with memory_limited(_STEP_BYTES):
            value = next(steps, None)
        if value is None:
            return
        yield value


def batch_records(batch: Any, first_row: int) -> Iterator[list[Record]]:
    """Yield rows of a record batch in pieces; what is larger than a row may be is named and left out.

    Text that many rows share is held once in a batch. Its rows are measured as they will be, before they are written out.
    """
    import numpy

    sizes = sum((row_sizes(column) for column in batch.columns), numpy.zeros(batch.num_rows, numpy.int64)).tolist()
    start, piece_bytes = 0, 0
    for row, size in enumerate(sizes):
        if piece_bytes + size > MAX_ROW_BYTES or row - start >= _MAX_PIECE_ROWS:
            yield _written_out(batch, start, row, first_row)
            start, piece_bytes = row, 0
        if size > MAX_ROW_BYTES:
            problem = RowProblemError.too_long(size).problem
            yield [Record(first_row + row, None, None, kind="too_long", problem=problem)]
            start = row + 1
        else:
            piece_bytes += size
    yield _written_out(batch, start, batch.num_rows, first_row)


def row_sizes(array: Any) -> Any:
    """Return the bytes that each row of an Arrow array takes once written out, as int64.

    Raises:
        NotImplementedError: If its type shares values in a way that cannot be measured, as views and runs do.
    """
    import numpy
    from pyarrow import BaseExtensionType, compute, types

    kind = array.type
    if types.is_dictionary(kind):
        values = row_sizes(array.dictionary)
        indices = compute.fill_null(array.indices, -1).to_numpy(zero_copy_only=False)
        return numpy.append(values, 0)[indices]  # the last one is for null
    if types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        return compute.fill_null(compute.binary_length(array), 0).to_numpy(zero_copy_only=False).astype(numpy.int64)
    if types.is_struct(kind):
        fields = (row_sizes(array.field(number)) for number in range(kind.num_fields))
        return sum(fields, numpy.zeros(len(array), numpy.int64))
    if types.is_map(kind):
        return _listed_sizes(array, row_sizes(array.keys) + row_sizes(array.items))
    if types.is_list(kind) or types.is_large_list(kind):
        return _listed_sizes(array, row_sizes(array.values))
    if types.is_fixed_size_list(kind):
        count = kind.list_size
        elements = row_sizes(array.values.slice(array.offset * count, len(array) * count)) + _ELEMENT_BYTES
        return elements.reshape(len(array), count).sum(axis=1)
    if isinstance(kind, BaseExtensionType):
        return row_sizes(array.storage)
    plain = "null primitive decimal fixed_size_binary".split()
    if not any(getattr(types, f"is_{name}")(kind) for name in plain):
        raise NotImplementedError(f"a column of type {str(kind)[:80]}")
    return numpy.full(len(array), -(-array.nbytes // max(1, len(array))), numpy.int64)


def _listed_sizes(array: Any, elements: Any) -> Any:
    import numpy

    ends = numpy.concatenate(([0], numpy.cumsum(elements + _ELEMENT_BYTES)))
    offsets = array.offsets.to_numpy(zero_copy_only=False)
    return numpy.diff(ends[offsets])


def _written_out(batch: Any, start: int, end: int, first_row: int) -> list[Record]:
    if start >= end:
        return []
    import pyarrow
    from pyarrow import types

    piece = batch.slice(start, end - start)
    # Decoded at once: one by one, entries of a dictionary take ten times as long.
    columns = [column.dictionary_decode() if types.is_dictionary(column.type) else column for column in piece.columns]
    rows = pyarrow.RecordBatch.from_arrays(columns, names=piece.schema.names).to_pylist()
    for name in (field.name for field in piece.schema if types.is_nested(field.type)):
        for value in rows:
            value[name] = without_gaps(value[name])
    return [Record(row, None, value) for row, value in enumerate(rows, start=first_row + start)]


def without_gaps(value: Any) -> Any:
    """Return a value of Arrow's without the keys that hold nothing, at any depth.

    All structs of a column have the same fields. What an object did not have is null there, and would give tools the
    parameters, and calls the arguments, of other rows. An intended null cannot be distinguished from that.
    """
    if isinstance(value, dict):
        return {key: without_gaps(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):  # tuples are the entries of a map
        return type(value)(map(without_gaps, value))
    return value
