"""The server of a Space begins again without its secrets; one that cannot start reports why on its page and in its log."""

import os
import re
import ssl
import sys
import threading
from contextlib import contextmanager, suppress
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest
import uvicorn

from loratory.engine.accounts.listener import bound_socket
from loratory.engine.errors import AccountError, HubUnreachableError
from loratory.ui.front import connections
from loratory.ui.front.gate import COOKIE
from loratory.ui.front.oidc import ROUND_COOKIE
from tests.browser.real_server import running
from tests.space.test_environment import CANARY, GIVEN
from tests.ui.front.institute import CLIENT, SECRET, running_institute
from tests.ui.front.oidc.rounds import NAVIGATION, visit

HOST = {"Host": GIVEN["SPACE_HOST"]}


@contextmanager
def start_space(folder, **changes):
    """Start a server as Hugging Face does; yield it once it answers, with its address and its log."""
    settings = {
        **os.environ,
        **GIVEN,
        "LORATORY_BUCKET": "",
        "MY_PASSWORD": CANARY,
        "LORATORY_HOME": str(folder / "home"),
    }
    environment = {name: value for name, value in {**settings, **changes}.items() if value}
    with bound_socket("127.0.0.1", 0) as reserved:  # until the end: another process may take a free port
        port = reserved.getsockname()[1]
        url, log = f"http://127.0.0.1:{port}", folder / "log"
        command = [sys.executable, "app.py", "--port", port]
        with running(command, log, lambda: httpx.get(url).status_code == 200, environment) as server:
            yield server, url, log


def process_files_of(server):
    """Return what other processes of the user see of a server and of those that it started."""
    parts = []
    for process in (psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)):
        folder = Path(f"/proc/{process.pid}")
        with suppress(FileNotFoundError, ProcessLookupError):  # a worker that has ended meanwhile
            parts += [(folder / name).read_bytes() for name in ("environ", "cmdline")]
            for descriptor in (folder / "fd").iterdir():
                with suppress(OSError):  # it was closed meanwhile
                    parts.append(os.fsencode(descriptor.readlink()))
    return b"\n".join(parts)


def signed_in(url, institute):
    """Return the headers of a person who signs in through the proxy of Hugging Face, over plain HTTP."""
    own = {**HOST, "Origin": f"https://{HOST['Host']}", "X-Forwarded-For": "10.9.8.7"}
    offer = httpx.post(f"{url}/sign-in/with", data={"for": "sign in"}, headers=own, timeout=300)
    (target,) = re.findall(r'content="0;url=([^"]+)"', offer.text)
    back = visit(institute, unescape(target))
    own_navigation = {**HOST, **NAVIGATION, "X-Forwarded-For": "1.2.3.4, 10.9.8.7"}
    arrival = httpx.get(
        f"{url}/oidc/callback",
        params=back,
        timeout=300,
        headers={**own_navigation, "Cookie": cookie_of(offer, ROUND_COOKIE)},
    )
    assert (arrival.status_code, arrival.headers["location"]) == (303, "/")
    return {**HOST, "Cookie": cookie_of(arrival, COOKIE)}


def cookie_of(answer, name):
    (result,) = (
        cookie.partition(";")[0] for cookie in answer.headers.get_list("set-cookie") if cookie.startswith(f"{name}=")
    )
    return result


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="a Space runs on Linux")
def test_secrets_of_a_space_are_in_no_process_page_log_or_file(tmp_path):
    with running_institute(tmp_path) as institute:
        institute.user = GIVEN["SPACE_CREATOR_USER_ID"]
        institute.userinfo["preferred_username"] = "Ann"
        institute.token |= {"expires_in": 28_800, "scope": "openid profile jobs"}
        (authority,) = institute.trust.get_ca_certs(binary_form=True)[-1:]
        (tmp_path / "ca.pem").write_text(ssl.DER_cert_to_PEM_cert(authority))
        changes = {
            "OPENID_PROVIDER_URL": institute.issuer, "OAUTH_CLIENT_ID": CLIENT, "OAUTH_CLIENT_SECRET": SECRET,
            "SSL_CERT_FILE": str(tmp_path / "ca.pem"),
        }  # fmt: skip
        with start_space(tmp_path, **changes) as (server, url, log):
            pages = [
                httpx.get(url + path, headers=HOST, timeout=300).content
                for path in ("/", "/sign-in", "/demo", "/config")
            ]
            own = signed_in(url, institute)
            pages += [httpx.get(url + path, headers=own, timeout=300).content for path in ("/", "/config", "/account")]
            process_files = process_files_of(server)
    assert server.returncode == 0
    assert b"Signed in as <b>ann</b>, admin" in pages[-1]
    assert b"/home" in process_files
    assert b"memfd" not in process_files, "it was read and closed"
    assert b"LORATORY_ADMITTED" not in process_files
    files = [path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file()]
    for part in (process_files, *pages, log.read_bytes(), *files):
        for secret in (CANARY, SECRET, f"access-{GIVEN['SPACE_CREATOR_USER_ID']}"):
            assert secret.encode() not in part
    assert b'"address": "10.9.8.7"' in b"".join(files)
    assert "https://ann-loratory.hf.space" in log.read_text()


@pytest.mark.e2e
def test_a_space_without_sign_in_reports_it_on_its_page_and_in_its_log(tmp_path):
    with start_space(tmp_path, OAUTH_CLIENT_ID="") as (_, url, log):
        answers = [
            httpx.get(url + path, headers={"Host": name}, timeout=300)
            for path in ("/", "/x")
            for name in ("x", "y.hf.space")
        ]
        for answer in answers:
            assert "hf_oauth: true" in answer.text
            assert CANARY not in answer.text
            assert answer.headers["content-security-policy"].endswith("frame-ancestors https://huggingface.co")
        assert "hf_oauth: true" in log.read_text()
        assert CANARY not in log.read_text()
        assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("error", "may_pass"),
    [(HubUnreachableError("The Hub does not answer.", "Wait."), True), (AccountError("No.", "Add it."), False)],
)
def test_only_what_may_pass_by_itself_is_tried_again(monkeypatch, error, may_pass):
    runs, timers = [], []

    class NotedTimer(threading.Timer):
        """Is known also once it has ended, before the server runs."""

        def start(self):
            timers.append(self)
            super().start()

    def run(server, sockets):
        for timer in timers:
            timer.join()
        runs.append((bool(timers), server.should_exit))

    monkeypatch.setattr(
        connections, "threading", SimpleNamespace(Timer=NotedTimer)
    )  # those of other tests are not noted
    monkeypatch.setattr(connections, "_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(uvicorn.Server, "run", run)
    connections.serve_problem(error, SimpleNamespace(open=lambda: None))
    assert runs == [(may_pass, may_pass)]
