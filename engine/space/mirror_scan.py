"""Runs, people and settings of this machine that belong into a mirror, looked at again and again."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from engine.accounts.accounts import open_database
from engine.accounts.backup import HOME_FILES, copy_accounts
from engine.accounts.limits import DATABASE_FILE
from engine.errors import EngineError, StorageError
from engine.files import FileStamp, sha256_of, size_and_time, stamp_of
from engine.paths import LoratoryHome
from engine.runs.checkpoints import MANIFEST, offered_checkpoints
from engine.runs.run import LIVE_STATES, Run
from engine.space.mirror_index import CHECKPOINTS, MOST_FILES, UPLOADS, Index, StoredFile, index_of, may_name, unit_of

_TEXT_BYTES = 16_384  # what is not longer is in the index itself
_UNSETTLED_SECONDS = 2.0  # a folder changed so recently may change again without another modification time


def place_of(home: LoratoryHome, name: str) -> Path:
    """Return where a file is that is sent; of the accounts, their copy without sessions."""
    return home.server / f"mirror-{DATABASE_FILE}" if name == DATABASE_FILE else home.root / name


def _describe(home: LoratoryHome, names: Iterable[str], before: Index | None = None) -> Index:
    """Describe the plain files among names; a long one that did not change since is not read again."""
    known = before.stored if before is not None else {}
    files: dict[str, str | StoredFile] = {}
    for name in sorted(names):
        place = place_of(home, name)
        stamp = stamp_of(place)
        if stamp is not None:
            with contextlib.suppress(OSError):  # deleted meanwhile: the next look shows it
                files[name] = _describe_one(name, place, stamp, known.get(name))
    return Index.model_construct(format=2, files=files)


def _describe_one(name: str, place: Path, stamp: FileStamp, before: StoredFile | None) -> str | StoredFile:
    _, size, changed = stamp
    if before is not None and (before.size, before.changed) == (size, changed):
        return before
    if size <= _TEXT_BYTES:
        with contextlib.suppress(UnicodeDecodeError):
            return place.read_bytes().decode()
    # The files of an adapter belong together; of a checkpoint, its manifest has the hashes.
    sha256 = sha256_of(place) if unit_of(name).endswith("/adapter") else None
    return StoredFile(size=size, changed=changed, sha256=sha256)


class RunScan:
    """Looks at one run.

    Attributes:
        is_training: Whether it is at work.
    """

    def __init__(self, home: LoratoryHome, run: Run, before: Index | None) -> None:
        self._home = home
        self._run = run
        self._index = before  # what was found last
        self._inputs: tuple[str, ...] | None = None
        self._times: tuple[int, int] | None = None  # of the folder then; None where it may change without a trace
        self.is_training = False

    def look(self, saved: Index | None) -> Index | None:
        """Return what belongs into the mirror; None where that is saved and has not changed.

        An unchanged run that has ended costs two looks at folders.

        Raises:
            StorageError: If the run cannot be read, or has too many files.
        """
        times = self._folder_times()
        if times is not None and times == self._times and self._index == saved:
            return None
        folder, own = self._run.folder, index_of(self._run.owner, self._run.id)
        names = {name for name in self._names_below(folder.path) if CHECKPOINTS not in name}
        names |= {*self._checkpoint_files(), *self._uploads()}
        index = self._index = _describe(self._home, (name for name in names if may_name(own, name)), self._index)
        if len(index.files) > MOST_FILES:
            raise StorageError(f"It has {len(index.files):,} files.", f"At most {MOST_FILES:,} are saved.")
        state = folder.read_state()
        self.is_training = state.state in LIVE_STATES
        # A worker writes into files without a trace in the folder's time; once it has ended, all else leaves one.
        self._times = times if state.is_final and not folder.has_living_worker() else None
        return index

    def _folder_times(self) -> tuple[int, int] | None:
        """Return when names in the run's folder and its requests changed; None where that was just now."""
        folder = self._run.folder
        times = size_and_time(folder.path)[1], size_and_time(folder.control)[1]
        return times if time.time() - max(times) / 1e9 > _UNSETTLED_SECONDS else None

    def _name_of(self, path: Path) -> str:
        return path.relative_to(self._home.root).as_posix()

    def _names_below(self, folder: Path) -> Iterator[str]:
        """Yield the files below a folder by their path below the home; links are not followed."""
        for parent, _, names in os.walk(folder):
            yield from (self._name_of(Path(parent, name)) for name in names)

    def _checkpoint_files(self) -> Iterator[str]:
        """Yield the files of the newest whole checkpoint, and of the best one, to which a run may go back at its end."""
        whole = list(offered_checkpoints(self._run.folder.checkpoints))
        for checkpoint in (*whole[:1], *[one for one in whole if one.manifest.best][:1]):
            folder = self._name_of(checkpoint.folder)
            yield from (f"{folder}/{name}" for name in (*checkpoint.manifest.files, MANIFEST))

    def _uploads(self) -> tuple[str, ...]:
        """Return the uploads without which the run could not be resumed."""
        if self._inputs is None:
            texts: list[str] = []
            with contextlib.suppress(EngineError, OSError):
                # Most name none, and reading YAML takes a while.
                if UPLOADS.encode() in self._run.folder.config.read_bytes():
                    texts = [text for _, text in self._run.folder.read_config().names]
            paths = [Path(text) for text in texts if Path(text).is_relative_to(self._home.root / UPLOADS)]
            self._inputs = tuple(name for path in paths for name in (self._name_of(path), *self._names_below(path)))
        return self._inputs


class HomeScan:
    """Looks at people and settings."""

    def __init__(self, home: LoratoryHome) -> None:
        self._home = home
        self._accounts: tuple[tuple[int, int], ...] = ()  # sizes and times of what was copied last

    def look(self) -> Index:
        """Return what belongs into the mirror.

        Raises:
            EngineError: If the accounts cannot be read.
        """
        names = {path.relative_to(self._home.root).as_posix() for path in self._home.root.glob("votes/*/votes.jsonl")}
        if (self._home.root / DATABASE_FILE).is_file():
            names.add(DATABASE_FILE)
            try:
                self._copy_accounts()
            except (OSError, sqlite3.Error) as error:
                raise StorageError(f"The accounts cannot be saved ({error}).", "Free some space.") from error
        return _describe(self._home, names.union(HOME_FILES))

    def _copy_accounts(self) -> None:
        """Copy the accounts without sessions, where more changed than these."""
        path, copy = self._home.root / DATABASE_FILE, place_of(self._home, DATABASE_FILE)
        stamps = tuple(size_and_time(path.with_name(path.name + suffix)) for suffix in ("", "-wal"))
        if stamps == self._accounts:
            return
        fresh = copy.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with contextlib.closing(open_database(self._home)) as database:
            copy_accounts(database, fresh)
        if not copy.is_file() or _statements_of(fresh) != _statements_of(copy):
            fresh.replace(copy)
        self._accounts = stamps


def _statements_of(database: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return list(connection.iterdump())
