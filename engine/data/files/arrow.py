"""Rows of Arrow files and streams, Feather among them, a record batch at a time.

A file is its stream between two magics, so both are read as streams. The headers of messages are parsed here, before
anything is unpacked: a compressed buffer gives its unpacked size, and lists of nulls take no space at all.

Sources: Message.fbs and File.fbs of Apache Arrow's format; the internals of FlatBuffers.
"""

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from engine.data.files.access import open_regular
from engine.data.files.arrow_rows import ColumnarRows, batch_records
from engine.data.records import Record, SourceForm

_FILE_MAGIC = b"ARROW1"
_CONTINUATION = b"\xff\xff\xff\xff"
_MAX_MESSAGES = 200_000
_MAX_HEADER_BYTES = 16 << 20
_MAX_VALUES = 32 << 20  # of a batch, those in lists counted one by one: their sizes are computed at once
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3  # MessageHeader


class _Message(NamedTuple):
    """Where a message is in the file."""

    kind: int
    start: int
    body: int
    end: int
    rows: int


class ArrowRows(ColumnarRows):
    """An Arrow file or stream."""

    label = "Arrow"
    endings = (".arrow", ".feather")
    magics = (_FILE_MAGIC, _CONTINUATION)
    form = SourceForm("arrow", "Arrow")
    article = "an"
    what_is_smaller = "record batches"

    def _read_groups(self) -> None:
        with open_regular(self._path) as file:
            messages = list(_messages(file))
            schema = _open_stream(file, messages[:1]).schema
        self._schema_and_dictionaries = [message for message in messages if message.kind != _BATCH]
        self._batches = [message for message in messages if message.kind == _BATCH]
        self._group_rows = [message.rows for message in self._batches]
        for field in schema:
            if not _is_supported(field.type):
                raise NotImplementedError(f"the column {field.name[:80]} of type {str(field.type)[:80]}")
        self.columns = tuple(schema.names)

    def _group_records(self, group: int, row: int, first_row: int) -> Iterator[Record]:
        batch = self._batches[group]
        messages = [message for message in self._schema_and_dictionaries if message.start < batch.start]
        with open_regular(self._path) as file:
            for message in (*messages, batch):
                self._require_bounded(file, message)
            # Offsets in the file are validated before use.
            record_batch = _open_stream(file, [*messages, batch]).read_next_batch()
        record_batch.validate(full=True)
        skip = max(0, first_row - row)
        yield from batch_records(record_batch.slice(skip), row + skip)

    def _require_bounded(self, file: BinaryIO, message: _Message) -> None:
        if message.kind == _SCHEMA:
            return
        file.seek(message.start + 8)
        header = _Table(file.read(message.body - message.start - 8)).table(2)
        if message.kind == _DICTIONARY:
            header = header.table(1)
        if sum(max(0, values) for values, _ in header.pairs(1)) > _MAX_VALUES:
            raise self._too_large("values")
        packed = unpacked = 0
        is_compressed = header.has(3)
        for offset, size in header.pairs(2):
            packed += size
            if is_compressed and size >= 8:
                file.seek(message.body + offset)
                whole = int.from_bytes(file.read(8), "little", signed=True)
                size = size if whole < 0 else whole  # -1: this one is not compressed
            unpacked += size
        self._refuse_growth(unpacked, packed, "record batches")


def _open_stream(file: BinaryIO, messages: list[_Message]) -> Any:
    import pyarrow

    data = bytearray()
    for message in messages:
        file.seek(message.start)
        data += file.read(message.end - message.start)
    return pyarrow.ipc.open_stream(pyarrow.py_buffer(data))


def _messages(file: BinaryIO) -> Iterator[_Message]:
    """Yield the messages of a file, by their headers."""
    size = file.seek(0, 2)
    file.seek(0)
    place = 8 if file.read(len(_FILE_MAGIC)) == _FILE_MAGIC else 0
    count = 0
    while place + 8 <= size:
        file.seek(place)
        mark, header_bytes = struct.unpack("<4si", file.read(8))
        if mark != _CONTINUATION or not 0 <= header_bytes <= _MAX_HEADER_BYTES:
            raise ValueError("a message has no header")
        if header_bytes == 0:  # the end of the stream
            break
        header = _Table(file.read(header_bytes))
        kind, body = header.number(1, "<B"), place + 8 + header_bytes
        end = body + header.number(3, "<q")
        count += 1
        if not body <= end <= size or count > _MAX_MESSAGES or (kind == _SCHEMA) != (count == 1):
            raise ValueError("the messages do not fit the file")
        rows = header.table(2).number(0, "<q") if kind == _BATCH else 0
        if rows < 0:
            raise ValueError("a batch has no rows")
        yield _Message(kind, place, body, end, rows)
        place = end
    if not count:
        raise ValueError("there is no schema")


class _Table:
    """A table of a FlatBuffer, by where it is referred to; fields are counted from 0, and absent ones are 0.

    Raises:
        ValueError: If it is damaged.
    """

    def __init__(self, data: bytes, reference: int = 0) -> None:
        self._data = data
        self._place = reference + self._read_at(reference, "<I")
        self._fields = self._place - self._read_at(self._place, "<i")
        self._fields_bytes = self._read_at(self._fields, "<H")

    def has(self, field: int) -> bool:
        return self._at(field) > 0

    def number(self, field: int, kind: str) -> int:
        """Return a number, in the notation of `struct`."""
        return self._read_at(self._at(field), kind) if self.has(field) else 0

    def table(self, field: int) -> "_Table":
        return _Table(self._data, self._at(field))

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """Return the elements of a vector of two 64-bit numbers each."""
        if not self.has(field):
            return []
        place = self._at(field) + self._read_at(self._at(field), "<I")
        begin, size = place + 4, 16 * self._read_at(place, "<I")
        if begin + size > len(self._data):
            raise ValueError("a header breaks off")
        return [(first, second) for first, second in struct.iter_unpack("<qq", self._data[begin : begin + size])]

    def _at(self, field: int) -> int:
        entry = 4 + 2 * field
        offset = self._read_at(self._fields + entry, "<H") if entry < self._fields_bytes else 0
        return self._place + offset if offset else 0

    def _read_at(self, place: int, kind: str) -> int:
        if not 0 <= place <= len(self._data) - struct.calcsize(kind):
            raise ValueError("a header breaks off")
        return int(struct.unpack_from(kind, self._data, place)[0])


def _is_supported(kind: Any) -> bool:
    """Return whether rows of a type can be measured before they are written out; views and runs share what they hold."""
    from pyarrow import BaseExtensionType, types

    if isinstance(kind, BaseExtensionType):
        return _is_supported(kind.storage_type)
    if types.is_dictionary(kind):
        return _is_supported(kind.value_type) and not types.is_nested(kind.value_type)
    nested = "struct map list large_list fixed_size_list".split()
    if any(getattr(types, f"is_{name}")(kind) for name in nested):
        return all(_is_supported(kind.field(number).type) for number in range(kind.num_fields))
    plain = "null primitive decimal string large_string binary large_binary fixed_size_binary".split()
    return any(getattr(types, f"is_{name}")(kind) for name in plain)
