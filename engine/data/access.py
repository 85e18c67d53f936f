"""Which files may be read: regular ones, inside the allowed folders, and nothing by address."""

import os
import re
import stat
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from engine.errors import DatasetError

_ADDRESS = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class DataAccess:
    """Where datasets may lie.

    Args:
        roots: Folders that a path must end up in, symlinks followed; None lets any regular file be read, as suits the
            terminal, where a person reads with their own rights.
    """

    roots: tuple[Path, ...] | None = None

    def resolve(self, source: str) -> Path:
        """Find the file or folder that `source` names.

        Raises:
            DatasetError: If it is an address, lies outside the allowed folders, or is not there.
        """
        if _ADDRESS.match(source):
            raise DatasetError(
                f"{shown_name(source)} is an address, and Loratory fetches none.",
                "Download the file and choose it, or give the id of a dataset on the Hub.",
            )
        if "\0" in source:
            raise DatasetError("The dataset's name holds a NUL byte.", "Type it again.")
        if self.roots is not None:
            # Before anything else, so that a refusal does not tell whether such a file exists.
            self._refuse_outside(Path(source).expanduser())
        try:
            path = Path(source).expanduser().resolve(strict=True)
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
        if self.roots is not None:
            self._refuse_outside(path)
        return path

    def _refuse_outside(self, path: Path) -> None:
        try:
            resolved = path.resolve()
        except (OSError, RuntimeError):  # a name too long, or links in a circle: nothing inside either
            resolved = None
        if resolved is None or not any(resolved.is_relative_to(root.resolve()) for root in self.roots or ()):
            raise DatasetError(
                "That dataset lies outside the folders that this page may read.",
                "Upload the file instead, or name its folder in LORATORY_DATA and start Loratory again.",
            )


ANY_FILE = DataAccess()


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, never waiting on a pipe and never reading a device.

    Raises:
        DatasetError: If it is no regular file, or cannot be read.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise DatasetError(f"{shown_name(path.name)} is no regular file.", "Choose a file with rows in it.")
        return os.fdopen(descriptor, "rb")
    except OSError as error:
        raise DatasetError(
            f"The dataset {shown_name(path.name)} cannot be read ({(error.strerror or 'I/O error').lower()}).",
            "Check its permissions.",
        ) from error


def shown_name(name: str, limit: int = 80) -> str:
    """A file's name, safe to show: one line, no invisible or direction-changing characters, not endless."""
    clean = "".join(
        letter if letter.isprintable() and unicodedata.bidirectional(letter) not in _BIDI_CONTROLS else "�"
        for letter in name[: limit * 4]
    )
    return clean if len(clean) <= limit else f"{clean[: limit // 2]}…{clean[-limit // 3 :]}"


_BIDI_CONTROLS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
