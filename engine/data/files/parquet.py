"""Rows of a Parquet file, a few at a time, in bounded memory for any compression ratio."""

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from engine.data.files.access import open_regular
from engine.data.files.arrow_rows import ColumnarRows, batch_records, row_sizes, value_count
from engine.data.records import MAX_ROW_BYTES, Record, SourceForm

_MAGIC = b"PAR1"
_BATCH_ROWS = 256

# If values are shared, each batch holds all of them.
_SHARED_BATCH_ROWS = 4096
_MAX_FOOTER_BYTES = 64 << 20

# The memory of a batch, unless a single row takes more.
_BATCH_BYTES = 64 << 20

# Values in the lists of a column: one row may hold all of them, and a run of equal ones takes no room in the file.
_RATIO_COUNTS_FROM_VALUES = 32 << 20

_MAX_HEADER_BYTES = 1 << 20
_HEADER_GUESS_BYTES = 512
_MAX_DEPTH = 16
_DICTIONARY_PAGE = 2
_PREFIXED = 7  # DELTA_BYTE_ARRAY: a value may repeat all of the one before it
_BY_DICTIONARY = (2, 8)

# Fields of PageHeader, and of the headers inside it.
_TYPE, _UNPACKED, _PACKED, _DATA, _DICTIONARY, _DATA_V2 = 1, 2, 3, 5, 7, 8
_VALUES, _ENCODING, _ENCODING_V2 = 1, 2, 4


class Page(NamedTuple):
    """The fields of a page's header."""

    unpacked_bytes: int
    packed_bytes: int
    values: int
    is_dictionary: bool
    is_prefixed: bool
    uses_dictionary: bool


def read_pages(file: BinaryIO, start: int, size: int) -> Iterator[Page]:
    """Yield the pages of a column chunk, which takes `size` bytes from `start` on.

    Raises:
        ValueError: If a header is damaged.
    """
    place, end = start, start + size
    while place < end:
        header, header_bytes = _read_header(file, place, end)
        packed, unpacked = header.get(_PACKED), header.get(_UNPACKED)
        if not isinstance(packed, int) or not isinstance(unpacked, int) or packed < 0 or unpacked < 0:
            raise ValueError("a page has no size")
        is_dictionary = header.get(_TYPE) == _DICTIONARY_PAGE
        inner = header.get(_DICTIONARY if is_dictionary else _DATA) or header.get(_DATA_V2) or {}
        encoding = inner.get(_ENCODING_V2 if _DATA_V2 in header and not is_dictionary else _ENCODING)
        values = max(0, int(inner.get(_VALUES, 0)))
        yield Page(unpacked, packed, values, is_dictionary, encoding == _PREFIXED, encoding in _BY_DICTIONARY)
        place += header_bytes + packed


def _read_header(file: BinaryIO, place: int, end: int) -> tuple[dict[int, Any], int]:
    size = _HEADER_GUESS_BYTES
    while True:
        file.seek(place)
        data = file.read(min(size, end - place))
        try:
            reader = _Compact(data)
            return reader.struct(), reader.place
        except IndexError as error:
            if len(data) < size or size >= _MAX_HEADER_BYTES:
                raise ValueError("a page's header breaks off") from error
            size *= 16


class _Compact:
    """Reads Thrift's compact protocol as far as page headers need it; binary values are skipped."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.place = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        if depth > _MAX_DEPTH:
            raise ValueError("a page's header is nested too deeply")
        fields: dict[int, Any] = {}
        field = 0
        while (head := self._byte()) != 0:
            field = field + (head >> 4) if head >> 4 else self._read_signed()
            fields[field] = self._value(head & 0x0F, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):  # a boolean field is its own head
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._read_signed()
        if kind == 7:
            return self._skip(8)
        if kind == 8:
            return self._skip(self._read_unsigned())
        if kind == 12:
            return self.struct(depth + 1)
        if kind in (9, 10):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._read_unsigned()
            for _ in range(count):
                self._skip(1) if head & 0x0F in (1, 2) else self._value(head & 0x0F, depth + 1)
            return None
        raise ValueError("a page's header is damaged")

    def _byte(self) -> int:
        self.place += 1
        return self._data[self.place - 1]

    def _skip(self, count: int) -> None:
        self.place += count
        if self.place > len(self._data):
            raise IndexError

    def _read_unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a page's header is damaged")

    def _read_signed(self) -> int:
        value = self._read_unsigned()
        return (value >> 1) ^ -(value & 1)


class _Column(NamedTuple):
    """How a column of one row group becomes rows."""

    path: str
    open_bytes: int  # its dictionary and its largest page, unpacked
    packed_bytes: int  # of those two
    row_bytes: float  # about the most that a row takes apart from shared values
    sharing_values: int  # how many values may repeat one entry of the dictionary; 0 where that is harmless


class ParquetRows(ColumnarRows):
    """A Parquet file."""

    label = "Parquet"
    endings = (".parquet",)
    magics = (_MAGIC,)
    form = SourceForm("parquet", "Parquet")
    what_is_smaller = "pages and row groups"

    def _read_groups(self) -> None:
        with self._open() as file:
            self._metadata = file.metadata
            self.columns = tuple(file.schema_arrow.names)
        self._group_rows = [self._metadata.row_group(group).num_rows for group in range(self._metadata.num_row_groups)]

    def _group_records(self, group: int, row: int, first_row: int) -> Iterator[Record]:
        metadata = self._metadata
        with open_regular(self._path) as file:
            columns = [self._column(file, metadata, group, column) for column in range(metadata.num_columns)]
        open_bytes = sum(column.open_bytes for column in columns)
        self._refuse_growth(open_bytes, sum(column.packed_bytes for column in columns), "pages")
        shared_columns = []
        row_bytes = 1.0
        for column in columns:
            largest = self._largest_row(metadata, group, column) if column.sharing_values else 0
            if largest > 2 * MAX_ROW_BYTES:
                shared_columns.append(column.path)
            row_bytes += column.row_bytes + (0 if largest > 2 * MAX_ROW_BYTES else largest)
        most = _SHARED_BATCH_ROWS if shared_columns else _BATCH_ROWS
        with self._open(metadata, shared_columns) as reader:
            for batch in reader.iter_batches(batch_size=_rows_at_once(row_bytes, most), row_groups=[group]):
                skip = max(0, first_row - row)
                if skip < batch.num_rows:
                    yield from batch_records(batch.slice(skip), row + skip)
                row += batch.num_rows

    def _largest_row(self, metadata: Any, group: int, column: _Column) -> int:
        """Return the bytes of the largest row that shares values, without writing any out."""
        largest = count = 0
        with self._open(metadata, [column.path]) as reader:
            rows = _rows_at_once(column.row_bytes, _SHARED_BATCH_ROWS)
            for batch in reader.iter_batches(batch_size=rows, row_groups=[group], columns=[column.path]):
                largest = max(largest, int(row_sizes(batch.column(0)).max(initial=0)))
                count += value_count(batch.column(0))
                if count >= column.sharing_values:  # what follows is written out in the file itself
                    break
        return largest

    def _column(self, file: BinaryIO, metadata: Any, group: int, number: int) -> _Column:
        chunk = metadata.row_group(group).column(number)
        column = metadata.schema.column(number)
        nested = column.max_repetition_level > 0
        start = chunk.data_page_offset
        if chunk.dictionary_page_offset:
            start = min(start, chunk.dictionary_page_offset)
        dictionary = largest = Page(0, 0, 0, False, False, False)
        values = shared_values = packed = own_bytes = 0
        value_bytes = 0.0  # the most that a value takes which is shared with no other
        for page in read_pages(file, start, chunk.total_compressed_size):
            packed += page.packed_bytes
            if page.is_dictionary:
                dictionary = max(dictionary, page)
                continue
            largest = max(largest, page)
            values += page.values
            if page.uses_dictionary:
                shared_values += page.values
                continue
            own_bytes += page.unpacked_bytes
            value_bytes = max(value_bytes, page.unpacked_bytes / (1 if page.is_prefixed else max(1, page.values)))
        if nested and values > _RATIO_COUNTS_FROM_VALUES:
            self._refuse_growth(2 * values, packed, "lists", at_once=False)
        # One row may hold all values of a list column, so the average is used.
        row_bytes = own_bytes / max(1, metadata.row_group(group).num_rows) if nested else value_bytes
        at_once = shared_values if nested else min(shared_values, _BATCH_ROWS)
        sharing = dictionary.unpacked_bytes * at_once > _BATCH_BYTES
        if sharing and column.physical_type != "BYTE_ARRAY":  # such values cannot be held once
            if nested:
                raise self._too_large("lists")
            row_bytes = max(row_bytes, dictionary.unpacked_bytes)
            sharing = False
        return _Column(
            column.path,
            dictionary.unpacked_bytes + largest.unpacked_bytes,
            dictionary.packed_bytes + largest.packed_bytes,
            row_bytes,
            shared_values if sharing else 0,
        )

    def _open(self, metadata: Any = None, shared: list[str] | None = None) -> Any:
        # Imported here: half the programs that import this module never see a Parquet file.
        from pyarrow.parquet import ParquetFile

        with open_regular(self._path) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 8))
            tail = file.read(8)
        if tail[4:] != _MAGIC or int.from_bytes(tail[:4], "little") > min(size, _MAX_FOOTER_BYTES):
            raise self._damage_error()
        # Else a whole row group is read, and held together with what is made of it.
        reading = {"memory_map": False, "pre_buffer": False, "buffer_size": 1 << 20}
        return ParquetFile(self._path, metadata=metadata, read_dictionary=shared, **reading)


def _rows_at_once(row_bytes: float, most: int) -> int:
    return max(1, min(most, int(_BATCH_BYTES / max(1.0, row_bytes))))
