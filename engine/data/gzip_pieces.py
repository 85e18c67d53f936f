"""What a gzip file holds, in pieces and never more than its size lets anybody expect."""

import gzip
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

from engine.data.access import shown_name
from engine.errors import DatasetError

GZIP_MAGIC = b"\x1f\x8b"

# Text shrinks three- to tenfold, very repetitive text a hundredfold; a bomb does a thousandfold.
MAX_RATIO = 200
RATIO_COUNTS_FROM_BYTES = 64 << 20

_PIECE_BYTES = 1 << 20


def unpacked_pieces(file: BinaryIO, name: str, piece_bytes: int = _PIECE_BYTES) -> Iterator[bytes]:
    """Unpack a file from its beginning.

    Args:
        file: At its beginning.
        name: Of the file, for errors.
        piece_bytes: The most that is unpacked at a time.

    Raises:
        DatasetError: If it is damaged, or a decompression bomb.
    """
    produced = 0
    unpacked = cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb"))
    while True:
        try:
            piece = unpacked.read(piece_bytes)
        except (EOFError, OSError, zlib.error) as error:
            raise DatasetError(
                f"{shown_name(name)} is damaged: its compressed data breaks off or is wrong after {produced:,} bytes.",
                "Download or compress it again.",
            ) from error
        if not piece:
            return
        produced += len(piece)
        if produced > RATIO_COUNTS_FROM_BYTES and produced > MAX_RATIO * max(file.tell(), 1):
            raise DatasetError(
                f"{shown_name(name)} grows more than {MAX_RATIO}-fold when it is unpacked.",
                "Unpack it yourself if you trust it, and choose the unpacked file.",
            )
        yield piece
