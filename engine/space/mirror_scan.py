"""Runs, people and settings of this machine that belong into a mirror, looked at again and again."""

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from engine.accounts.accounts import open_database
from engine.accounts.backup import HOME_FILES, belongs_to_backup, copy_accounts
from engine.accounts.database import Database
from engine.accounts.limits import DATABASE_FILE
from engine.errors import EngineError, StorageError
from engine.files import sha256_of, size_and_time, stamp_of
from engine.paths import LoratoryHome
from engine.runs.checkpoints import MANIFEST, Checkpoint, damage, list_checkpoints
from engine.runs.provenance import read_provenance
from engine.runs.run import LIVE_STATES, Run, RunFolder
from engine.space.mirror_files import Files, MirrorFiles, Source
from engine.space.mirror_index import MOST_FILES, UPLOADS, Index, MirroredFile, Part, RunKey

_UNSETTLED_SECONDS = 2.0  # a folder changed so recently may change again without another modification time


class RunScan:
    """Looks at one run.

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
        self._stamp: tuple[int, int] | None = None
        self.files = Files(home.root, before.files if before is not None else None)
        self.is_training = False
        self.title = run.id

    def look(self) -> MirrorFiles | None:
        """Return what belongs into the mirror; None where nothing can have changed since the last look.

        Raises:
            StorageError: If the run cannot be read, or has too many files.
        """
        folder = self._run.folder
        quiet = _folder_times(folder)
        if quiet is not None and quiet == self._quiet:
            return None
        files, self._stamp = self.files, None
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
        self._stamp = quiet if state.is_final and not folder.has_living_worker() else None
        if len(files.found) > MOST_FILES:
            raise StorageError(f"It has {len(files.found):,} files.", f"At most {MOST_FILES:,} are saved.")
        return files.end()

    def settle(self) -> None:
        """Take what was found last for sent: an unchanged run that has ended costs two looks at folders from now on."""
        self._quiet = self._stamp

    def _add_checkpoints(self, folder: RunFolder) -> None:
        """Add the newest checkpoint that is whole, and the best one, to which a run may go back at its end."""
        newest = best = None
        for checkpoint in reversed(list_checkpoints(folder.checkpoints)):
            is_needed = newest is None or (best is None and checkpoint.manifest.best)
            if is_needed and self._is_whole(checkpoint):
                newest = newest or checkpoint
                best = checkpoint if best is None and checkpoint.manifest.best else best
        for one in {one.step: one for one in (newest, best) if one is not None}.values():
            prefix = f"{self._key.folder}/checkpoints/{one.folder.name}"
            for name, record in one.manifest.files.items():
                if self._key.may_have(f"{prefix}/{name}"):
                    self.files.add(f"{prefix}/{name}", sha256=record.sha256)
            self.files.add(f"{prefix}/{MANIFEST}")

    def _is_whole(self, checkpoint: Checkpoint) -> bool:
        prefix = f"{self._key.folder}/checkpoints/{checkpoint.folder.name}"
        if all(self.files.knows(f"{prefix}/{name}") for name in checkpoint.manifest.files):
            return True  # it was whole when they were added, or came back with the right hashes
        stamp = size_and_time(checkpoint.folder / MANIFEST)
        if self._damaged.get(checkpoint.folder.name) == stamp:
            return False
        with contextlib.suppress(EngineError):
            if not damage(checkpoint):
                return True
        self._damaged[checkpoint.folder.name] = stamp
        return False

    def _inputs_of(self, folder: RunFolder) -> tuple[str, ...]:
        """Return the uploads without which the run could not be resumed."""
        if self._inputs is None:
            names: list[str] = []
            with contextlib.suppress(EngineError, OSError):
                if UPLOADS.encode() in folder.config.read_bytes():  # most name none, and reading YAML takes a while
                    names = [text for _, text in folder.read_config().names]
            self._inputs = tuple(dict.fromkeys(path for text in names for path in self._uploads_of(text)))
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
        skip = {"checkpoints"} if inside == Path() else set()
        folders[:] = sorted(name for name in folders if belongs_to_backup(name) and name not in skip)
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

    def look(self) -> MirrorFiles:
        """Return what belongs into the mirror.

        Raises:
            EngineError: If the accounts cannot be read.
        """
        self.files.begin()
        votes = (path.relative_to(self._home.root).as_posix() for path in self._home.root.glob("votes/*/votes.jsonl"))
        for name in (*HOME_FILES, *sorted(votes)):
            self.files.add(name)
        try:
            self._add_accounts()
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"The accounts cannot be saved ({error}).", "Free some space.") from error
        return self.files.end()

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
        stamps = tuple(size_and_time(path.with_name(path.name + suffix)) for suffix in ("", "-wal"))
        if stamps != self._accounts:
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
            self._accounts = stamps
        part = self._accounts_part
        self.files.found[DATABASE_FILE] = MirroredFile(parts=(part,))
        self.files.sources[part.sha256] = Source(self._copy, stamp=stamp_of(self._copy))


def _dump_of(database: Path) -> str:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return hashlib.sha256("\n".join(connection.iterdump()).encode()).hexdigest()
