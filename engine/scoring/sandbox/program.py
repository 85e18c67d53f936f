"""A program in the sandbox as the one that asks it sees it, and what the sandbox guarantees on this machine."""

import contextlib
import functools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from loratory.engine.errors import WorkerError
from loratory.engine.scoring.base import NoScoreError

_HERE = Path(__file__).parent
_MOST_BYTES = 4 << 20  # of an answer
_PROCESSES = 32
_FIRST_UID = 0x70000000  # accounts that no system hands out; each sandbox that root starts has another
_STARTS_WITHIN_SECONDS = 20.0
_ENVIRONMENT = {"PATH": os.defpath, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Isolation(NamedTuple):
    """What the sandbox guarantees on this machine."""

    namespaces: bool
    missing: tuple[str, ...]  # what code can still do, for people


class Program:
    """Runs `guest.py` in a sandbox, and asks it."""

    def __init__(self, memory_mib: int, seconds: float = 0, namespaces: bool | None = None) -> None:
        self._folder = tempfile.mkdtemp(prefix="loratory-sandbox-")
        namespaces = isolation().namespaces if namespaces is None else namespaces
        prefixes = (sys.prefix, sys.base_prefix, Path(sys.executable).resolve().parents[1], _HERE)
        limits = {
            "namespaces": namespaces,
            "folder": self._folder,
            "readable": sorted(map(str, {*prefixes, sysconfig.get_path("stdlib")}), key=len),
            "memory": memory_mib << 20,
            "seconds": int(seconds + 2) if seconds else 0,
            "processes": _PROCESSES + (0 if namespaces or os.getuid() == 0 else _own_threads()),
            "uid": _FIRST_UID + time.monotonic_ns() // 1000 % 0xFFFFFFF,
        }
        python = [sys.executable, "-I"]
        self._process = subprocess.Popen(
            [*python, "-S", str(_HERE / "enter.py"), json.dumps(limits), *python, "-B", str(_HERE / "guest.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**_ENVIRONMENT, **dict.fromkeys(("HOME", "TMPDIR"), "/sandbox" if namespaces else self._folder)},
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.is_usable = True  # until something goes wrong
        self._in, self._out, self._rest = self._process.stdin.fileno(), self._process.stdout.fileno(), b""
        os.set_blocking(self._in, False)
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN)

    def request(self, message: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Return the answer to a message; a NoScoreError where none comes in time, and the program is of no more use."""
        self.is_usable = False
        answer = self._exchange(message, seconds)
        self.is_usable = True
        return answer

    def _exchange(self, message: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        deadline, pending = time.monotonic() + seconds, json.dumps(message, default=str).encode() + b"\n"
        while b"\n" not in self._rest:
            if (left := deadline - time.monotonic()) <= 0:
                raise NoScoreError("It took too long and was stopped.")
            self._poll.register(self._in, select.POLLOUT) if pending else None
            for descriptor, _ in self._poll.poll(left * 1000 + 1):
                if descriptor == self._in:
                    with contextlib.suppress(BlockingIOError, BrokenPipeError):
                        pending = pending[os.write(self._in, pending[:65536]) :]
                    if not pending:
                        self._poll.unregister(self._in)
                elif piece := os.read(self._out, 65536):
                    self._rest += piece
                else:
                    raise NoScoreError(self._end())
            if len(self._rest) > _MOST_BYTES:
                raise NoScoreError(f"It wrote more than {_MOST_BYTES:,} bytes and was stopped.")
        line, _, self._rest = self._rest.partition(b"\n")
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(answer := json.loads(line), dict):
                return answer
        raise NoScoreError("It wrote something else than an answer and was stopped.")

    def kill(self) -> None:
        """End the program with all that it started; whichever thread asks it notices."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    child.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the program, and remove its folder."""
        self.kill()
        with self._process:
            pass
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self) -> str:
        code = self._process.wait()
        return (
            "It ran out of memory or was killed." if code in (-9 & 0xFF, -9) else f"It ended by itself (code {code})."
        )


@functools.cache
def isolation() -> Isolation:
    """Try what the sandbox can do on this machine."""
    if sys.platform == "linux":
        program = Program(memory_mib=512, namespaces=True)
        try:
            program.request({"source": ""}, _STARTS_WITHIN_SECONDS)
            return Isolation(True, ())
        except NoScoreError:
            pass
        finally:
            program.close()
    missing = ["use the network", "read files that its account may read", "leave processes behind"]
    return Isolation(False, (*missing, *(["use more memory"] if sys.platform == "darwin" else [])))


def require_isolation(what: str) -> None:
    """Raise a WorkerError where the sandbox of this machine is not enough for code of people that share it."""
    if missing := isolation().missing:
        raise WorkerError(
            f"{what} needs a sandbox; on this machine code could {', '.join(missing)}.",
            "Let the server run on Linux with user namespaces, or use another scorer.",
        )


def _own_threads() -> int:
    processes = psutil.process_iter(["uids", "num_threads"])
    return sum(p.info["num_threads"] or 0 for p in processes if p.info["uids"] and p.info["uids"].real == os.getuid())
