"""How a process shows that it is alive: by its identity, and by a lock that its death releases.

A pid alone is handed out again; together with its start time and the boot it never is.
"""

import contextlib
import fcntl
import functools
import os
import platform
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Literal, Self

import psutil
from pydantic import BaseModel

from loratory.engine.errors import StorageError

_START_TIME_TOLERANCE_SECONDS = 0.02  # two clock ticks; start times elsewhere come from clocks that are read each time


Liveness = Literal["alive", "gone", "unknown"]


class ProcessIdentity(BaseModel, frozen=True):
    """One process, for ever: what is signalled or believed alive is this one and no later bearer of its pid.

    `start_time` is in seconds: since boot on Linux (the kernel's own count, which no clock change moves), since the
    epoch elsewhere.
    """

    pid: int
    start_time: float
    boot_id: str
    host: str  # name of the machine, or of the container
    pid_namespace: str = ""  # containers of one machine share its boot, and count pids on their own

    @classmethod
    def current(cls) -> Self:
        """Identity of the process that asks."""
        identity = cls.from_pid(os.getpid())
        assert identity is not None, "the asking process is alive"
        return identity

    @classmethod
    def from_pid(cls, pid: int) -> Self | None:
        """Identity of the process that bears `pid` now; None where there is none, or only a zombie is left of it."""
        start_time = _start_time_of_living(pid)
        if start_time is None:
            return None
        return cls(
            pid=pid, start_time=start_time, boot_id=boot_id(), host=platform.node(), pid_namespace=_pid_namespace()
        )

    def liveness(self) -> Liveness:
        """Whether this very process still runs: not a zombie, not a later process of the same pid, not before a reboot.

        Unknown for a process of another host or container, whose pids mean nothing here.
        """
        if not self.is_of_this_boot():
            return "unknown" if self.is_of_another_host() else "gone"
        if self.pid_namespace != _pid_namespace():
            return "unknown"
        start_time = _start_time_of_living(self.pid)
        if start_time is not None and abs(start_time - self.start_time) <= _START_TIME_TOLERANCE_SECONDS:
            return "alive"
        return "gone"

    def is_alive(self) -> bool:
        """Whether this very process is seen to run; false where that is unknown."""
        return self.liveness() == "alive"

    def is_of_another_host(self) -> bool:
        """Whether it ran on another machine; one that was restarted, and has its name still, is the same."""
        return not self.is_of_this_boot() and self.host != platform.node()

    def is_of_this_boot(self) -> bool:
        """Whether it ran on this machine since it was started last, in whichever container."""
        return self.boot_id == boot_id()

    def is_suspended(self) -> bool:
        """Whether it is alive and stopped by SIGSTOP, SIGTSTP or a debugger, and cannot make progress."""
        with contextlib.suppress(psutil.Error):
            stopped = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
            return self.is_alive() and psutil.Process(self.pid).status() in stopped
        return False

    def cpu_seconds(self) -> float | None:
        """Processor time that it has used, its children included; None when it is no longer alive."""
        if not self.is_alive():
            return None
        try:
            process = psutil.Process(self.pid)
            members = [process, *process.children(recursive=True)]
        except psutil.Error:
            return None
        total = 0.0
        for member in members:
            with contextlib.suppress(psutil.Error):
                times = member.cpu_times()
                total += times.user + times.system
        return total

    def kill(self) -> bool:
        """End it at once; returns whether it was there to be ended."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)  # refuses to kill a later process of this pid
            if self.is_alive():
                process.kill()
                return True
        return False


@functools.cache
def boot_id() -> str:
    """Return an id that changes with every start of the machine, and only then."""
    if sys.platform == "linux":
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    # Derived from a clock, which drifts: minutes are coarse enough, and no machine restarts within one.
    return f"boot-{round(psutil.boot_time() / 60)}"


@functools.cache
def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - not a path: `pid:[4026531836]`
    except OSError:
        return ""


def _start_time_of_living(pid: int) -> float | None:
    if pid <= 0:
        return None
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return None
        # The name, in parentheses, may itself hold spaces and parentheses.
        fields = stat[stat.rindex(b")") + 2 :].split()
        state, start_ticks = fields[0], int(fields[19])
        return None if state in (b"Z", b"X") else start_ticks / os.sysconf("SC_CLK_TCK")
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def end_group(process_group: int, environment_mark: tuple[str, str]) -> int:
    """Kill what is left of a process group, and only members whose environment bears our mark; returns how many.

    A group outlives its leader, and its number may later belong to other programs: the mark, a variable that we set when we
    started the leader, distinguishes the two.
    """
    name, value = environment_mark
    count = 0
    for pid in psutil.pids():
        try:
            if os.getpgid(pid) != process_group:
                continue
            process = psutil.Process(pid)
            if _environment_of(process).get(name) != value:
                continue
            process.kill()
        except (OSError, psutil.Error):
            continue
        count += 1
    return count


def _environment_of(process: psutil.Process) -> dict[str, str]:
    """Return the environment of a process; one that has just become another program has none for an instant."""
    deadline = time.monotonic() + _STARTS_WITHIN_SECONDS
    while not (variables := process.environ()) and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            break
        time.sleep(_RETRY_SECONDS)
    return variables


_RETRY_SECONDS, _STARTS_WITHIN_SECONDS = 0.02, 1.0
_FLOCK = "hhqqi"  # of Linux: kind, whence, start, length, pid; source: fcntl(2)

# POSIX gives a lock to the whole process, and takes it away when the process closes *any* descriptor of the file. What
# this process holds is therefore remembered here, by path, and never opened a second time.
_held_locks: set[Path] = set()
_held_guard = threading.Lock()  # guards `_held_locks`


class FileLock:
    """An exclusive lock on a file, kept until `release` or until the process ends in any way.

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

        A second or so is right even where no process should hold it: outside Linux, a look by `is_held_by_another` holds it
        for an instant.

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
            _held_locks.discard(self._path)

    def is_held_by_another(self) -> bool:
        """Whether a different process, or another lock object of this one, holds it at this moment."""
        if self._descriptor is not None:
            return False
        with _held_guard:
            if self._path in _held_locks:
                return True
            try:
                if sys.platform == "linux":
                    return self._is_locked()
                descriptor = self._open_locked(os.O_RDWR)
            except FileNotFoundError:
                return False
            except OSError as error:
                raise self._unusable(error) from error
            if descriptor is not None:
                os.close(descriptor)
            return descriptor is None

    def _is_locked(self) -> bool:
        """Ask the kernel, which takes nothing: who looks and is then held up keeps no worker from its run."""
        descriptor = os.open(self._path, os.O_RDWR)
        try:
            request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind: int = struct.unpack_from("h", fcntl.fcntl(descriptor, fcntl.F_GETLK, request))[0]
            return kind != fcntl.F_UNLCK
        finally:
            os.close(descriptor)

    def _try_acquire(self) -> bool:
        with _held_guard:
            if self._path in _held_locks:
                return False
            try:
                if self._makes_folder:
                    self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._descriptor = self._open_locked(os.O_RDWR | os.O_CREAT)
            except OSError as error:
                raise self._unusable(error) from error
            if self._descriptor is None:
                return False
            _held_locks.add(self._path)
            return True

    def _open_locked(self, flags: int) -> int | None:
        """Open the file and lock it; None where another process has the lock."""
        descriptor = os.open(self._path, flags, 0o600)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError | PermissionError):  # EAGAIN and EACCES both mean that another has it
                return None
            raise
        return descriptor

    def _unusable(self, error: OSError) -> StorageError:
        return StorageError(
            f"The lock file {self._path.name} cannot be used ({error.strerror}).",
            "Set LORATORY_HOME to a folder on a local disk that you may write to.",
        )

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
