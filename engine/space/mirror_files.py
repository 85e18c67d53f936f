"""What of a home belongs into its mirror: runs, images of rows, people and settings, scanned regularly.

In the bucket, a file has its path below the home, under `home/`.
"""

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from loratory.engine.accounts.accounts import open_database
from loratory.engine.accounts.backup import HOME_FILES, belongs_to_backup, copy_accounts
from loratory.engine.accounts.database import DATABASE_FILE
from loratory.engine.config.presets import PRESET_NAME
from loratory.engine.data.media.store import STORED_NAME
from loratory.engine.errors import EngineError, StorageError
from loratory.engine.files import FileStamp, size_and_time, stamp_of
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.checkpoints import MANIFEST, offered_checkpoints
from loratory.engine.runs.projects import PROJECTS_FILE
from loratory.engine.runs.run import LIVE_STATES, RUN_ID, Run

RUNS = "runs"
UPLOADS = "uploads"
MEDIA = "media"  # images of rows
CHECKPOINTS = "/checkpoints/"  # in the path of a file of one
INCOMING = ".mirror-"  # begin of the names of folders for what arrives

_LONGEST_PATH, _LONGEST_NAME, _DEEPEST = 400, 255, 12  # in characters, bytes and names
_UNSETTLED_SECONDS = 2.0  # a folder changed so recently may change again without another modification time
_OWNER = "[A-Za-z0-9_-]{1,64}"
_VOTES_OR_PRESET = re.compile(
    rf"votes/{_OWNER}/(votes|prompts/[A-Za-z0-9_-]{{1,40}})\.jsonl|presets/{_OWNER}/{PRESET_NAME.pattern}\.yaml"
    rf"|{RUNS}/{_OWNER}/{PROJECTS_FILE}"
)
_IMAGE = re.compile(rf"{MEDIA}/{_OWNER}/[0-9a-f]{{2}}/{STORED_NAME.pattern}")
_SMALL = (f"{MEDIA}/*/*/*", "votes/*/**/*", "presets/*/**/*", f"{RUNS}/*/{PROJECTS_FILE}")
_OF_A_PERSON = re.compile(rf"({RUNS}/{_OWNER}/{RUN_ID.pattern}|{UPLOADS}/{_OWNER})/.+")


def may_mirror(path: str) -> bool:
    """Whether a path below the home belongs into a mirror: of a run, an upload or an image, or people and settings."""
    if path in (DATABASE_FILE, *HOME_FILES) or _VOTES_OR_PRESET.fullmatch(path) or _IMAGE.fullmatch(path):
        return True
    names = path.split("/")
    is_plain = len(path) <= _LONGEST_PATH and len(names) <= _DEEPEST and all(map(_is_plain, names))
    if not is_plain or not _OF_A_PERSON.fullmatch(path):
        return False
    return names[0] == UPLOADS or all(map(belongs_to_backup, names[3:]))


def _is_plain(name: str) -> bool:
    is_hidden = name.startswith(".") or not name
    return not is_hidden and name.isprintable() and "\\" not in name and len(name.encode()) <= _LONGEST_NAME


def run_of(path: str) -> str | None:
    """Return the folder of the run that a file is in, below the home; None for other files."""
    return "/".join(path.split("/")[:3]) if path.startswith(f"{RUNS}/") else None


def local_path(home: LoratoryHome, path: str) -> Path:
    """Return where a file is that is sent; of the accounts, their copy without sessions."""
    return home.server / f"mirror-{DATABASE_FILE}" if path == DATABASE_FILE else home.root / path


def _stamps(home: LoratoryHome, paths: Iterable[str]) -> dict[str, FileStamp]:
    """Return the stamps of the plain files among these."""
    stamps = ((path, stamp_of(local_path(home, path))) for path in sorted(paths))
    return {path: stamp for path, stamp in stamps if stamp is not None}


class RunScan:
    """Scans one run.

    Attributes:
        is_training: Whether it is at work.
    """

    def __init__(self, home: LoratoryHome, run: Run) -> None:
        self._home = home
        self._run = run
        self._files: dict[str, FileStamp] = {}  # what was found last
        self._inputs: tuple[str, ...] | None = None
        self._times: tuple[int, int] | None = None  # of the folder then; None where it may change without a trace
        self.is_training = False

    def scan(self, sent_stamps: Mapping[str, FileStamp]) -> dict[str, FileStamp]:
        """Return the files that belong into the mirror; an unchanged run that has ended costs the times of two folders.

        Raises:
            StorageError: If the run cannot be read.
        """
        times, folder = self._folder_times(), self._run.folder
        if times is not None and times == self._times and self._files.items() <= sent_stamps.items():
            return self._files
        paths = {path for path in self._files_below(folder.path) if CHECKPOINTS not in path}
        paths |= {*self._checkpoint_files(), *self._uploads()}
        self._files = _stamps(self._home, filter(may_mirror, paths))
        state = folder.read_state()
        self.is_training = state.state in LIVE_STATES
        # A worker writes into files without a trace in the folder's time; once it has ended, all else leaves one.
        self._times = times if state.is_final and not folder.has_living_worker() else None
        return self._files

    def _folder_times(self) -> tuple[int, int] | None:
        """Return when names in the run's folder and its requests changed; None where that was just now."""
        folder = self._run.folder
        times = size_and_time(folder.path)[1], size_and_time(folder.control)[1]
        return times if time.time() - max(times) / 1e9 > _UNSETTLED_SECONDS else None

    def _below_home(self, path: Path) -> str:
        return path.relative_to(self._home.root).as_posix()

    def _files_below(self, folder: Path) -> Iterator[str]:
        """Yield the files below a folder by their path below the home; links are not followed."""
        for parent, _, names in os.walk(folder):
            yield from (self._below_home(Path(parent, name)) for name in names)

    def _checkpoint_files(self) -> Iterator[str]:
        """Yield the files of the newest whole checkpoint, and of the best one, to which a run may go back at its end."""
        whole = list(offered_checkpoints(self._run.folder.checkpoints))
        best = [checkpoint for checkpoint in whole if checkpoint.manifest.best]
        for checkpoint in (*whole[:1], *best[:1]):
            folder = self._below_home(checkpoint.folder)
            yield from (f"{folder}/{name}" for name in (*checkpoint.manifest.files, MANIFEST))

    def _uploads(self) -> tuple[str, ...]:
        """Return the uploads of its owner without which the run could not be resumed."""
        if self._inputs is None:
            texts: list[str] = []
            with contextlib.suppress(EngineError, OSError):
                # Most name none, and reading YAML takes a while.
                if UPLOADS.encode() in self._run.folder.config.read_bytes():
                    texts = [text for _, text in self._run.folder.read_config().names]
            own = self._home.root / UPLOADS / self._run.owner
            paths = [Path(text) for text in texts if Path(text).is_relative_to(own)]
            self._inputs = tuple(name for path in paths for name in (self._below_home(path), *self._files_below(path)))
        return self._inputs


class HomeScan:
    """Scans people, settings and images of rows."""

    def __init__(self, home: LoratoryHome) -> None:
        self._home = home
        self._accounts: tuple[tuple[int, int], ...] = ()  # sizes and times of what was copied last

    def scan(self) -> dict[str, FileStamp]:
        """Return the files that belong into the mirror.

        Raises:
            EngineError: If the accounts cannot be read.
        """
        files = (file for pattern in _SMALL for file in self._home.root.glob(pattern))
        paths = set(filter(may_mirror, (file.relative_to(self._home.root).as_posix() for file in files)))
        if (self._home.root / DATABASE_FILE).is_file():
            paths.add(DATABASE_FILE)
            try:
                self._copy_accounts()
            except (OSError, sqlite3.Error) as error:
                raise StorageError(f"The accounts cannot be saved ({error}).", "Free some space.") from error
        return _stamps(self._home, paths.union(HOME_FILES))

    def _copy_accounts(self) -> None:
        """Copy the accounts without sessions, where more changed than these."""
        path, copy = self._home.root / DATABASE_FILE, local_path(self._home, DATABASE_FILE)
        times = tuple(size_and_time(path.with_name(path.name + suffix)) for suffix in ("", "-wal"))
        if times == self._accounts:
            return
        fresh = copy.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with contextlib.closing(open_database(self._home)) as database:
            copy_accounts(database, fresh)
        if not copy.is_file() or _statements_of(fresh) != _statements_of(copy):
            fresh.replace(copy)
        self._accounts = times


def _statements_of(database: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return list(connection.iterdump())
