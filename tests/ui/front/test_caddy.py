"""A lab behind the Caddyfile that it prints: TLS by Caddy, a Unix socket, and the address that Caddy saw in the audit log."""

import os
import shutil
import ssl

import httpx
import pytest

from loratory.engine.accounts.accounts import Accounts, open_database
from loratory.engine.accounts.audit import AuditLog
from loratory.engine.accounts.deployment import Deployment
from loratory.engine.accounts.lab import PublicAddress, audit_log_path
from loratory.engine.accounts.listener import Listener, bound_socket
from loratory.engine.accounts.people import Logins
from loratory.ui.front.serve import build_gate
from tests.browser.real_server import running
from tests.real_tls import serve_over_tls
from tests.ui.front.lab import PASSWORD, fake_services_of

pytestmark = pytest.mark.skipif(
    shutil.which("caddy") is None and not os.environ.get("CI"), reason="needs Debian's caddy package"
)
_OPTIONS = "{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n}\n"


@pytest.fixture
def address():
    with bound_socket("127.0.0.1", 0) as reserved:  # until the end: another process may take a free port
        yield PublicAddress.parse(f"https://localhost:{reserved.getsockname()[1]}")


@pytest.fixture
def lab(home, tmp_path, address):
    """Serve a lab on a socket, for its user and group alone."""
    listener = Listener.chosen(str(tmp_path / "page.sock"), "", 0, None, None)
    gate, _ = build_gate(
        home, address, lambda person: fake_services_of(home.for_person(person.name), person), behind_proxy=listener.behind_proxy,
        logins=Logins(),
    )  # fmt: skip
    with serve_over_tls(gate, listener.open(), None):
        yield home


@pytest.fixture
def caddy(lab, tmp_path, address):
    """Caddy with the printed site and a certificate of its own authority, which the returned context trusts."""
    site = Deployment(address).caddyfile().replace("/run/loratory/page.sock", str(tmp_path / "page.sock"))
    (tmp_path / "Caddyfile").write_text(_OPTIONS + site.replace("# tls internal", "tls internal #"))
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "XDG_DATA_HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    command = ["caddy", "run", "--adapter", "caddyfile", "--config", tmp_path / "Caddyfile"]
    root = tmp_path / "caddy" / "pki" / "authorities" / "local" / "root.crt"

    def answers():
        return bool(httpx.get(f"{address.origin}/sign-in", verify=ssl.create_default_context(cafile=root)))

    with running(command, tmp_path / "caddy.log", answers, environment):
        yield ssl.create_default_context(cafile=root)


def test_people_sign_in_and_a_forged_address_is_not_believed(lab, caddy, address):
    accounts = Accounts(open_database(lab))
    accounts.accept(accounts.invite("member", by="").token, "ann", PASSWORD)
    forgery = {
        "X-Forwarded-For": "1.2.3.4", "X-Real-IP": "1.2.3.4", "Forwarded": "for=1.2.3.4;host=evil.example",
        "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http",
    }  # fmt: skip
    own = {"Origin": address.origin, "Sec-Fetch-Site": "same-origin"}

    for local, password in (("127.0.0.2", "wrong " + PASSWORD), ("127.0.0.1", PASSWORD)):
        transport = httpx.HTTPTransport(verify=caddy, local_address=local)
        with httpx.Client(
            base_url=address.origin, transport=transport, headers={**own, **forgery}, timeout=300
        ) as client:
            answer = client.post("/sign-in", data={"name": "ann", "password": password})
    with httpx.Client(base_url=address.origin, verify=caddy, headers={**own, **forgery}, timeout=300) as client:
        client.cookies.update(answer.cookies)
        assert client.get("/config").json()["root"] == address.origin

    log = audit_log_path(lab)
    assert [(entry.kind, entry.address) for entry in AuditLog(log).entries()] == [
        ("sign-in failed", "127.0.0.2"),
        ("signed in", "127.0.0.1"),
    ]
    assert "1.2.3.4" not in log.read_text()
