"""What this machine has that belongs into a mirror: looked at cheaply, by sizes and times, and read where it changed."""

import contextlib
import hashlib
import os
import re
import sqlite3
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from engine.accounts.accounts import open_database
from engine.accounts.backup import HOME_FILES, belongs_to_backup, copy_accounts
from engine.accounts.database import Database
from engine.accounts.limits import DATABASE_FILE
from engine.errors import EngineError, StorageError
from engine.executors.huggingface_jobs.layout import with_paths
from engine.files import sha256_of, size_and_time
from engine.paths import LoratoryHome
from engine.runs.checkpoints import MANIFEST, Checkpoint, damage, list_checkpoints
from engine.runs.provenance import read_provenance
from engine.runs.run import EVENTS_FILE, LIVE_STATES, Run, RunFolder
from engine.space.mirror_index import MOST_FILES, UPLOADS, Index, MirroredFile, Part, RunKey

_TEXT_BYTES = 16_384  # what is not longer is in the index itself
_CLOSED_BYTES = 262_144  # a piece of a log that has as many is not sent again
_LARGEST_PIECE_BYTES = 4_000_000
_TAIL_BYTES = 65_536  # of a worker's output
_OUTPUT_FILE = "worker.log"
_RUN_FILE = re.compile(r"runs/[^/]+/[^/]+/([^/]+)")
_UNSETTLED_SECONDS = 2.0  # a folder changed so recently may change again without another modification time

_Stamp = tuple[int, int, int]


class Source(NamedTuple):
    """Where contents are: a part of a file, or all of it."""

    path: Path
    offset: int = 0
    size: int | None = None  # None for all
    stamp: _Stamp | None = None  # of a whole file when it was hashed

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

    def is_still(self, part_sha256: str, sent: bytes | Path) -> bool:
        """Whether what was sent is what was hashed."""
        if isinstance(sent, bytes):
            return hashlib.sha256(sent).hexdigest() == part_sha256
        return _stamp_of(self.path) == self.stamp


@dataclass
class Found:
    """What was found for one index."""

    index: Index
    sources: dict[str, Source] = field(default_factory=dict)  # by hash; what did not change may be missing here


class Files:
    """Describes files for one index, and remembers them by inode, size and time."""

    def __init__(self, root: Path, before: Mapping[str, MirroredFile] | None = None) -> None:
        self._root = root
        self._before = before or {}  # what the mirror has, where this process did not put it there
        self._known: dict[str, tuple[_Stamp, MirroredFile]] = {}
        self.found: dict[str, MirroredFile] = {}
        self.sources: dict[str, Source] = {}

    def begin(self) -> None:
        """Begin a new look."""
        self.found, self.sources = {}, {}

    def end(self) -> None:
        """Forget what was not found."""
        self._known = {name: known for name, known in self._known.items() if name in self.found}

    def knows(self, name: str) -> bool:
        """Whether a file is as it was when it was described or restored."""
        known = self._known.get(name)
        return known is not None and known[0] == _stamp_of(self._root / name)

    def remember(self, name: str, file: MirroredFile) -> None:
        """Take a file for what the mirror has: it was put there from it."""
        stamp = _stamp_of(self._root / name)
        if stamp is not None:
            self._known[name] = stamp, file

    def add(self, name: str, *, sha256: str | None = None) -> None:
        """Describe one file, unless it is not there or not a plain file.

        Args:
            name: Below the home.
            sha256: Of its content, where that is known.
        """
        path = self._root / name
        with contextlib.suppress(OSError):  # deleted meanwhile: the next look shows it
            stamp = _stamp_of(path)
            if stamp is None:
                return
            known = self._known.get(name)
            if known is None or known[0] != stamp:
                file = self._describe(name, path, stamp, sha256)
                self._known[name] = stamp, file
            else:
                file = known[1]
            self.found[name] = file
            # A worker's output is there with its end alone; all else from its begin.
            offset = max(0, stamp[1] - file.size) if _is_output(name) else 0
            for part in file.parts:
                is_piece = _is_output(name) or _is_log(name)
                source = Source(path, offset, part.size) if is_piece else Source(path, stamp=stamp)
                self.sources.setdefault(part.sha256, source)
                offset += part.size

    def _describe(self, name: str, path: Path, stamp: _Stamp, sha256: str | None) -> MirroredFile:
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

    def _growing(self, name: str, path: Path, stamp: _Stamp) -> MirroredFile:
        """Describe a log by the pieces that were described before, and what was added since."""
        known, pieces = self._known.get(name), list[Part]()
        if known is not None and known[0][0] == stamp[0] and known[1].size <= stamp[1]:
            pieces = _confirmed(path, known[1].parts, only_last=True)
        elif known is None and name in self._before:
            pieces = _confirmed(path, self._before[name].parts)
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
    """Whether a file is a worker's output, of which the end is enough."""
    return _is_of_run(name, _OUTPUT_FILE)


def _is_of_run(name: str, file: str) -> bool:
    found = _RUN_FILE.fullmatch(name)
    return found is not None and found[1] == file


def _confirmed(path: Path, parts: tuple[Part, ...], *, only_last: bool = False) -> list[Part]:
    """Return the pieces of a log that are still at its begin; all or none where the last one alone is read."""
    found: list[Part] = []
    with path.open("rb") as file:
        if only_last and parts:
            found = list(parts[:-1])
            file.seek(sum(part.size for part in found))
        for part in parts[len(found) :]:
            if hashlib.sha256(file.read(part.size)).hexdigest() != part.sha256:
                return [] if only_last else found
            found.append(part)
    return found


def _stamp_of(path: Path) -> _Stamp | None:
    """Return inode, size and time of a plain file; None for links, folders and what is not there."""
    try:
        seen = path.lstat()
    except OSError:
        return None
    return (seen.st_ino, seen.st_size, seen.st_mtime_ns) if stat.S_ISREG(seen.st_mode) else None


class RunScan:
    """Looks at one run again and again.

    Attributes:
        is_training: Whether it is at work.
        title: What people call it.
    """

    def __init__(self, home: LoratoryHome, run: Run, before: Index | None = None) -> None:
        self._home = home
        self._run = run
        self._key = RunKey(run.owner, run.id)
        self._damaged: dict[str, tuple[int, int]] = {}  # checkpoints that were read and not whole, by their manifest
        self._inputs: tuple[str, ...] | None = None
        self._quiet: tuple[int, int] | None = None  # times of the folder for which nothing is to be sent any more
        self._seen: tuple[int, int] | None = None
        self.files = Files(home.root, before.files if before is not None else None)
        self.is_training = False
        self.title = run.id

    def look(self) -> Found | None:
        """Return what belongs into the mirror; None where nothing can have changed since the last look.

        Raises:
            StorageError: If the run cannot be read, or has too many files.
        """
        folder = self._run.folder
        quiet = _folder_times(folder)
        if quiet is not None and quiet == self._quiet:
            return None
        files, self._seen = self.files, None
        files.begin()
        for path in self._inputs_of(folder):
            files.add(path)
        for path in _names_below(folder.path, self._key.folder):
            if self._key.may_have(path):
                files.add(path)
        self._add_checkpoints(folder)
        state = folder.read_state()
        self.is_training = state.state in LIVE_STATES
        if self.title == self._run.id:
            self.title = read_provenance(folder).title or self.title
        # A worker writes into files without a trace in the folder's time; once it has ended, all else leaves one.
        self._seen = quiet if state.is_final and not folder.has_living_worker() else None
        files.end()
        if len(files.found) > MOST_FILES:
            raise StorageError(f"It has {len(files.found):,} files.", f"At most {MOST_FILES:,} are saved.")
        return Found(Index(files=dict(sorted(files.found.items()))), dict(files.sources))

    def settle(self) -> None:
        """Take what was found last for sent: an unchanged run that has ended costs two looks at folders from now on."""
        self._quiet = self._seen

    def _add_checkpoints(self, folder: RunFolder) -> None:
        """Add the newest checkpoint that is whole, and the best one, to which a run may go back at its end."""
        newest = best = None
        for checkpoint in reversed(list_checkpoints(folder.checkpoints)):
            wanted = newest is None or (best is None and checkpoint.manifest.best)
            if wanted and self._is_whole(checkpoint):
                newest = newest or checkpoint
                best = checkpoint if best is None and checkpoint.manifest.best else best
        for one in {one.step: one for one in (newest, best) if one is not None}.values():
            prefix = f"{self._key.folder}/checkpoints/{one.folder.name}"
            for name, told in one.manifest.files.items():
                if self._key.may_have(f"{prefix}/{name}"):
                    self.files.add(f"{prefix}/{name}", sha256=told.sha256)
            self.files.add(f"{prefix}/{MANIFEST}")

    def _is_whole(self, checkpoint: Checkpoint) -> bool:
        prefix = f"{self._key.folder}/checkpoints/{checkpoint.folder.name}"
        if all(self.files.knows(f"{prefix}/{name}") for name in checkpoint.manifest.files):
            return True  # it was whole when they were added, or came back with the right hashes
        seen = size_and_time(checkpoint.folder / MANIFEST)
        if self._damaged.get(checkpoint.folder.name) == seen:
            return False
        with contextlib.suppress(EngineError):
            if not damage(checkpoint):
                return True
        self._damaged[checkpoint.folder.name] = seen
        return False

    def _inputs_of(self, folder: RunFolder) -> tuple[str, ...]:
        """Return the uploads without which the run could not be resumed."""
        if self._inputs is None:
            named: list[str] = []

            def note(text: str, _: str) -> str:
                named.append(text)
                return text

            with contextlib.suppress(EngineError, OSError):
                if UPLOADS.encode() in folder.config.read_bytes():  # most name none, and reading YAML takes a while
                    with_paths(folder.read_config(), note)
            self._inputs = tuple(dict.fromkeys(path for text in named for path in self._uploads_of(text)))
        return self._inputs

    def _uploads_of(self, text: str) -> Iterator[str]:
        path = Path(text)
        uploads = self._home.root / UPLOADS
        if not path.is_absolute() or ".." in path.parts or not path.is_relative_to(uploads):
            return
        relative = path.relative_to(self._home.root).as_posix()
        names = _names_below(path, relative) if path.is_dir() else [relative]
        yield from (name for name in names if self._key.may_have(name))


def _names_below(folder: Path, prefix: str) -> Iterator[str]:
    """Yield the files below a folder with a prefix, checkpoints apart; links are not followed."""
    for parent, folders, names in os.walk(folder):
        inside = Path(parent).relative_to(folder)
        skipped = {"checkpoints"} if inside == Path() else set()
        folders[:] = sorted(name for name in folders if belongs_to_backup(name) and name not in skipped)
        yield from ((Path(prefix) / inside / name).as_posix() for name in sorted(names))


def _folder_times(folder: RunFolder) -> tuple[int, int] | None:
    """Return when names in a run's folder and its requests changed; None where that was just now."""
    times = size_and_time(folder.path)[1], size_and_time(folder.control)[1]
    return times if time.time() - max(times) / 1e9 > _UNSETTLED_SECONDS else None


class HomeScan:
    """Looks at people and settings."""

    def __init__(self, home: LoratoryHome, before: Index | None = None) -> None:
        self._home = home
        self._database: Database | None = None  # stays open: opening it is a change as well
        self._accounts: tuple[tuple[int, int], ...] = ()
        self._accounts_dump = ""
        self._copy = home.server / f"mirror-{DATABASE_FILE}"
        self._accounts_part = Part(sha256="0" * 64, size=0)
        self.files = Files(home.root, before.files if before is not None else None)

    def look(self) -> Found:
        """Return what belongs into the mirror.

        Raises:
            EngineError: If the accounts cannot be read.
        """
        self.files.begin()
        for name in HOME_FILES:
            self.files.add(name)
        self.files.end()
        try:
            self._add_accounts()
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"The accounts cannot be saved ({error}).", "Free some space.") from error
        return Found(Index(files=dict(sorted(self.files.found.items()))), dict(self.files.sources))

    def close(self) -> None:
        """Close the accounts."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _add_accounts(self) -> None:
        """Add the accounts without sessions; a session that begins or ends changes nothing here."""
        path = self._home.root / DATABASE_FILE
        if not path.is_file():
            return
        self._database = self._database or open_database(self._home)
        seen = tuple(size_and_time(path.with_name(path.name + suffix)) for suffix in ("", "-wal"))
        if seen != self._accounts:
            self._home.server.mkdir(mode=0o700, exist_ok=True)
            fresh = self._copy.with_suffix(".new")
            fresh.unlink(missing_ok=True)
            copy_accounts(self._database, fresh)
            dump = _dump_of(fresh)
            if dump != self._accounts_dump:
                fresh.replace(self._copy)
                self._accounts_dump = dump
                self._accounts_part = Part(sha256=sha256_of(self._copy), size=self._copy.stat().st_size)
            fresh.unlink(missing_ok=True)
            self._accounts = seen
        part = self._accounts_part
        self.files.found[DATABASE_FILE] = MirroredFile(parts=(part,))
        self.files.sources[part.sha256] = Source(self._copy, stamp=_stamp_of(self._copy))


def _dump_of(database: Path) -> str:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return hashlib.sha256("\n".join(connection.iterdump()).encode()).hexdigest()
