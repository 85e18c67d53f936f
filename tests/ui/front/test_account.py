"""A person sees and ends the own sessions and changes the own password, over real TLS, without JavaScript."""

import itertools

import pytest

from loratory.engine.accounts.audit import AuditLog
from loratory.engine.accounts.lab import audit_log_path, change_settings
from loratory.ui.front.account import browser_name
from tests.ui.front.lab import PASSWORD, running_lab

NEW = "another horse battery"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("lab")) as running:
        running.add("ann")
        running.add("bea")
        yield running


def change(client, old=PASSWORD, new=NEW, again=NEW):
    return client.post("/account/password", data={"old": old, "new": new, "again": again})


def test_without_a_session_there_is_no_account(lab):
    with lab.browser() as visitor, lab.browser("A" * 43) as guess:
        for client in (visitor, guess):
            for path in ("/account", "/account/password", "/account/session"):
                for answer in (client.get(path), client.post(path, data={"session": "0" * 12})):
                    assert answer.status_code in (303, 405), path
                    assert answer.headers.get("location", "/sign-in") == "/sign-in"
                    assert "ann" not in answer.text


def test_a_person_sees_their_own_sessions_alone(lab):
    lab.sessions.begin(lab.accounts.person("ann"), "10.1.1.1", "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0")
    lab.sessions.begin(lab.accounts.person("bea"), "10.2.2.2", "<b>bea's</b>")
    with lab.signed_in("ann") as ann, lab.signed_in("bea") as bea:
        of_ann, of_bea = ann.get("/account").text, bea.get("/account").text

    assert "Firefox on Linux" in of_ann
    assert "10.1.1.1 · last used" in of_ann
    assert "this session" in of_ann
    assert "10.2.2.2" not in of_ann
    assert "10.2.2.2" in of_bea
    assert "<b>bea's" not in of_bea


def test_one_session_is_ended_and_another_persons_is_not(lab):
    ann, bea = lab.accounts.person("ann"), lab.accounts.person("bea")
    token = lab.sessions.begin(ann, "10.3.3.3", "")
    name_of_ann = next(session.session for session in lab.sessions.list_for(ann) if session.address == "10.3.3.3")
    other = lab.sessions.begin(bea, "10.4.4.4", "")
    name_of_bea = next(session.session for session in lab.sessions.list_for(bea) if session.address == "10.4.4.4")
    with lab.signed_in("ann") as client:
        for name in (name_of_ann, name_of_bea, "", "%", "' OR 1=1 --"):
            client.post("/account/session", data={"session": name})
        assert client.get("/account").status_code == 200, "this one is still there"

    assert lab.sessions.find(token) is None
    assert lab.sessions.find(other) is not None


def test_signing_out_everywhere_ends_all_sessions_of_this_person(lab):
    tokens = [lab.sessions.begin(lab.accounts.person("ann"), "", "") for _ in range(3)]
    other = lab.sessions.begin(lab.accounts.person("bea"), "", "")
    with lab.browser(tokens[0]) as client:
        assert client.post("/sign-out", data={"everywhere": "1"}).headers["location"] == "/sign-in"

    assert [lab.sessions.find(token) for token in tokens] == [None] * 3
    assert lab.sessions.find(other) is not None


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"old": "wrong " + PASSWORD}, "current password is wrong"),
        ({"again": "not the same words"}, "differ"),
        ({"new": "short", "again": "short"}, "characters"),
    ],
)
def test_a_password_that_cannot_be_changed_stays(lab, values, reason):
    token = lab.sessions.begin(lab.accounts.person("bea"), "", "")
    with lab.browser(token) as client:
        answer = change(client, **values)
    assert answer.status_code == 400
    assert reason in answer.text
    assert lab.sessions.find(token) is not None
    assert lab.accounts.check_password("bea", PASSWORD) is not None


def test_a_changed_password_ends_all_other_sessions_and_is_logged(lab):
    lab.add("cid")
    elsewhere = lab.sessions.begin(lab.accounts.person("cid"), "", "")
    with lab.signed_in("cid") as client:
        answer = change(client)
        assert answer.headers["location"] == "/account?changed=1"
        assert "Password changed" in client.get(answer.headers["location"]).text, "signed in with another session"

    assert lab.sessions.find(elsewhere) is None
    assert lab.accounts.check_password("cid", PASSWORD) is None
    assert lab.accounts.check_password("cid", NEW) is not None
    log = audit_log_path(lab.home)
    assert ("cid", "password set") in [(entry.person, entry.kind) for entry in AuditLog(log).entries()]
    assert NEW not in log.read_text()


def test_guesses_of_a_password_in_a_stolen_session_are_throttled(lab):
    lab.add("dan")
    with lab.signed_in("dan") as client:
        answers = [change(client, old=f"guess number {guess}").text for guess in range(12)]

    assert "too many attempts" in answers[-1]


def test_an_announcement_is_on_the_sign_in_page_and_on_every_page(lab):
    change_settings(lab.home, announcement="Driver update <b>at noon</b>")
    try:
        with lab.browser() as visitor, lab.signed_in("bea") as bea:
            assert "Driver update &lt;b&gt;at noon&lt;/b&gt;" in visitor.get("/sign-in").text
            assert "Driver update" in bea.get("/config").text
    finally:
        change_settings(lab.home, announcement="")


def test_a_password_in_the_field_of_the_name_is_not_logged(lab):
    with lab.browser() as client:
        for name in (PASSWORD, "Bea"):
            assert client.post("/sign-in", data={"name": name, "password": "wrong " + PASSWORD}).status_code == 403

    log = audit_log_path(lab.home)
    assert [entry.subject for entry in AuditLog(log).newest(2, kind="sign-in failed")] == ["bea", "unknown name"]
    assert PASSWORD not in log.read_text()


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36", "Chrome on Windows"),
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/140.0 Safari/537.36 Edg/140.0", "Edge on Windows"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) Version/18.0 Mobile/15E148 Safari/604.1", "Safari on iPhone"),
        ("", "Unknown browser"),
        ("x" * 100, "x" * 40),
    ],
)  # fmt: skip
def test_browsers_are_named_as_people_know_them(description, name):
    assert browser_name(description) == name


FORM = "application/x-www-form-urlencoded"
MALFORMED = {
    "large": (b"name=ann&password=" + b"x" * 9_000, FORM),
    "odd characters": (b"name=%00&password=%ff%fe&code=%00", FORM),
    "not UTF-8": (b"\xff\xfe name=ann", FORM),
    "many fields": (b"&".join(b"field%d=1" % number for number in range(50)), FORM),
    "JSON": (b'{"name": "ann"}', "application/json"),
    "a file": (b'--x\r\nContent-Disposition: form-data; name="name"; filename="a"\r\n\r\nann\r\n--x--', "multipart/form-data; boundary=x"),
    "empty": (b"", FORM),
}  # fmt: skip


def test_what_is_not_one_of_the_forms_signs_no_one_in(tmp_path):
    with running_lab(tmp_path) as lab, lab.browser() as browser:
        lab.add("ann")
        for path, (name, (body, kind)) in itertools.product(("/sign-in", "/join"), MALFORMED.items()):
            answer = browser.post(path, content=body, headers={"Content-Type": kind})

            assert answer.status_code in ((413,) if name == "large" else (400, 403)), (path, name)
            assert "set-cookie" not in answer.headers
            assert "Traceback" not in answer.text
