"""Start our processes: argv as a list, a session of their own, output to a file, no secrets in argv."""

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from engine.errors import WorkerError
from engine.processes.environment import Access, environment_for

# How OpenMP's threads wait for each other, hundreds of times a step. By itself, in a busy loop: next to one other process a
# step that took 1.4 s took 6 to 17 s. Asleep at once: each is woken late, and a step takes a quarter longer. So
# they look for a moment, some 20 microseconds, and then sleep. GOMP_SPINCOUNT is read by GNU's OpenMP, torch's on Linux.
OPENMP_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
# On a CPU, 16-bit products are compiled for each size of batch. oneDNN and PyTorch each keep the newest 1,024 of them, up
# to 600 MB, unless these say otherwise.
PRODUCT_CACHE_CAPACITY = 128
PRODUCT_CACHE_ENVIRONMENT = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(PRODUCT_CACHE_CAPACITY),
    "LRU_CACHE_CAPACITY": str(PRODUCT_CACHE_CAPACITY),
}
LIBRARY_ENVIRONMENT = {**OPENMP_ENVIRONMENT, **PRODUCT_CACHE_ENVIRONMENT}


def worker_argv(module: str, arguments: Sequence[str] = ()) -> list[str]:
    """Command line of one of our modules, run by this very Python; `-P` keeps the current folder off `sys.path`."""
    return [sys.executable, "-P", "-m", module, *arguments]


def spawn(
    argv: Sequence[str],
    *,
    log_file: Path,
    environment: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    inherited: tuple[int, ...] = (),
    access: Collection[Access] = (),
) -> subprocess.Popen[bytes]:
    """Start a process that outlives us: own session, no inherited handles, stdout and stderr appended to `log_file`.

    Args:
        argv: The command, as a list; never through a shell.
        log_file: Takes stderr, and stdout unless `stdout` is given.
        environment: Variables in addition to those that `engine.processes.environment` passes on.
        stdin: `subprocess.PIPE` for a worker that is asked questions.
        stdout: `subprocess.PIPE` for a worker that answers.
        inherited: Other descriptors that the process gets.
        access: What it may log in to; no other secret of ours reaches it.

    Raises:
        WorkerError: If the process cannot be started.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    cap_log(log_file)
    try:
        with log_file.open("ab") as log:
            return subprocess.Popen(
                list(argv),
                stdin=stdin,
                stdout=log if stdout is None else stdout,
                stderr=log,
                env={**LIBRARY_ENVIRONMENT, **environment_for(access), **(environment or {})},
                start_new_session=True,
                close_fds=True,
                pass_fds=inherited,
            )
    except OSError as error:
        raise WorkerError(
            f"The process {argv[-1]} could not be started ({error.strerror}).",
            "Free some memory or close other programs, then try again.",
        ) from error


def cap_log(log: Path, most_bytes: int = 20_000_000) -> bool:
    """Keep the newest quarter of a log that grew too long; returns whether it was cut.

    The worker appends, and continues behind the new end. A line that it writes in this very moment may be lost.
    """
    try:
        if log.stat().st_size <= most_bytes:
            return False
        with log.open("r+b") as file:
            file.seek(-most_bytes // 4, os.SEEK_END)
            tail = file.read()
            file.seek(0)
            file.write(b"(earlier output was removed)\n" + tail[tail.find(b"\n") + 1 :])
            file.truncate()
    except OSError:
        return False
    return True


LIFE_LINE = "LORATORY_LIFE_LINE"

if sys.platform != "win32":
    import fcntl


class LifeLine(NamedTuple):
    """A pipe by which a worker ends with its asker, even where the asker is killed and the worker is stuck in C code.

    Nothing is ever written to it. The kernel closes `held`, the asker's end, when the asker ends in whatever way, and then
    sends the worker, which has `given`, a signal that ends it; neither Python nor the interpreter's lock takes part.
    """

    given: int
    held: int

    @classmethod
    def make(cls) -> "LifeLine | None":
        """Make one; None where the system has no such signal, and workers only notice that their stdin closes."""
        return None if sys.platform == "win32" else cls(*os.pipe())

    @property
    def environment(self) -> Mapping[str, str]:
        """What the worker needs to find its end."""
        return {LIFE_LINE: str(self.given)}


def spawn_helper(
    argv: Sequence[str], *, log_file: Path, environment: Mapping[str, str], access: Collection[Access]
) -> tuple[subprocess.Popen[bytes], LifeLine | None]:
    """Start a process that is asked over stdin, answers on stdout and ends with us; its life line is ours to close.

    Raises:
        WorkerError: If the process cannot be started.
    """
    line = LifeLine.make()
    try:
        process = spawn(
            argv,
            log_file=log_file,
            environment={**environment, **(line.environment if line is not None else {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            inherited=(line.given,) if line is not None else (),
            access=access,
        )
    except WorkerError:
        if line is not None:
            os.close(line.held)
        raise
    finally:
        if line is not None:
            os.close(line.given)
    return process, line


def end_with_asker() -> None:
    """Arrange in a worker that it ends with its asker; does nothing where it was started without a life line."""
    name = os.environ.pop(LIFE_LINE, None)
    if name is None or sys.platform == "win32":
        return
    end = int(name)
    with contextlib.suppress(OSError):
        os.set_inheritable(end, False)
        fcntl.fcntl(end, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(end, fcntl.F_SETFL, fcntl.fcntl(end, fcntl.F_GETFL) | os.O_ASYNC)  # SIGIO, which ends a process
        closed = select.poll()
        closed.register(end, select.POLLIN)
        if closed.poll(0):  # it was gone before
            os._exit(0)
