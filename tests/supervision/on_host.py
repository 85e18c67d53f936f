"""A process that believes to be on another host: `python -m tests.supervision.on_host NAME HOME`.

Its locks are its own, as on Lustre with `localflock`, and its clock runs a million times faster once HOME has a file
`time-flies`. It supervises HOME with fake workers until it is killed, and prints each role that it gets.
"""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loratory.engine.paths import LoratoryHome
from loratory.engine.processes import liveness
from loratory.engine.supervision.seat import SeatTimes
from loratory.engine.supervision.supervisor import Supervisor
from tests.supervision.fake_runs import REPOSITORY, fake_settings


@pytest.fixture
def start_host(home: LoratoryHome) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Return a function that starts a server that believes to be on a host of that name."""
    processes: list[subprocess.Popen[str]] = []

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.supervision.on_host", name, str(home.root)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def main(name: str, home: Path) -> None:
    here = pytest.MonkeyPatch()
    here.setattr(platform, "node", lambda: name)
    here.setattr(liveness, "boot_id", lambda: f"boot of {name}")
    here.setattr(liveness.FileLock, "_open_locked", lambda lock, flags: os.open(lock._path, flags, 0o600))
    here.setattr(liveness.FileLock, "_is_locked", lambda _: False)
    times = SeatTimes(beat_seconds=0.05, stale_seconds=1800.0, clock=lambda: now(home))
    supervisor = Supervisor(LoratoryHome(home), fake_settings(seat=times))
    supervisor.start()
    text = ""
    while True:
        if supervisor.role != text:
            text = supervisor.role
            print(text, flush=True)
        time.sleep(0.02)


def now(home: Path) -> float:
    return time.monotonic() * (1e6 if (home / "time-flies").exists() else 1.0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
