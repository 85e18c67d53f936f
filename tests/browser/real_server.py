"""The page as a person starts it: a server of its own on a home of its own."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from engine.serve.guard import bound_socket

ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 300  # generous: a timed test would only measure the machine


class RealServer(NamedTuple):
    """A server that answers."""

    url: str
    home: Path
    process: subprocess.Popen[bytes]


@contextmanager
def real_server(
    home: Path, *, forks: bool = False, root: Path = ROOT, python: str = sys.executable, **environment: str
) -> Iterator[RealServer]:
    """Start `app.py` on a home, wait until it answers, and end it.

    Args:
        home: Where it keeps everything; its log, too.
        forks: Whether its workers are forked, which spares each of them seconds of imports; see `tests.fork_server`.
        root: The checkout that is served.
        python: Of that checkout.
        environment: Variables in addition to ours.
    """
    program = ["-m", "tests.browser.forking_app"] if forks else ["app.py"]
    # The port stays reserved: one that is free again goes to whoever asks, before the server has started.
    with bound_socket("127.0.0.1", 0) as reserved, (home / "server.log").open("wb") as log:
        port = reserved.getsockname()[1]
        process = subprocess.Popen(
            [python, *program, "--port", str(port)],
            cwd=root,
            env={**os.environ, "LORATORY_HOME": str(home), "HF_HUB_OFFLINE": "1", **environment},
            stdout=log,
            stderr=log,
        )
        try:
            url = f"http://127.0.0.1:{port}/"
            deadline = time.monotonic() + _START_SECONDS
            while True:
                try:
                    urllib.request.urlopen(url, timeout=5).close()
                    break
                except OSError:
                    assert process.poll() is None, (home / "server.log").read_text()
                    assert time.monotonic() < deadline, "the page did not answer"
                    time.sleep(0.02)
            yield RealServer(url, home, process)
        finally:
            process.terminate()
            process.wait(300)
