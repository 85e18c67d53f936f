"""A program in the sandbox as the one that asks it sees it, and what the sandbox guarantees on this machine."""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from loratory.engine.errors import WorkerError
from loratory.engine.scoring.base import NoScoreError

_HERE = Path(__file__).parent
_MOST_BYTES = 4 << 20  # of an answer
_PROCESSES = 32
_FIRST_UID = 0x70000000  # accounts that no system hands out; each sandbox that root starts has another
_STARTS_WITHIN_SECONDS = 20.0
_ENDS_WITHIN_SECONDS = 1.0
_ENVIRONMENT = {"PATH": os.defpath, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Program:
    """Runs `guest.py` in a sandbox, and asks it."""

    def __init__(self, memory_mib: int, seconds: float = 0, namespaces: bool | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="loratory-sandbox-", ignore_cleanup_errors=True)
        namespaces = not isolation() if namespaces is None else namespaces
        prefixes = (sys.prefix, sys.base_prefix, Path(sys.executable).resolve().parents[1], _HERE)
        limits = {
            "namespaces": namespaces,
            "folder": self._folder.name,
            "readable": sorted(map(str, {*prefixes, sysconfig.get_path("stdlib")}), key=len),
            "memory": memory_mib << 20,
            "seconds": int(seconds + 2) if seconds else 0,
            "processes": _PROCESSES + (0 if namespaces or os.getuid() == 0 else _own_threads()),
            "uid": _FIRST_UID + time.monotonic_ns() // 1000 % 0xFFFFFFF,
        }
        home, python = "/sandbox" if namespaces else self._folder.name, [sys.executable, "-I"]
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*python, "-S", str(_HERE / "enter.py"), json.dumps(limits), *python, "-B", str(_HERE / "guest.py")],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                env={**_ENVIRONMENT, "HOME": home, "TMPDIR": home},
                start_new_session=True,
            )

    def request(self, message: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Return the answer to a message; a NoScoreError where none comes in time, and the program is of no more use."""
        deadline, received = time.monotonic() + seconds, b""
        try:
            self._channel.settimeout(max(seconds, 0.001))
            self._channel.sendall(json.dumps(message, default=str).encode() + b"\n")
            while b"\n" not in received:
                if (left := deadline - time.monotonic()) <= 0:  # also where bytes come one by one
                    raise TimeoutError
                self._channel.settimeout(left)
                received += (piece := self._channel.recv(65536))
                if not piece:
                    raise NoScoreError(self._end())
                if len(received) > _MOST_BYTES:
                    raise NoScoreError(f"It wrote more than {_MOST_BYTES:,} bytes and was stopped.")
        except TimeoutError:
            raise NoScoreError("It took too long and was stopped.") from None
        except OSError:
            raise NoScoreError(self._end()) from None
        with contextlib.suppress(ValueError, RecursionError):  # also where more than a line came
            if isinstance(answer := json.loads(received), dict):
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
        self._process.wait()
        self._channel.close()
        self._folder.cleanup()

    def _end(self) -> str:
        try:
            code = self._process.wait(_ENDS_WITHIN_SECONDS)
        except subprocess.TimeoutExpired:
            return "It closed its channel and was stopped."
        return "It ran out of memory or was killed." if code in (247, -9) else f"It ended by itself (code {code})."


@functools.cache
def isolation() -> tuple[str, ...]:
    """Try the sandbox; return what code can still do on this machine, for people."""
    if sys.platform == "linux":
        program = Program(memory_mib=512, namespaces=True)
        with contextlib.closing(program), contextlib.suppress(NoScoreError):
            program.request({"source": ""}, _STARTS_WITHIN_SECONDS)
            return ()
    missing = ("use the network", "read files that its account may read", "leave processes behind")
    return (*missing, "use more memory") if sys.platform == "darwin" else missing


def require_isolation(what: str) -> None:
    """Raise a WorkerError where the sandbox of this machine is not enough for code of people that share it."""
    if missing := isolation():
        raise WorkerError(
            f"{what} needs a sandbox; on this machine code could {', '.join(missing)}.",
            "Let the server run on Linux with user namespaces, or use another scorer.",
        )


def _own_threads() -> int:
    processes = psutil.process_iter(["uids", "num_threads"])
    return sum(p.info["num_threads"] or 0 for p in processes if p.info["uids"] and p.info["uids"].real == os.getuid())
