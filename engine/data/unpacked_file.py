"""A gzipped file that can only be read by jumping about in it, unpacked beside the other caches."""

import os
import tempfile
import time
import weakref
from pathlib import Path

from engine.data.access import open_regular, shown_name
from engine.data.gzip_pieces import GZIP_MAGIC, unpacked_pieces
from engine.data.row_source import fingerprint_of
from engine.errors import DatasetError

_FOLDER = "unpacked"
_KEPT_SECONDS = 7 * 24 * 3600.0


def gzipped_magic(path: Path, size: int = 4) -> bytes:
    """The first bytes of what a gzip file holds; empty for any other file, and for one that is damaged."""
    with open_regular(path) as file:
        if file.read(2) != GZIP_MAGIC:
            return b""
        file.seek(0)
        try:
            return next(unpacked_pieces(file, path.name, size), b"")
        except DatasetError:
            return b""


class UnpackedFile:
    """What a gzip file holds, as a file of its own.

    What nobody has read for a week is removed when another is unpacked; without a cache folder, it goes with this object.

    Args:
        path: The gzip file.
        cache_folder: Where it is kept for the next reader; None keeps it nowhere.

    Raises:
        DatasetError: If it is damaged, a decompression bomb, or too large for the disk.
    """

    def __init__(self, path: Path, cache_folder: Path | None) -> None:
        if cache_folder is None:
            self.path = _write(path, Path(tempfile.gettempdir()))
            weakref.finalize(self, self.path.unlink, missing_ok=True)
            return
        folder = cache_folder / _FOLDER
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = folder / fingerprint_of(path)
        try:
            os.utime(self.path)
        except OSError:
            _remove_old(folder)
            _write(path, folder).replace(self.path)


def _write(path: Path, folder: Path) -> Path:
    descriptor, name = tempfile.mkstemp(prefix="loratory-", suffix=".part", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as target, open_regular(path) as file:
            for piece in unpacked_pieces(file, path.name):
                target.write(piece)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = (error.strerror or "I/O error").lower()
            raise DatasetError(
                f"{shown_name(path.name)} cannot be unpacked ({reason}).",
                "Make room on the disk, or unpack it yourself.",
            ) from error
        raise
    return Path(name)


def _remove_old(folder: Path) -> None:
    oldest = time.time() - _KEPT_SECONDS
    for file in folder.iterdir():
        try:
            if file.stat().st_mtime < oldest:
                file.unlink()
        except OSError:  # another process was quicker, or reads it
            continue
