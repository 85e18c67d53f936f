"""Rows of Arrow batches as Python values, some megabytes at a time, and files that consist of groups of rows."""

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from engine.data.files.access import MAX_RATIO, RATIO_COUNTS_FROM_BYTES, UnpackedFile
from engine.data.files.base import BinaryRows
from engine.data.records import MAX_ROW_BYTES, Record, RowProblemError, lookup
from engine.errors import DatasetError

# What is unpacked at a time: the pages of a row group, one of each column, or a record batch.
_MAX_UNPACKED_BYTES = 512 << 20
_MAX_PIECE_ROWS = 4096
_ELEMENT_BYTES = 8  # the least that an element of a list takes, also an empty one


class ColumnarRows(BinaryRows):
    """A file of Arrow's, as groups of rows that are read one by one."""

    article: ClassVar[str] = "a"
    what_is_smaller: ClassVar[str]  # what to make smaller where the groups are too large

    def __init__(self, path: Path, unpacked: UnpackedFile | None = None) -> None:
        super().__init__(path, unpacked)
        self._rows_read = 0
        self._group_rows: list[int] = []
        with self._errors_explained():
            self._read_groups()

    @abstractmethod
    def _read_groups(self) -> None:
        """Set `columns` and `_group_rows`."""

    @abstractmethod
    def _group_records(self, group: int, row: int, first_row: int) -> Iterator[Record]:
        """Yield rows of a group whose first one is `row`, from `first_row` on."""

    @property
    def total_rows(self) -> int | None:
        return sum(self._group_rows)

    @property
    def bytes_read(self) -> int:
        return round((self.size_bytes or 0) * self._rows_read / max(1, sum(self._group_rows)))

    def pick(self, rows: Sequence[int]) -> Iterator[Record | None]:
        """Yield some rows; groups that hold none of them are not read."""
        numbers = lookup(rows)
        first = 0  # row of the group
        with self._errors_explained():
            for group, count in enumerate(self._group_rows):
                here = rows[bisect_left(rows, first) : bisect_left(rows, first + count)]
                for record in self._group_records(group, first, here[0]) if here else ():
                    self._rows_read = record.row
                    yield record if record.row in numbers else None
                    if record.row == here[-1]:
                        break
                first += count

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        from pyarrow import ArrowException

        try:
            yield
        except MemoryError as error:
            raise self._too_large("rows") from error
        except NotImplementedError as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)[:200].rstrip(".")
            raise DatasetError(
                f"{self.name} is {self.article} {self.label} file with a part that is not supported here: {reason}.",
                "Export it again, with other settings or as JSONL.",
            ) from error
        except (OSError, ValueError, ArrowException) as error:
            raise self._damage_error() from error

    def _refuse_growth(self, unpacked_bytes: int, packed_bytes: int, what: str, *, at_once: bool = True) -> None:
        """Refuse data that would take far more memory than its size on disk; `at_once` if all of it is in memory."""
        grows = unpacked_bytes > RATIO_COUNTS_FROM_BYTES and unpacked_bytes > MAX_RATIO * max(packed_bytes, 1)
        if grows or (at_once and unpacked_bytes > _MAX_UNPACKED_BYTES):
            raise self._too_large(what)

    def _damage_error(self) -> DatasetError:
        return DatasetError(
            f"{self.name} is {self.article} {self.label} file that is cut off or damaged.",
            "Download or export it again.",
        )

    def _too_large(self, what: str) -> DatasetError:
        return DatasetError(
            f"The {what} of the {self.label} file {self.name} decompress to far more than their size on disk.",
            f"Export it again with smaller {self.what_is_smaller}, or as JSONL.",
        )


def batch_records(batch: Any, first_row: int) -> Iterator[Record]:
    """Yield rows of a record batch; what is larger than a row may be is named and left out.

    Text that many rows share is held once in a batch. Its rows are measured as they will be, before they are written out.
    """
    import numpy

    sizes = sum((row_sizes(column) for column in batch.columns), numpy.zeros(batch.num_rows, numpy.int64)).tolist()
    start, piece_bytes = 0, 0
    for row, size in enumerate(sizes):
        if piece_bytes + size > MAX_ROW_BYTES or row - start >= _MAX_PIECE_ROWS:
            yield from _written_out(batch, start, row, first_row)
            start, piece_bytes = row, 0
        if size > MAX_ROW_BYTES:
            yield Record(first_row + row, None, None, kind="too_long", problem=RowProblemError.too_long(size).problem)
            start = row + 1
        else:
            piece_bytes += size
    yield from _written_out(batch, start, batch.num_rows, first_row)


def row_sizes(array: Any) -> Any:
    """Return the bytes that each row of an Arrow array takes once written out, as int64."""
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
    # Numbers, and kinds that share nothing among their rows.
    return numpy.full(len(array), -(-array.nbytes // max(1, len(array))), numpy.int64)


def value_count(array: Any) -> int:
    """Return how many values an Arrow array holds, those in lists counted one by one."""
    from pyarrow import types

    if types.is_struct(array.type):
        return value_count(array.field(0)) if array.type.num_fields else len(array)
    if types.is_map(array.type) or types.is_list(array.type) or types.is_large_list(array.type):
        return value_count(array.flatten())
    return len(array)


def _listed_sizes(array: Any, elements: Any) -> Any:
    import numpy

    ends = numpy.concatenate(([0], numpy.cumsum(elements + _ELEMENT_BYTES)))
    offsets = array.offsets.to_numpy(zero_copy_only=False)
    return numpy.diff(ends[offsets])


def _written_out(batch: Any, start: int, end: int, first_row: int) -> Iterator[Record]:
    if start >= end:
        return
    import pyarrow
    from pyarrow import types

    piece = batch.slice(start, end - start)
    # Decoded at once: one by one, entries of a dictionary take ten times as long.
    columns = [column.dictionary_decode() if types.is_dictionary(column.type) else column for column in piece.columns]
    rows = pyarrow.RecordBatch.from_arrays(columns, names=piece.schema.names).to_pylist()
    nested = [field.name for field in piece.schema if types.is_nested(field.type)]
    for row, value in enumerate(rows, start=first_row + start):
        for name in nested:
            value[name] = without_gaps(value[name])
        yield Record(row, None, value)


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
