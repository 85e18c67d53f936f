"""A lock that its holder's death releases: how a process shows that it is alive."""

import os
import sys
import threading
import time
from pathlib import Path
from typing import Self

from engine.errors import StorageError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_RETRY_SECONDS = 0.02

# POSIX gives a lock to the whole process, and takes it away when the process closes *any* descriptor of the file. What
# this process holds is therefore remembered here, by path, and never opened a second time.
_held: set[Path] = set()
_held_guard = threading.Lock()  # guards `_held`


class FileLock:
    """An exclusive lock on a file, kept until `release` or until the process ends in whatever way.

    Not the `filelock` package: its lock is inherited by forked children, so a child that outlives a worker would make the
    worker look alive; this one (POSIX record locks) belongs to one process. It also shows whether another process has the
    lock without a wait, and reports a folder or filesystem that cannot be used. Plain exclusion uses the same class: two
    kinds of lock on the files of one home would not see each other.

    Threads of one process exclude each other as processes do. Use it as a context manager to wait for it however long
    that takes; others ask `is_held_by_another`.

    Args:
        path: The lock file; created with its folder when missing, never deleted, its content means nothing.
        makes_folder: Off where the folder may be deleted meanwhile, and must not come back: it is then an error.
    """

    def __init__(self, path: Path, *, makes_folder: bool = True) -> None:
        self._path = path.absolute()
        self._makes_folder = makes_folder
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self, timeout_seconds: float | None = None) -> bool:
        """Take the lock; returns whether it was got in time (None waits for ever, 0 only tries).

        A second or so is right even where no process should hold it: a look by `is_held_by_another` holds it for an instant.

        Raises:
            StorageError: If the lock file cannot be opened, or its filesystem knows no locks.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not self._try_acquire():
            if deadline is not None and time.monotonic() >= deadline:
                return False
            time.sleep(_RETRY_SECONDS)
        return True

    def release(self) -> None:
        """Give the lock back; does nothing where it is not held."""
        if self._descriptor is None:
            return
        with _held_guard:
            os.close(self._descriptor)
            self._descriptor = None
            _held.discard(self._path)

    def is_held_by_another(self) -> bool:
        """Whether a different process, or another lock object of this one, holds it at this moment."""
        if self._descriptor is not None:
            return False
        with _held_guard:
            if self._path in _held:
                return True
            try:
                descriptor = os.open(self._path, os.O_RDWR)
            except FileNotFoundError:
                return False
            except OSError as error:
                raise _unusable(self._path, error) from error
            try:
                return not _try_lock(descriptor, self._path)
            finally:
                os.close(descriptor)

    def _try_acquire(self) -> bool:
        with _held_guard:
            if self._path in _held:
                return False
            try:
                if self._makes_folder:
                    self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            except OSError as error:
                raise _unusable(self._path, error) from error
            locked = False
            try:
                locked = _try_lock(descriptor, self._path)
            finally:
                if not locked:
                    os.close(descriptor)
            if not locked:
                return False
            self._descriptor = descriptor
            _held.add(self._path)
            return True

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _try_lock(descriptor: int, path: Path) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN and EACCES both mean that another process has it
        return False
    except OSError as error:
        raise _unusable(path, error) from error
    return True


def _unusable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"The lock file {path.name} cannot be used ({error.strerror}).",
        "Set LORATORY_HOME to a folder on a local disk that you may write to.",
    )
