"""A lock between processes that ends with its holder: `lockf` on POSIX, `msvcrt` on Windows.

The operating system drops the lock when its holder dies, however it dies; the file itself stays and means nothing.
"""

import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from engine.errors import StorageError

_POLL_SECONDS = 0.05


class _HeldHere:
    """Which lock files this process holds, and the guard of that set.

    POSIX gives record locks to a process, not to a thread or a descriptor: a second lock of ours on the same file would
    succeed, and closing it would drop the first. So a process must remember by itself what it holds.
    """

    def __init__(self) -> None:
        self.guard = threading.Lock()  # guards `paths`
        self.paths: set[Path] = set()


_held_here = _HeldHere()


class FileLock:
    """Exclusive between processes, and between the threads of one process.

    Use it as a context manager to wait for the lock; call `acquire(timeout_seconds=0)` to only try.

    Args:
        path: The lock file; created with its folder, never removed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this very object holds the lock."""
        return self._descriptor is not None

    def acquire(self, timeout_seconds: float | None = None) -> bool:
        """Take the lock; False when it was still held elsewhere after `timeout_seconds` (None waits for ever).

        Raises:
            StorageError: If the lock file cannot be opened.
        """
        give_up_at = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not self._try():
            if give_up_at is not None and time.monotonic() >= give_up_at:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def release(self) -> None:
        """Let go of the lock; harmless when it is not held."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        with _held_here.guard:
            _unlock(descriptor)
            os.close(descriptor)
            _held_here.paths.discard(self._path)

    def __enter__(self) -> "FileLock":
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def _try(self) -> bool:
        with _held_here.guard:
            if self._path in _held_here.paths:
                return False
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
            except OSError as error:
                raise StorageError(
                    f"The lock file {self._path.name} cannot be opened ({error.strerror}).",
                    "Check the permissions of the Loratory home.",
                ) from error
            if not _lock(descriptor):
                os.close(descriptor)
                return False
            _held_here.paths.add(self._path)
            self._descriptor = descriptor
            return True


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as the system likes
            return False
        return True

    def _unlock(descriptor: int) -> None:
        fcntl.lockf(descriptor, fcntl.LOCK_UN)
