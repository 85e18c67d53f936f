"""A proxy names people over its own socket: those who are linked or invited come in, and a name serves one person."""

import os
import re
from contextlib import contextmanager

import httpx
import pytest

from loratory.engine.accounts.accounts import Accounts, open_database
from loratory.engine.accounts.audit import AuditLog
from loratory.engine.accounts.identities import Identities, Identity
from loratory.engine.accounts.lab import PublicAddress, audit_log_path
from loratory.engine.accounts.listener import Listener, TrustedProxy
from loratory.engine.accounts.people import Logins
from loratory.engine.accounts.sessions import Sessions
from loratory.ui.front.gate import COOKIE
from loratory.ui.front.serve import build_gate
from tests.accounts.conftest import quick_passwords  # noqa: F401 - a fixture
from tests.real_tls import serve_over_tls
from tests.ui.front.lab import PASSWORD, fake_services_of, running_lab

ADDRESS = PublicAddress.parse("https://gpu.lab.example")
HEADER = "X-Remote-User"


@contextmanager
def behind_proxy(home, path, user_id):
    listener = Listener.chosen(str(path), "", 0, None, None)
    proxy = TrustedProxy(HEADER.lower(), user_id)
    gate, _ = build_gate(
        home, ADDRESS, lambda person: fake_services_of(home.for_person(person.name), person), behind_proxy=True, proxy=proxy,
        logins=Logins(),
    )  # fmt: skip
    with serve_over_tls(gate, proxy.guard(listener.open()), None):
        yield


@pytest.fixture
def path(home, tmp_path):
    with behind_proxy(home, tmp_path / "page.sock", os.geteuid()):
        yield tmp_path / "page.sock"


@pytest.fixture
def accounts(home, quick_passwords):  # noqa: F811
    database = open_database(home)
    yield Accounts(database, quick_passwords)
    database.close()


def send(path, method, url, names=(), token=None, **form):
    """Send what the proxy passes on, with the names that it gives."""
    headers = [("Origin", ADDRESS.origin), ("X-Forwarded-For", "10.0.0.1"), *((HEADER, name) for name in names)]
    if token is not None:
        headers.append(("Cookie", f"{COOKIE}={token}"))
    with httpx.Client(
        base_url=f"http://{ADDRESS.host}", transport=httpx.HTTPTransport(uds=str(path)), timeout=300
    ) as client:
        return client.request(method, url, headers=headers, data=form or None)


def token_of(answer):
    match = re.search(f"{COOKIE}=([^;]+);", answer.headers.get("set-cookie", ""))
    return match[1] if match else None


def person_in(path, token, names=()):
    match = re.search(r"Signed in as <b>([^<]+)</b>", send(path, "GET", "/account", names, token).text)
    return match[1] if match else None


def test_an_invited_person_joins_and_signs_in_under_the_name_of_the_proxy(path, accounts, home):
    invitation = accounts.invite("member", by="root")
    answer = send(
        path, "POST", "/sign-in/with", ["ann@example.edu"], **{"for": "join", "code": invitation.token, "name": "ann"}
    )
    assert person_in(path, token_of(answer), ["ann@example.edu"]) == "ann"
    again = send(path, "POST", "/sign-in/with", ["ann@example.edu"], **{"for": "sign in"})
    assert person_in(path, token_of(again), ["ann@example.edu"]) == "ann"
    assert send(path, "GET", "/config", ["ann@example.edu"], token_of(again)).status_code == 200
    log = [
        (entry.person, entry.kind, entry.detail, entry.address) for entry in AuditLog(audit_log_path(home)).entries()
    ]
    assert log[-1] == ("ann", "signed in", "proxy", "10.0.0.1")


@pytest.mark.parametrize("names", [[], [""], ["stranger"], ["root"], ["ann", "stranger"], ["x" * 300], ["a\tb"]])
def test_a_name_that_was_not_invited_opens_nothing(path, accounts, names):
    accounts.accept(accounts.invite("admin", by="").token, "root", PASSWORD)
    answer = send(path, "POST", "/sign-in/with", names, **{"for": "sign in"})
    assert answer.status_code == 403
    assert token_of(answer) is None
    assert send(path, "GET", "/config", names).status_code == 401, "the header alone opens nothing"


def test_a_session_does_not_serve_the_next_person_at_the_browser(path, accounts, home):
    identities = Identities(accounts._database, accounts)
    sessions = Sessions(accounts._database)
    for name in ("ann", "bea"):
        identities.accept(accounts.invite("member", by="").token, name, Identity("proxy:x-remote-user", f"of-{name}"))
    root = accounts.accept(accounts.invite("admin", by="").token, "root", PASSWORD)
    of_ann, of_root = sessions.begin(accounts.person("ann"), "", ""), sessions.begin(root, "", "")

    assert person_in(path, of_ann, ["of-ann"]) == "ann"
    for names in (["of-bea"], ["stranger"], [], ["of-ann", "of-ann"]):
        assert person_in(path, of_ann, names) is None
        assert send(path, "GET", "/config", names, of_ann).status_code == 401
    assert person_in(path, of_root, ["of-bea"]) is None
    assert person_in(path, of_root, ["stranger"]) == "root", "to be linked"
    answer = send(path, "POST", "/sign-in/with", ["of-root"], of_root, **{"for": "link", "password": PASSWORD})
    assert answer.headers["location"] == "/account?linked=1"
    assert person_in(path, of_root, ["stranger"]) is None
    assert person_in(path, of_root, ["of-root"]) == "root"


def test_a_disabled_person_is_not_let_in_and_nothing_is_confirmed(path, accounts, home):
    identities = Identities(accounts._database, accounts)
    identities.accept(accounts.invite("admin", by="").token, "ann", Identity("proxy:x-remote-user", "of-ann"))
    token = token_of(send(path, "POST", "/sign-in/with", ["of-ann"], **{"for": "sign in"}))
    assert send(path, "POST", "/sign-in/with", ["of-ann"], token, **{"for": "confirm"}).status_code == 400
    accounts.accept(accounts.invite("admin", by="").token, "root", PASSWORD)
    accounts.disable("ann")
    assert send(path, "POST", "/sign-in/with", ["of-ann"], **{"for": "sign in"}).status_code == 403
    assert person_in(path, token, ["of-ann"]) is None


def test_another_user_of_the_machine_gets_no_answer(home, tmp_path):
    with behind_proxy(home, tmp_path / "page.sock", os.geteuid() + 1):
        for _ in range(3):  # and it continues listening
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError, httpx.WriteError)):
                send(tmp_path / "page.sock", "GET", "/sign-in", ["root"])


def test_over_tls_the_header_is_a_word_like_any_other(tmp_path):
    with running_lab(tmp_path) as lab:
        lab.add("ann", "admin")
        database = open_database(lab.home)
        Identities(database, lab.accounts).link(lab.accounts.person("ann"), Identity("proxy:x-remote-user", "ann"))
        database.close()
        with lab.browser(**{HEADER: "ann"}) as browser:
            assert browser.get("/config").status_code == 401
            assert browser.post("/sign-in/with", data={"for": "sign in"}).status_code == 401
            assert "single sign-on" not in browser.get("/sign-in").text
        with lab.signed_in("ann") as ann:
            assert ann.get("/config", headers={HEADER: "bea"}).status_code == 200
