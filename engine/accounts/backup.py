"""Backups of a lab: accounts, settings, audit log and runs in one tar file, and back into an empty home."""

import contextlib
import errno
import io
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from loratory.engine.accounts.accounts import open_database
from loratory.engine.accounts.database import DATABASE_FILE, Database
from loratory.engine.errors import AccountError, StorageError, explain_os_errors, shorten
from loratory.engine.paths import LoratoryHome

_HEAD = "loratory-backup"  # the first member; its content is the format
_FORMAT = "1"
HOME_FILES = (
    "lab.yaml", "audit.jsonl", "electricity.json",
    "server/queue.json", "server/urgent.json", "server/usage.jsonl", "server/disk.jsonl",
)  # fmt: skip
_FOLDERS = ("runs/", "votes/", "presets/", "datasets/", "server/keys/")
# Of a worker on this machine, which is not there after a restore; and what is half-made or half-deleted.
_LEFT_OUT = re.compile(r"lock|process\.json|\.(new|deleted)-.*|\..*\.tmp")
_CHECKPOINTS = "checkpoints"


class BackupSize(NamedTuple):
    """What a backup holds."""

    people: int
    runs: int
    files: int
    bytes: int


def write_backup(home: LoratoryHome, path: Path, *, with_checkpoints: bool) -> BackupSize:
    """Write a backup while the lab is served; a file that changes meanwhile is in it as it was when its turn came.

    Sessions and invitations are left out: what was ended since must not come back with a restore.

    Raises:
        AccountError: If the home has no accounts.
        StorageError: If the file exists, or cannot be written.
    """
    if not (home.root / DATABASE_FILE).is_file():
        raise AccountError(f"{home.root} has no accounts.", "Set LORATORY_HOME to the home of the lab.")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise StorageError(f"{path} exists.", "Choose another name, or remove it.") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror}).", "Choose another folder.") from error
    try:
        with (
            os.fdopen(descriptor, "wb") as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            _add(tar, _HEAD, io.BytesIO(_FORMAT.encode()), time.time())
            people = _add_accounts(home, tar)
            for relative in _members(home.root, with_checkpoints=with_checkpoints):
                _add_file(tar, home.root, relative)
            names = tar.getnames()
            tar.close()
            file.flush()
            os.fsync(file.fileno())
        runs = {tuple(PurePosixPath(name).parts[1:3]) for name in names if name.startswith("runs/")}
        return BackupSize(people, len(runs), len(names), path.stat().st_size)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StorageError(f"{path} cannot be written ({error.strerror}).", "Free some space.") from error
        raise


def restore_backup(home: LoratoryHome, path: Path) -> BackupSize:
    """Fill an empty home from a backup; where that fails, it is as empty as before. People sign in again.

    Raises:
        StorageError: If the home is not empty, or cannot be written.
        AccountError: If the file is not a backup, is damaged, or holds what no backup of a lab does.
    """
    with explain_os_errors(f"{home.root} cannot be written", "Set LORATORY_HOME to a folder that you may write to."):
        home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(home.root.iterdir()):
            what = f"The home {home.root} is not empty."
            raise StorageError(what, "Set LORATORY_HOME to a new folder to restore into.")
        home.root.chmod(0o700)
        # Inside the home: the folder around it may belong to another user, or be another disk.
        temporary = Path(tempfile.mkdtemp(prefix=".restore-", dir=home.root))
    mask = os.umask(0o077)
    try:
        size = _unpack(path, temporary)
        for entry in list(temporary.iterdir()):
            entry.rename(home.root / entry.name)
        temporary.rmdir()
        return size
    except BaseException as error:
        for entry in home.root.iterdir():  # it was empty
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            name = shorten(Path(error.filename).name, 40)
            what = f"The backup holds {name!r}, a name too long for this disk."
            raise AccountError(what, "Give another backup.") from error
        if isinstance(error, OSError):
            fix = "Free some space, or check the folder's permissions."
            raise StorageError(f"The backup cannot be unpacked ({error.strerror}).", fix) from error
        raise
    finally:
        os.umask(mask)


def belongs_to_backup(name: str) -> bool:
    """Whether a file or folder of a run, by its own name, is more than the trace of a process of this machine."""
    return not _LEFT_OUT.fullmatch(name)


def _members(root: Path, *, with_checkpoints: bool) -> Iterator[str]:
    """Yield the plain files of a backup, relative to the home. Links are not followed, and not in it."""
    yield from (name for name in HOME_FILES if (root / name).is_file())
    for folder in _FOLDERS:
        for parent, folders, names in os.walk(root / folder):
            folders[:] = sorted(
                name for name in folders if belongs_to_backup(name) and (with_checkpoints or name != _CHECKPOINTS)
            )
            for name in sorted(names):
                if belongs_to_backup(name):
                    yield (Path(parent) / name).relative_to(root).as_posix()


def _add_accounts(home: LoratoryHome, tar: tarfile.TarFile) -> int:
    with tempfile.TemporaryDirectory(prefix=".backup-", dir=home.root) as folder:
        copy = Path(folder) / DATABASE_FILE
        with contextlib.closing(open_database(home)) as database:
            people = copy_accounts(database, copy)
        with copy.open("rb") as file:
            _add(tar, DATABASE_FILE, file, time.time())
    return people


def copy_accounts(database: Database, copy: Path) -> int:
    """Write a copy of the accounts without sessions, tokens and invitations, while others use them; returns how many there are.

    Raises:
        StorageError: If they cannot be read, or the copy cannot be written.
    """
    database.copy_to(copy)
    with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        connection.execute("DELETE FROM sessions")
        connection.execute("DELETE FROM invitations")
        connection.execute("DELETE FROM access_tokens")
        connection.execute("PRAGMA journal_mode = DELETE")  # one file, without a log next to it
        connection.execute("VACUUM")
        people: int = connection.execute("SELECT count(*) FROM people WHERE removed IS NULL").fetchone()[0]
    return people


def _add_file(tar: tarfile.TarFile, root: Path, relative: str) -> None:
    try:
        descriptor = os.open(root / relative, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        if not (root / relative).exists() or (root / relative).is_symlink():
            return  # deleted meanwhile, or leads elsewhere
        raise
    with os.fdopen(descriptor, "rb") as file:
        if os.path.isfile(descriptor):  # noqa: PTH113 - of what was opened, not of a name that may change
            _add(tar, relative, file, os.fstat(descriptor).st_mtime)


def _add(tar: tarfile.TarFile, name: str, content: io.IOBase, mtime: float) -> None:
    member = tarfile.TarInfo(name)
    member.size = content.seek(0, os.SEEK_END)
    content.seek(0)
    member.mode, member.mtime = 0o600, int(mtime)
    tar.addfile(member, content)


def _unpack(path: Path, target: Path) -> BackupSize:
    try:
        with tarfile.open(path, mode="r:") as tar:
            first = tar.next()
            content = tar.extractfile(first) if first is not None and first.name == _HEAD else None
            if content is None or content.read(16).decode("ascii", "replace") != _FORMAT:
                what = f"{path.name} is not a backup that this Loratory reads."
                raise AccountError(what, "Give a file of `loratory lab backup`.")
            files = total = 0
            for member in tar:
                if member is not first:
                    _unpack_member(tar, member, target)
                    files, total = files + 1, total + member.size
    except (tarfile.TarError, EOFError) as error:
        raise AccountError(f"{path.name} is damaged ({error}).", "Give another backup.") from error
    except OSError as error:
        if error.filename and Path(error.filename) == path:
            raise AccountError(f"{path} cannot be read ({error.strerror}).", "Give the file of a backup.") from error
        raise
    runs = sum(1 for _ in target.glob("runs/*/*/config.yaml"))
    return BackupSize(check_accounts(target / DATABASE_FILE, path.name), runs, files, total)


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    name, path = member.name, PurePosixPath(member.name)
    is_plain = member.isreg() and name == str(path) and ".." not in path.parts and "\0" not in name
    if not is_plain or not (name in (DATABASE_FILE, *HOME_FILES) or name.startswith(_FOLDERS)):
        raise AccountError(f"The backup holds {name[:80]!r}, which is not part of a lab.", "Give another backup.")
    if (target / path).exists():
        raise AccountError(f"The backup holds {name[:80]!r} twice.", "Give another backup.")
    tar.extract(member.replace(mode=0o600, deep=False), target, filter="data")


def check_accounts(path: Path, name: str) -> int:
    """Return how many people a copy of the accounts holds.

    Raises:
        AccountError: If it is damaged.
    """
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
            if verdict == "ok":
                return int(connection.execute("SELECT count(*) FROM people WHERE removed IS NULL").fetchone()[0])
    except sqlite3.Error as error:
        verdict = str(error)
    raise AccountError(f"The accounts in {name} are damaged ({verdict[:100]}).", "Give another backup.")
