"""The app as a person or an admin starts it: a server of its own on a home of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx

from loratory.engine.accounts.listener import bound_socket
from loratory.engine.paths import LoratoryHome
from loratory.ui.front.gate import COOKIE
from tests.real_tls import certificate_for
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


class RealServer(NamedTuple):
    """A server that answers."""

    url: str
    home: Path
    process: subprocess.Popen[bytes]


@contextmanager
def running(
    command: Sequence[object], log: Path, answers: Callable[[], bool], environment: Mapping[str, str], root: Path = ROOT
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program that writes to `log`, wait until it answers, and end it, however it fares.

    Args:
        answers: Whether it does; may raise `OSError` or httpx's errors for no.
        environment: All of its variables.
    """
    with log.open("ab") as output:
        arguments = [str(part) for part in command]
        process = subprocess.Popen(arguments, cwd=root, env=dict(environment), stdout=output, stderr=output)

    def is_there() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(OSError, httpx.TransportError):
            return answers()
        return False

    try:
        wait_until(is_there)
        yield process
    finally:
        process.terminate()
        process.wait(300)


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
    variables = {**os.environ, "LORATORY_HOME": str(home), "HF_HUB_OFFLINE": "1", **environment}
    # The port stays reserved, so no other program gets it before the server has started.
    with bound_socket("127.0.0.1", 0) as reserved:
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}/"
        command = [python, *program, "--port", reserved.getsockname()[1]]
        with running(command, home / "server.log", lambda: httpx.get(url).is_success, variables, root) as process:
            yield RealServer(url, home, process)


def contents_of(home: Path) -> dict[Path, bytes]:
    """Return what is in the files of a home on which a server is at work."""
    contents = {}
    for folder, _, names in os.walk(home):
        for path in (Path(folder, name) for name in names):
            with suppress(FileNotFoundError):  # what it writes is elsewhere until it is whole
                if path.is_file():
                    contents[path] = path.read_bytes()
    return contents


class LabServer:
    """`app.py --lab` behind real TLS on one port, started as often as a test asks."""

    def __init__(self, home: LoratoryHome, folder: Path) -> None:
        self._reserved = bound_socket("127.0.0.1", 0)  # kept, so no other program gets the port
        self._port = self._reserved.getsockname()[1]
        self._certificate, self._log = certificate_for("localhost", folder), folder / "server.log"
        self._home = home
        self.url = f"https://localhost:{self._port}"

    def close(self) -> None:
        """Give its port back."""
        self._reserved.close()

    def browser(self, token: str = "") -> httpx.Client:
        """Return a client that behaves as the lab's own page does."""
        headers = {"Origin": self.url, "Sec-Fetch-Site": "same-origin"}
        cookies = {COOKIE: token} if token else {}
        return httpx.Client(
            base_url=self.url, verify=self._certificate.trust, headers=headers, cookies=cookies, timeout=300
        )

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start the server, wait until it answers, and end it at last, however it fares."""
        command = [
            sys.executable, "app.py", "--lab", "--public-url", self.url, "--port", self._port,
            "--tls-cert", self._certificate.chain, "--tls-key", self._certificate.key,
        ]  # fmt: skip
        variables = {**os.environ, "LORATORY_HOME": str(self._home.root), "HF_HUB_OFFLINE": "1"}
        with (
            self.browser() as browser,
            running(command, self._log, lambda: browser.get("/sign-in").is_success, variables) as process,
        ):
            yield process
