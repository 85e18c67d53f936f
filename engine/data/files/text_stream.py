"""A text file as a stream of UTF-8 bytes and lines, without gzip, byte order mark, UTF-16 or old line ends."""

import codecs
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from loratory.engine.data.files.access import GZIP_MAGIC, open_regular, shown_name, unpacked_pieces
from loratory.engine.data.records import MAX_ROW_BYTES
from loratory.engine.errors import DatasetError

CHUNK_BYTES = 1 << 20
SNIFF_BYTES = 1 << 16

_NOT_TEXT: tuple[tuple[bytes, str], ...] = (
    (b"\xd0\xcf\x11\xe0", "an old or an encrypted Office document"),
    *((bytes((0x80, version)), "a pickle, which is never opened because it can run code") for version in range(2, 6)),
    (b"BZh", "compressed with bzip2"),
    (b"\xfd7zXZ\x00", "compressed with xz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-zip archive"),
    (b"%PDF", "a PDF document"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"FEA1", "a Feather file of version 1"),
    (b"GGUF", "a GGUF model"),
)


class TextStream:
    """A file opened as UTF-8. Offsets count bytes of the UTF-8 stream, after everything is unwrapped.

    Raises:
        DatasetError: If it cannot be read, or is not text.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes_read = self._mark_bytes = 0  # of the file on disk, for progress
        with open_regular(path) as file:
            self.size_bytes = file.seek(0, 2)
            file.seek(0)
            self.is_gzipped = file.read(2) == GZIP_MAGIC
            file.seek(0)
            start = next(self._raw(file, 0), b"")[:SNIFF_BYTES]
        for magic, what in _NOT_TEXT:
            if start.startswith(magic):
                raise DatasetError(
                    f"{shown_name(path.name)} is {what}.",
                    "Export the rows as JSONL, CSV, Excel, Parquet or Arrow, and choose that file.",
                )
        self.encoding, self._mark_bytes = _encoding_of(start)
        self._old_line_ends = False
        self._old_line_ends = b"\r" in self.head() and b"\n" not in self.head()

    @property
    def seeks(self) -> bool:
        """Whether an offset of the stream is one of the file."""
        return not self.is_gzipped and self.encoding == "utf-8"

    def head(self, size: int = SNIFF_BYTES) -> bytes:
        """Return the first bytes of the stream."""
        head = b""
        for chunk in self.chunks():
            head += chunk
            if len(head) >= size:
                break
        return head[:size]

    def chunks(self, offset: int = 0) -> Iterator[bytes]:
        """Yield the stream in pieces of about a megabyte; from an `offset` on only where it `seeks`.

        Raises:
            DatasetError: If the file turns out to be damaged, or to be a decompression bomb.
        """
        with open_regular(self.path) as file:
            for piece in self._decoded(self._raw(file, offset)):
                if piece:
                    yield piece.replace(b"\r", b"\n") if self._old_line_ends else piece

    def _decoded(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        if self.encoding == "utf-8":
            yield from pieces
            return
        decoder = codecs.getincrementaldecoder(self.encoding)(errors="surrogatepass")
        for piece in pieces:
            yield decoder.decode(piece).encode("utf-8", errors="surrogatepass")
        with contextlib.suppress(UnicodeDecodeError):  # an incomplete character; its row is cut off too, and reported
            yield decoder.decode(b"", final=True).encode("utf-8", errors="surrogatepass")

    def _raw(self, file: BinaryIO, offset: int) -> Iterator[bytes]:
        """Yield the bytes of the file, without gzip and without its byte order mark."""
        skip = self._mark_bytes + offset
        if not self.is_gzipped:
            file.seek(skip)
            skip = 0
        for piece in (
            unpacked_pieces(file, self.path.name, CHUNK_BYTES)
            if self.is_gzipped
            else iter(lambda: file.read(CHUNK_BYTES), b"")
        ):
            self.bytes_read = file.tell()
            yield piece[skip:]
            skip = max(0, skip - len(piece))


def _encoding_of(start: bytes) -> tuple[str, int]:
    """Return the name of a Python codec, and the length of the byte order mark."""
    if start.startswith(codecs.BOM_UTF8):
        return "utf-8", 3
    if start.startswith(codecs.BOM_UTF16_LE):
        return "utf-16-le", 2
    if start.startswith(codecs.BOM_UTF16_BE):
        return "utf-16-be", 2
    return "utf-8", 0


class Line(NamedTuple):
    """One line of a file: its bytes up to the bound, and how long it really is."""

    data: bytes
    number: int  # from 1
    offset: int
    size_bytes: int


def read_lines(stream: TextStream, offset: int = 0, number: int = 1, *, blank: bool = False) -> Iterator[Line]:
    """Split a stream into lines at line feeds alone, as U+2028 may be inside a string; blank ones only where asked for.

    Of a line beyond MAX_ROW_BYTES, only the beginning is returned, with its true size.
    """
    rest = b""  # beginning of a line that continues in the next chunk
    beyond = 0  # bytes of that line that were dropped
    for chunk in stream.chunks(offset):
        first, *others = chunk.split(b"\n")
        room = MAX_ROW_BYTES - len(rest)
        rest += first[:room]
        beyond += max(0, len(first) - room)
        if not others:
            continue
        size = len(rest) + beyond
        if blank or (rest and not rest.isspace()):
            yield Line(rest, number, offset, size)
        number += 1
        offset += size + 1
        rest = others.pop()
        beyond = 0
        for data in others:
            if blank or (data and not data.isspace()):
                yield Line(data, number, offset, len(data))
            number += 1
            offset += len(data) + 1
    if rest and not rest.isspace():
        yield Line(rest, number, offset, len(rest) + beyond)
