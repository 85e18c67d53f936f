"""The server of a Space begins again without its secrets; one that cannot start says why on its page and in its log."""

import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
import uvicorn

from engine.errors import AccountError, HubUnreachableError
from engine.serve.guard import bound_socket
from tests.space.test_environment import CANARY, GIVEN
from ui.front import problem

ROOT = Path(__file__).resolve().parents[4]
HOST = {"Host": GIVEN["SPACE_HOST"]}


@contextmanager
def started(folder, **changes):
    """A server as Hugging Face starts it, once it answers, with its address and its log."""
    with bound_socket("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    given = {**os.environ, **GIVEN, "LORATORY_BUCKET": "", "MY_PASSWORD": CANARY, "LORATORY_HOME": str(folder / "home")}
    environment = {name: value for name, value in {**given, **changes}.items() if value}
    command, log = [sys.executable, "app.py", "--port", str(port)], folder / "log"
    with log.open("wb") as out, subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out) as server:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
        try:
            while not _answers(url):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield server, url, log
        finally:
            server.terminate()


def _answers(url):
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def seen_of(server):
    """What other processes of the user see of a server and of those that it started."""
    parts = []
    for process in (psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)):
        folder = Path(f"/proc/{process.pid}")
        parts += [(folder / name).read_bytes() for name in ("environ", "cmdline")]
        for one in (folder / "fd").iterdir():
            with suppress(OSError):  # it was closed meanwhile
                parts.append(os.fsencode(one.readlink()))
    return b"\n".join(parts)


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="a Space runs on Linux")
def test_secrets_of_a_space_are_in_no_process_page_log_or_file(tmp_path):
    with started(tmp_path) as (server, url, log):
        seen = seen_of(server)
        pages = [httpx.get(url + path, headers=HOST).content for path in ("/", "/sign-in", "/demo", "/config")]
        refused = httpx.post(
            f"{url}/sign-in/with", data={"for": "sign in"}, headers={**HOST, "Origin": f"https://{HOST['Host']}"}
        )
    assert server.returncode == 0
    assert b"/home" in seen
    assert b"memfd" not in seen, "it was read and closed"
    assert b"LORATORY_ADMITTED" not in seen
    files = [path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file()]
    for part in (seen, *pages, refused.content, log.read_bytes(), *files):
        assert CANARY.encode() not in part
    assert b"Sign in with Hugging Face" in pages[1]
    assert "https://ann-loratory.hf.space" in log.read_text()


@pytest.mark.e2e
def test_a_space_without_sign_in_says_so_on_its_page_and_in_its_log(tmp_path):
    with started(tmp_path, OAUTH_CLIENT_ID="") as (_, url, log):
        answers = [
            httpx.get(url + path, headers={"Host": name}) for path in ("/", "/x") for name in ("x", "y.hf.space")
        ]
        for answer in answers:
            assert "hf_oauth: true" in answer.text
            assert CANARY not in answer.text
            assert answer.headers["content-security-policy"].endswith("frame-ancestors https://huggingface.co")
        assert "hf_oauth: true" in log.read_text()
        assert CANARY not in log.read_text()
        assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    "error", [HubUnreachableError("The Hub does not answer.", "Wait."), AccountError("No.", "Add it.")]
)
def test_only_what_may_pass_by_itself_is_tried_again(monkeypatch, error):
    """The page is served until the timer ends it; without one, until something else does."""
    timers, served = [], []

    class Timer:
        daemon = False

        def __init__(self, _seconds, end):
            timers.append(end)

        def start(self):
            pass

    class Server:
        should_exit = False

        def __init__(self, config):
            served.append(config)

        def run(self, sockets):
            for end in timers:
                end()
            assert self.should_exit == isinstance(error, HubUnreachableError)

    class Nowhere:
        def open(self):
            return None

    monkeypatch.setattr(threading, "Timer", Timer)
    monkeypatch.setattr(uvicorn, "Server", Server)
    problem.serve_problem(error, Nowhere())
    assert len(served) == 1
