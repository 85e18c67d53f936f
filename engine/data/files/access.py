"""Opening files: access rules, gzip, fingerprints and caches."""

import contextlib
import gzip
import hashlib
import os
import re
import stat
import tempfile
import unicodedata
import weakref
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from pydantic import BaseModel

from loratory.engine.errors import DatasetError, StorageError
from loratory.engine.files import write_atomically
from loratory.engine.paths import AllowedPaths

_ADDRESS = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class DataAccess:
    """The folders that datasets may be read from: a path must resolve into one of `roots`; None allows any file.

    In a lab, `allowed` decides instead.
    """

    roots: tuple[Path, ...] | None = None
    allowed: AllowedPaths | None = None

    def resolve(self, source: str) -> Path:
        """Find the file or folder that `source` names.

        Raises:
            DatasetError: If it is a URL, is outside the allowed folders, or does not exist.
        """
        if _ADDRESS.match(source):
            raise DatasetError(
                f"{shown_name(source)} is a URL; Loratory reads only files and Hub datasets.",
                "Download the file and choose it, or give the id of a dataset on the Hub.",
            )
        if "\0" in source:
            raise DatasetError("The dataset's name holds a NUL byte.", "Type it again.")
        if self.allowed is not None:
            source = str(self.allowed.read(source, DatasetError))
        elif self.roots is not None:
            # Checked first: an error must not reveal whether such a file exists.
            self._refuse_outside(Path(source).expanduser())
        try:
            return Path(source).expanduser().resolve(strict=True)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DatasetError(
                f"The file or folder {shown_name(source)} was not found.",
                "Check the path. A dataset on the Hub is named owner/name, a sample sample:NAME.",
            ) from error
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or "it cannot be resolved"
            raise DatasetError(
                f"The dataset {shown_name(source)} cannot be opened ({reason.lower()}).",
                "Choose a file, a folder, the id of a dataset on the Hub, or sample:NAME.",
            ) from error

    def _refuse_outside(self, path: Path) -> None:
        try:
            target = path.resolve()
        except (OSError, RuntimeError):  # a name too long, or links in a circle: nothing inside either
            target = None
        if target is None or not any(target.is_relative_to(root.resolve()) for root in self.roots or ()):
            roots = ", ".join(str(root) for root in self.roots or ())
            raise DatasetError(
                f"Not found in the folders that this page may read: {roots}.",
                "Check the path or upload the file; or name its folder in LORATORY_DATA and start Loratory again.",
            )


ANY_FILE = DataAccess()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; never wait for a pipe or read a device.

    Raises:
        DatasetError: If it is not a regular file, or cannot be read.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise DatasetError(f"{shown_name(path.name)} is not a regular file.", "Choose a file with rows in it.")
        return os.fdopen(descriptor, "rb")
    except OSError as error:
        raise DatasetError(
            f"The dataset {shown_name(path.name)} cannot be read ({(error.strerror or 'I/O error').lower()}).",
            "Check its permissions.",
        ) from error


def shown_name(name: str, limit: int = 80) -> str:
    """Return a file's name, safe to show: one short line without invisible or bidirectional control characters."""
    clean = "".join(
        letter if letter.isprintable() and unicodedata.bidirectional(letter) not in _BIDI_CONTROLS else "�"
        for letter in name[: limit * 4]
    )
    return clean if len(clean) <= limit else f"{clean[: limit // 2]}…{clean[-limit // 3 :]}"


_BIDI_CONTROLS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})


def fingerprint_of(path: Path) -> str:
    """Return sha256 over a file's size, time of change, and its first, middle and last 64 KiB."""
    block_bytes = 1 << 16
    with open_regular(path) as file:
        size = file.seek(0, 2)
        digest = hashlib.sha256(f"{size} {path.stat().st_mtime_ns}".encode())
        for offset in sorted({0, max(0, (size - block_bytes) // 2), max(0, size - block_bytes)}):
            file.seek(offset)
            digest.update(file.read(block_bytes))
    return digest.hexdigest()


def write_cached(cache_file: Path | None, value: BaseModel) -> None:
    """Cache a value for other processes; without a folder, do nothing."""
    if cache_file is not None:
        with contextlib.suppress(StorageError):  # without the cache, only time is lost
            write_atomically(cache_file, value.model_dump_json(), makes_folder=True)


GZIP_MAGIC = b"\x1f\x8b"

# Text shrinks three- to tenfold, very repetitive text a hundredfold; a bomb does a thousandfold.
MAX_RATIO = 200
RATIO_COUNTS_FROM_BYTES = 64 << 20


def unpacked_pieces(file: BinaryIO, name: str, piece_bytes: int = 1 << 20) -> Iterator[bytes]:
    """Unpack a file, opened at its beginning, with at most `piece_bytes` at a time; `name` is for errors.

    Raises:
        DatasetError: If it is damaged, or a decompression bomb.
    """
    size = 0
    unpacked = cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb"))
    while True:
        try:
            piece = unpacked.read(piece_bytes)
        except (EOFError, OSError, zlib.error) as error:
            raise DatasetError(
                f"{shown_name(name)} is damaged: its compressed data breaks off or is wrong after {size:,} bytes.",
                "Download or compress it again.",
            ) from error
        if not piece:
            return
        size += len(piece)
        if size > RATIO_COUNTS_FROM_BYTES and size > MAX_RATIO * max(file.tell(), 1):
            raise DatasetError(
                f"{shown_name(name)} grows more than {MAX_RATIO}-fold when it is unpacked.",
                "Unpack it yourself if you trust it, and choose the unpacked file.",
            )
        yield piece


def gzipped_start(path: Path, size: int) -> bytes:
    """Return the first unpacked bytes of a gzip file; empty for any other or damaged file."""
    with open_regular(path) as file:
        if file.read(2) != GZIP_MAGIC:
            return b""
        file.seek(0)
        try:
            return next(unpacked_pieces(file, path.name, size), b"")
        except DatasetError:
            return b""


class UnpackedFile:
    """The content of a gzip file, unpacked into a temporary file that is removed with this object.

    Attributes:
        remove: Removes the file at once: an error that refers to this object would keep it.

    Raises:
        DatasetError: If it is damaged, a decompression bomb, or too large for the disk.
    """

    def __init__(self, path: Path) -> None:
        descriptor, name = tempfile.mkstemp(prefix="loratory-")
        self.path = Path(name)
        self.remove = weakref.finalize(self, self.path.unlink, missing_ok=True)
        try:
            with os.fdopen(descriptor, "wb") as target, open_regular(path) as file:
                for piece in unpacked_pieces(file, path.name):
                    target.write(piece)
        except DatasetError:
            self.remove()
            raise
        except OSError as error:
            self.remove()
            raise DatasetError(
                f"{shown_name(path.name)} cannot be unpacked ({(error.strerror or 'I/O error').lower()}).",
                "Make room on the disk, or unpack it yourself.",
            ) from error
