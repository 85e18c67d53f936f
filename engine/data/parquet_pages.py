"""How large the pages of a Parquet file become, read from their headers before any of them is unpacked.

Sources: parquet.thrift of parquet-format (PageHeader, DictionaryPageHeader, DataPageHeader, DataPageHeaderV2, Encoding); the
compact protocol of Apache Thrift.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

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
    """What a page's header says."""

    unpacked_bytes: int
    packed_bytes: int
    values: int
    is_dictionary: bool
    is_prefixed: bool
    uses_dictionary: bool


def read_pages(file: BinaryIO, start: int, size: int) -> Iterator[Page]:
    """The pages of a column chunk, which takes `size` bytes from `start` on.

    Raises:
        ValueError: If a header is damaged.
    """
    place, end = start, start + size
    while place < end:
        header, header_bytes = _read_header(file, place, end)
        packed, unpacked = header.get(_PACKED), header.get(_UNPACKED)
        if not isinstance(packed, int) or not isinstance(unpacked, int) or packed < 0 or unpacked < 0:
            raise ValueError("a page has no size")
        yield _page(header, unpacked, packed)
        place += header_bytes + packed


def _page(header: dict[int, Any], unpacked: int, packed: int) -> Page:
    is_dictionary = header.get(_TYPE) == _DICTIONARY_PAGE
    inner = header.get(_DICTIONARY if is_dictionary else _DATA) or header.get(_DATA_V2) or {}
    encoding = inner.get(_ENCODING_V2 if _DATA_V2 in header and not is_dictionary else _ENCODING)
    return Page(
        unpacked,
        packed,
        max(0, int(inner.get(_VALUES, 0))),
        is_dictionary,
        encoding == _PREFIXED,
        encoding in _BY_DICTIONARY,
    )


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
    """Reads the compact protocol, as far as page headers need it; binary values are passed over."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.place = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        if depth > _MAX_DEPTH:
            raise ValueError("a page's header is nested too deeply")
        fields: dict[int, Any] = {}
        field = 0
        while (head := self._byte()) != 0:
            field = field + (head >> 4) if head >> 4 else self._signed()
            fields[field] = self._value(head & 0x0F, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):  # the truth of a field stands in its head
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 7:
            return self._skip(8)
        if kind == 8:
            return self._skip(self._unsigned())
        if kind == 12:
            return self.struct(depth + 1)
        if kind in (9, 10):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._unsigned()
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

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a page's header is damaged")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
