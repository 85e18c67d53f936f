"""Files that belong into a mirror: described by sizes and times where they did not change, and read where they did."""

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from engine.accounts.backup import HOME_FILES
from engine.files import FileStamp, sha256_of, stamp_of
from engine.runs.run import EVENTS_FILE
from engine.space.mirror_index import Index, MirroredFile, Part

_TEXT_BYTES = 16_384  # what is not longer is in the index itself
_CLOSED_BYTES = 262_144  # a piece of a log that has as many is not sent again
_LARGEST_PIECE_BYTES = 4_000_000
_TAIL_BYTES = 65_536  # of a worker's output
_OUTPUT_FILE = "worker.log"
_RUN_FILE = re.compile(r"runs/[^/]+/[^/]+/([^/]+)")


class Source(NamedTuple):
    """Where contents are: a part of a file, or all of it."""

    path: Path
    offset: int = 0
    size: int | None = None  # None for all
    stamp: FileStamp | None = None  # of a whole file when it was hashed

    def read(self) -> bytes | Path:
        """Return what to send.

        Raises:
            OSError: If the file is not there any more.
        """
        if self.size is None:
            return self.path
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def is_still(self, part_sha256: str, content: bytes | Path) -> bool:
        """Whether what was sent is what was hashed."""
        if isinstance(content, bytes):
            return hashlib.sha256(content).hexdigest() == part_sha256
        return stamp_of(self.path) == self.stamp


@dataclass(frozen=True)
class MirrorFiles:
    """What was found for one index."""

    index: Index
    sources: Mapping[str, Source]  # by hash; what did not change may be missing here


class Files:
    """Describes files for one index, and remembers them by inode, size and time."""

    def __init__(self, root: Path, before: Mapping[str, MirroredFile] | None = None) -> None:
        self._root = root
        self._before = before or {}  # what the mirror has, where this process did not put it there
        self._known_files: dict[str, tuple[FileStamp, MirroredFile]] = {}
        self.found: dict[str, MirroredFile] = {}
        self.sources: dict[str, Source] = {}

    def begin(self) -> None:
        """Begin a new look."""
        self.found, self.sources = {}, {}

    def end(self) -> MirrorFiles:
        """Return what was found, and forget what was not."""
        self._known_files = {name: entry for name, entry in self._known_files.items() if name in self.found}
        return MirrorFiles(Index(files=dict(sorted(self.found.items()))), self.sources)

    def knows(self, name: str) -> bool:
        """Whether a file is as it was when it was described or restored."""
        entry = self._known_files.get(name)
        return entry is not None and entry[0] == stamp_of(self._root / name)

    def remember(self, name: str, file: MirroredFile) -> None:
        """Take a file for what the mirror has: it was put there from it."""
        stamp = stamp_of(self._root / name)
        if stamp is not None:
            self._known_files[name] = stamp, file

    def add(self, name: str, *, sha256: str | None = None) -> None:
        """Describe one file, unless it is not there or not a plain file.

        Args:
            name: Below the home.
        """
        path = self._root / name
        with contextlib.suppress(OSError):  # deleted meanwhile: the next look shows it
            stamp = stamp_of(path)
            if stamp is None:
                return
            entry = self._known_files.get(name)
            if entry is None or entry[0] != stamp:
                file = self._describe(name, path, stamp, sha256)
                self._known_files[name] = stamp, file
            else:
                file = entry[1]
            self.found[name] = file
            # A worker's output is there with its end alone; all else from its begin.
            offset = max(0, stamp[1] - file.size) if _is_output(name) else 0
            for part in file.parts:
                is_piece = _is_output(name) or _is_log(name)
                source = Source(path, offset, part.size) if is_piece else Source(path, stamp=stamp)
                self.sources.setdefault(part.sha256, source)
                offset += part.size

    def _describe(self, name: str, path: Path, stamp: FileStamp, sha256: str | None) -> MirroredFile:
        size = stamp[1]
        if size > _TEXT_BYTES and _is_log(name):
            return self._growing(name, path, stamp)
        if size > _TEXT_BYTES and not _is_output(name):
            return MirroredFile(parts=(Part(sha256=sha256 or sha256_of(path), size=size),))
        with path.open("rb") as file:
            file.seek(max(0, size - _TAIL_BYTES) if _is_output(name) else 0)
            data = file.read(size - file.tell())
        data = data[: data.rfind(b"\n") + 1] if _is_log(name) else data
        with contextlib.suppress(UnicodeDecodeError):
            if len(data) <= _TEXT_BYTES:
                return MirroredFile(text=data.decode())
        return MirroredFile(parts=(_part_of(data),))

    def _growing(self, name: str, path: Path, stamp: FileStamp) -> MirroredFile:
        """Describe a log by the pieces that were described before, and what was added since."""
        entry, pieces = self._known_files.get(name), list[Part]()
        if entry is not None and entry[0][0] == stamp[0] and entry[1].size <= stamp[1]:
            pieces = _confirm_parts(path, entry[1].parts, only_last=True)
        elif entry is None and name in self._before:
            pieces = _confirm_parts(path, self._before[name].parts)
        if pieces and pieces[-1].size < _CLOSED_BYTES:
            pieces.pop()
        with path.open("rb") as file:
            file.seek(sum(piece.size for piece in pieces))
            while data := file.read(_LARGEST_PIECE_BYTES):
                whole = data[: data.rfind(b"\n") + 1]
                if not whole:
                    break
                pieces.append(_part_of(whole))
                file.seek(len(whole) - len(data), os.SEEK_CUR)
        return MirroredFile(parts=tuple(pieces))


def _part_of(data: bytes) -> Part:
    return Part(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def _is_log(name: str) -> bool:
    """Whether lines are added to a file, and to nothing but its end."""
    return (name in HOME_FILES and name.endswith(".jsonl")) or _is_of_run(name, EVENTS_FILE)


def _is_output(name: str) -> bool:
    """Whether a file is a worker's output; its end is enough."""
    return _is_of_run(name, _OUTPUT_FILE)


def _is_of_run(name: str, file: str) -> bool:
    match = _RUN_FILE.fullmatch(name)
    return match is not None and match[1] == file


def _confirm_parts(path: Path, parts: tuple[Part, ...], *, only_last: bool = False) -> list[Part]:
    """Return the pieces of a log that are still at its begin; all or none where the last one alone is read."""
    intact: list[Part] = []
    with path.open("rb") as file:
        if only_last and parts:
            intact = list(parts[:-1])
            file.seek(sum(part.size for part in intact))
        for part in parts[len(intact) :]:
            if hashlib.sha256(file.read(part.size)).hexdigest() != part.sha256:
                return [] if only_last else intact
            intact.append(part)
    return intact
